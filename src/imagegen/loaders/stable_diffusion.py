"""The Stable Diffusion family: 3.5, 3, XL and 1.5."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from imagegen.catalog.sources import Folders
from imagegen.loaders.base import LoadedModel, ModelLoader, Placement, find_weights
from imagegen.loaders.diffusers_model import (
    DiffusersSpec,
    check_pipeline,
    least_bytes,
    load_model,
    longest_side_in,
    pipeline_files,
    prompt_warnings_in,
    replaced_files,
)


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


class StableDiffusionModelLoader(ModelLoader[StableDiffusionSpec]):
    """Loads Stable Diffusion pipelines, safetensors only."""

    def load(self, spec: StableDiffusionSpec, placement: Placement) -> LoadedModel:
        parts = _PARTS.get(spec.pipeline_class, {})
        return load_model(spec, find_weights(spec, placement.folders), placement, parts)

    def check(self, spec: StableDiffusionSpec, folders: Folders) -> None:
        check_pipeline(spec, find_weights(spec, folders), folders)

    def least_bytes(self, spec: StableDiffusionSpec, placement: Placement) -> int | None:
        return least_bytes(spec, find_weights(spec, placement.folders), placement)

    def longest_side(self, spec: StableDiffusionSpec, folders: Folders) -> int:
        return longest_side_in(spec, folders)

    def prompt_warnings(self, spec: StableDiffusionSpec, folders: Folders, prompt: str) -> Sequence[str]:
        return prompt_warnings_in(spec, folders, prompt)

    def files(self, spec: StableDiffusionSpec, folders: Folders) -> Sequence[Path]:
        return [*pipeline_files(spec, find_weights(spec, folders)), *replaced_files(spec, folders)]


#: No watermark: it would change pixels on machines where its library is installed.
_XL = MappingProxyType({"add_watermarker": False})
#: No safety checker of 1.5: it takes 1.2 GB, and sometimes makes harmless pictures black.
_UNCHECKED = MappingProxyType({"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False})
_PARTS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "StableDiffusionXLPipeline": _XL,
        "StableDiffusionXLInpaintPipeline": _XL,
        "StableDiffusionPipeline": _UNCHECKED,
        "StableDiffusionInpaintPipeline": _UNCHECKED,
    }
)
