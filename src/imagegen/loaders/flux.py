"""The FLUX family: text-to-image and image-to-image on one set of weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from imagegen.catalog.catalog import ModelSpec
from imagegen.core.task import GenerationRequest
from imagegen.loaders.base import LoadedModel, ModelLoader, Placement, find_weights
from imagegen.loaders.diffusers_model import DiffusersModel, check_index, place, quiet_libraries, torch_dtype


class FluxSpec(ModelSpec):
    """A FluxPipeline: schnell, dev, and what is trained like them."""

    type: Literal["flux"]
    pipeline_class: Literal["FluxPipeline"] = "FluxPipeline"
    #: Tokens of the T5 encoder that a prompt is padded or cut to.
    max_sequence_length: int = Field(default=512, ge=16, le=512)

    @property
    def supports_lora(self) -> bool:
        return True


class FluxModelLoader(ModelLoader[FluxSpec]):
    """Loads FLUX pipelines in the diffusers folder layout, safetensors only."""

    def load(self, spec: FluxSpec, folder: Path | None, placement: Placement) -> LoadedModel:
        weights = find_weights(spec, folder)
        check_index(weights, spec.pipeline_class)
        quiet_libraries()
        from diffusers import FluxImg2ImgPipeline, FluxPipeline

        pipeline = FluxPipeline.from_pretrained(
            weights,
            dtype=torch_dtype(spec.torch_dtype, placement.device),
            use_safetensors=True,
            local_files_only=True,
        )
        place(pipeline, placement)
        # Not from_pipe(): it recasts the shared weights to float32 in place.
        sibling = FluxImg2ImgPipeline(**pipeline.components)
        sibling.set_progress_bar_config(disable=True)

        def options(request: GenerationRequest) -> Mapping[str, Any]:
            return {"guidance_scale": request.guidance_scale, "max_sequence_length": spec.max_sequence_length}

        return DiffusersModel(pipeline, sibling, options)
