"""PipelineModelLoader: loads entries whose pipeline is one folder of diffusers. The families differ in their specs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from imagegen.catalog.sources import Folders
from imagegen.core.errors import WeightsMissing
from imagegen.loaders.base import LoadedModel, ModelLoader, Placement, find_weights
from imagegen.loaders.diffusers_model import (
    DiffusersSpec,
    check_pipeline,
    least_bytes,
    load_model,
    pipeline_files,
    replaced_files,
)
from imagegen.loaders.folder import read_bounded
from imagegen.loaders.pipelines import has_longest_side, longest_side
from imagegen.loaders.tokens import CLIP_TOKENS, least_tokens

PipelineSpecT = TypeVar("PipelineSpecT", bound=DiffusersSpec)

_NO_PARTS: Mapping[str, Any] = MappingProxyType({})


class PipelineModelLoader(ModelLoader[PipelineSpecT]):
    """Loads a pipeline from its folder, safetensors only."""

    def parts(self, spec: PipelineSpecT) -> Mapping[str, Any]:
        """Arguments of the pipeline that replace parts of its folder, by name."""
        return _NO_PARTS

    def load(self, spec: PipelineSpecT, placement: Placement) -> LoadedModel:
        return load_model(spec, find_weights(spec, placement.folders), placement, self.parts(spec))

    def check(self, spec: PipelineSpecT, folders: Folders) -> None:
        check_pipeline(spec, find_weights(spec, folders), folders)

    def least_bytes(self, spec: PipelineSpecT, placement: Placement) -> int | None:
        return least_bytes(spec, find_weights(spec, placement.folders), placement)

    def longest_side(self, spec: PipelineSpecT, folders: Folders) -> int:
        if not has_longest_side(spec.pipeline_class):
            return 0
        config = json.loads(read_bounded(find_weights(spec, folders) / "transformer/config.json"))
        return longest_side(spec.pipeline_class, config)

    def prompt_warnings(self, spec: PipelineSpecT, folders: Folders, prompt: str) -> Sequence[str]:
        most = spec.kind.tokens and (spec.max_sequence_length or spec.kind.tokens)
        if most is None:
            return []
        if spec.kind.tokens == CLIP_TOKENS:
            most = CLIP_TOKENS  # CLIP does not take max_sequence_length
        found = least_tokens(_local_folder(spec, folders), prompt)
        if found <= most:
            return []
        read = f"the model reads {most} tokens, and the prompt has at least {found}"
        return [f"The end of the prompt will be ignored: {read}."]

    def files(self, spec: PipelineSpecT, folders: Folders) -> Sequence[Path]:
        return [*pipeline_files(spec, find_weights(spec, folders)), *replaced_files(spec, folders)]


def _local_folder(spec: DiffusersSpec, folders: Folders) -> Path | None:
    """The folder of the weights; None: they are not on this machine."""
    try:
        return find_weights(spec, folders)
    except WeightsMissing:
        return None
