"""The Stable Diffusion family: 3.5, 3, XL and 1.5."""

from typing import Literal

from imagegen.loaders.base import LoadedModel, ModelLoader, Placement, find_weights
from imagegen.loaders.diffusers_model import DiffusersSpec, load_model


class StableDiffusionSpec(DiffusersSpec):
    """A Stable Diffusion pipeline in the diffusers folder layout."""

    type: Literal["stable_diffusion"]
    pipeline_class: Literal["StableDiffusion3Pipeline", "StableDiffusionXLPipeline", "StableDiffusionPipeline"] = (
        "StableDiffusion3Pipeline"
    )


class StableDiffusionModelLoader(ModelLoader[StableDiffusionSpec]):
    """Loads Stable Diffusion pipelines, safetensors only."""

    def load(self, spec: StableDiffusionSpec, placement: Placement) -> LoadedModel:
        return load_model(spec, find_weights(spec, placement.folders), placement)
