"""The FLUX family: schnell, dev, Kontext, Fill and FLUX.2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from imagegen.catalog.sources import Folders
from imagegen.loaders.base import LoadedModel, ModelLoader, Placement, find_weights
from imagegen.loaders.diffusers_model import (
    DiffusersSpec,
    check_pipeline,
    least_bytes,
    load_model,
    pipeline_files,
    prompt_warnings_in,
    replaced_files,
)


class FluxSpec(DiffusersSpec):
    """A FLUX pipeline in the diffusers folder layout."""

    type: Literal["flux"]
    pipeline_class: Literal[
        "FluxPipeline", "FluxKontextPipeline", "FluxFillPipeline", "Flux2Pipeline", "Flux2KleinPipeline"
    ] = "FluxPipeline"


class FluxModelLoader(ModelLoader[FluxSpec]):
    """Loads FLUX pipelines, safetensors only."""

    def load(self, spec: FluxSpec, placement: Placement) -> LoadedModel:
        return load_model(spec, find_weights(spec, placement.folders), placement)

    def check(self, spec: FluxSpec, folders: Folders) -> None:
        check_pipeline(spec, find_weights(spec, folders), folders)

    def least_bytes(self, spec: FluxSpec, placement: Placement) -> int | None:
        return least_bytes(spec, find_weights(spec, placement.folders), placement)

    def prompt_warnings(self, spec: FluxSpec, folders: Folders, prompt: str) -> Sequence[str]:
        return prompt_warnings_in(spec, folders, prompt)

    def files(self, spec: FluxSpec, folders: Folders) -> Sequence[Path]:
        return [*pipeline_files(spec, find_weights(spec, folders)), *replaced_files(spec, folders)]
