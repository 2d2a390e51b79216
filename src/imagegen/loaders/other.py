"""The family `diffusers`: every other text-to-image pipeline of the table in pipelines.py."""

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
    longest_side_in,
    pipeline_files,
    prompt_warnings_in,
    replaced_files,
)


class OtherSpec(DiffusersSpec):
    """A pipeline in the diffusers folder layout, chosen by `pipeline_class`."""

    type: Literal["diffusers"]
    pipeline_class: Literal[
        "AuraFlowPipeline",
        "BriaPipeline",
        "ChromaPipeline",
        "CogView4Pipeline",
        "ErnieImagePipeline",
        "HunyuanDiTPipeline",
        "KolorsPipeline",
        "Krea2Pipeline",
        "Lumina2Pipeline",
        "OvisImagePipeline",
        "QwenImageEditPipeline",
        "QwenImageEditPlusPipeline",
        "QwenImagePipeline",
        "SanaPipeline",
        "SanaSprintPipeline",
        "ZImagePipeline",
    ]


class OtherModelLoader(ModelLoader[OtherSpec]):
    """Loads every pipeline of the table, safetensors only."""

    def load(self, spec: OtherSpec, placement: Placement) -> LoadedModel:
        return load_model(spec, find_weights(spec, placement.folders), placement)

    def check(self, spec: OtherSpec, folders: Folders) -> None:
        check_pipeline(spec, find_weights(spec, folders), folders)

    def least_bytes(self, spec: OtherSpec, placement: Placement) -> int | None:
        return least_bytes(spec, find_weights(spec, placement.folders), placement)

    def longest_side(self, spec: OtherSpec, folders: Folders) -> int:
        return longest_side_in(spec, folders)

    def prompt_warnings(self, spec: OtherSpec, folders: Folders, prompt: str) -> Sequence[str]:
        return prompt_warnings_in(spec, folders, prompt)

    def files(self, spec: OtherSpec, folders: Folders) -> Sequence[Path]:
        return [*pipeline_files(spec, find_weights(spec, folders)), *replaced_files(spec, folders)]
