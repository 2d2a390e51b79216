"""The FLUX family: schnell, dev, Kontext, Fill and FLUX.2."""

from typing import Literal

from imagegen.loaders.diffusers_model import DiffusersSpec
from imagegen.loaders.pipeline_loader import PipelineModelLoader


class FluxSpec(DiffusersSpec):
    """A FLUX pipeline in the diffusers folder layout."""

    type: Literal["flux"]
    pipeline_class: Literal[
        "FluxPipeline", "FluxKontextPipeline", "FluxFillPipeline", "Flux2Pipeline", "Flux2KleinPipeline"
    ] = "FluxPipeline"


class FluxModelLoader(PipelineModelLoader[FluxSpec]):
    """Loads FLUX pipelines, safetensors only."""
