"""Which files of a repository a pipeline needs."""

from typing import Any

import pytest

from imagegen.catalog.pipeline_files import INDEX, lacking, needed, parts_of, variant

INDEX_OF_FLUX: dict[str, Any] = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.42.1",
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "requires_safety_checker": True,
}

SMALL = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "transformer/config.json",
]
TEXT = "text_encoder/model.safetensors"
SHARDS = [
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
]
REPOSITORY = [*SMALL, TEXT, *SHARDS]

#: What lies in real repositories beside what is needed.
NOISE = [
    ".gitattributes",
    "README.md",
    "LICENSE.md",
    "dev_grid.jpg",
    "flux1-dev.safetensors",
    "ae.safetensors",
    "image_encoder/model.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.onnx",
    "text_encoder/openvino_model.bin",
    "text_encoder/openvino_model.xml",
    "text_encoder/pytorch_model.bin",
    "text_encoder/pytorch_model.bin.index.json",
    "transformer/diffusion_pytorch_model.bin",
    "transformer/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
    "transformer/diffusion_pytorch_model.non_ema.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
    "transformer/old/config.json",
    "transformer/modeling.py",
    "unet/diffusion_pytorch_model.safetensors",
]


def test_the_parts_are_those_that_are_not_null() -> None:
    assert list(parts_of(INDEX_OF_FLUX)) == ["scheduler", "text_encoder", "tokenizer", "transformer"]


def test_exactly_what_is_needed_is_chosen() -> None:
    assert sorted(needed(REPOSITORY + NOISE, INDEX_OF_FLUX)) == sorted(REPOSITORY)
    assert lacking(REPOSITORY, INDEX_OF_FLUX) is None


def test_of_a_part_that_comes_from_elsewhere_only_the_configuration_is_needed() -> None:
    chosen = needed(REPOSITORY, INDEX_OF_FLUX, without=("transformer",))
    assert sorted(chosen) == sorted([*SMALL, TEXT])
    assert lacking(chosen, INDEX_OF_FLUX, without=("transformer",)) is None
    assert lacking(chosen, INDEX_OF_FLUX) == "transformer"


@pytest.mark.parametrize("gone", [TEXT, *SHARDS, "scheduler/scheduler_config.json"])
def test_a_part_without_one_of_its_files_is_not_whole(gone: str) -> None:
    left = [path for path in REPOSITORY if path != gone]
    assert lacking(left, INDEX_OF_FLUX) == gone.partition("/")[0]


def test_fp16_copies_are_taken_where_there_is_nothing_else() -> None:
    only = "text_encoder/model.fp16.safetensors"
    paths = [*(path for path in REPOSITORY if path != TEXT), only]
    assert only in needed(paths, INDEX_OF_FLUX)
    assert variant(paths, INDEX_OF_FLUX) == "fp16"
    assert variant(paths, INDEX_OF_FLUX, without=("text_encoder",)) is None
    assert variant([*paths, TEXT], INDEX_OF_FLUX) is None
    assert lacking(paths, INDEX_OF_FLUX) is None


@pytest.mark.parametrize(
    "shards",
    [
        ["diffusion_pytorch_model.fp16-00001-of-00001.safetensors"],
        ["diffusion_pytorch_model-00001-of-00001.fp16.safetensors"],
    ],
)
def test_shards_of_fp16_copies_are_known_in_both_spellings(shards: list[str]) -> None:
    names = [*shards, "diffusion_pytorch_model.safetensors.index.fp16.json", "config.json"]
    paths = [*SMALL, TEXT, *(f"transformer/{name}" for name in names)]
    assert set(paths) == set(needed(paths, INDEX_OF_FLUX))
    assert lacking(paths, INDEX_OF_FLUX) is None


def test_of_one_file_and_shards_that_is_taken_which_the_library_opens() -> None:
    whole = "transformer/diffusion_pytorch_model.safetensors"
    cut = ["text_encoder/model-00001-of-00001.safetensors", "text_encoder/model.safetensors.index.json"]
    chosen = needed([*REPOSITORY, whole, *cut], INDEX_OF_FLUX)
    assert sorted(chosen) == sorted(REPOSITORY)


def test_shards_without_their_list_are_no_weights() -> None:
    paths = [path for path in REPOSITORY if not path.endswith(".index.json")]
    assert lacking(paths, INDEX_OF_FLUX) == "transformer"
    assert not set(SHARDS) & set(needed(paths, INDEX_OF_FLUX))


@pytest.mark.parametrize("part", [["diffusers"], "words", 7, ["a", 1], None, {}])
def test_what_is_no_part_is_none(part: Any) -> None:
    assert parts_of({"x": part}) == {}
    assert needed(["x/config.json"], {"x": part}) == [INDEX]
