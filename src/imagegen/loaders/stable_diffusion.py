"""The Stable Diffusion family: 3.5, 3, XL and 1.5."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from imagegen.loaders.diffusers_model import DiffusersSpec
from imagegen.loaders.pipeline_loader import PipelineModelLoader


class StableDiffusionSpec(DiffusersSpec):
    """A Stable Diffusion pipeline in the diffusers folder layout."""

    type: Literal["stable_diffusion"]
    pipeline_class: Literal[
        "StableDiffusion3Pipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionPipeline",
        "StableDiffusionInpaintPipeline",
    ] = "StableDiffusion3Pipeline"

    @property
    def elsewhere(self) -> tuple[str, ...]:
        left_out = tuple(name for name, part in _PARTS.get(self.pipeline_class, {}).items() if part is None)
        return super().elsewhere + left_out


class StableDiffusionModelLoader(PipelineModelLoader[StableDiffusionSpec]):
    """Loads Stable Diffusion pipelines, safetensors only."""

    def parts(self, spec: StableDiffusionSpec) -> Mapping[str, Any]:
        return _PARTS.get(spec.pipeline_class, {})


#: No watermark: it would change pixels on machines where its library is installed.
_XL = MappingProxyType({"add_watermarker": False})
#: Without the safety checker, which takes 1.2 GB and sometimes makes harmless pictures black.
_UNCHECKED = MappingProxyType({"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False})
_PARTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "StableDiffusionXLPipeline": _XL,
        "StableDiffusionXLInpaintPipeline": _XL,
        "StableDiffusionPipeline": _UNCHECKED,
        "StableDiffusionInpaintPipeline": _UNCHECKED,
    }
)
