"""Which files of a repository a pipeline needs."""

from typing import Any

import pytest

from imagegen.catalog.pipeline_files import INDEX, Dtype, lacking, needed, parts_of, variant

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
def test_a_part_without_one_of_its_files_is_incomplete(gone: str) -> None:
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


def test_one_file_or_shards_are_chosen_like_the_library_opens_them() -> None:
    whole = "transformer/diffusion_pytorch_model.safetensors"
    cut = ["text_encoder/model-00001-of-00001.safetensors", "text_encoder/model.safetensors.index.json"]
    chosen = needed([*REPOSITORY, whole, *cut], INDEX_OF_FLUX)
    assert sorted(chosen) == sorted(REPOSITORY)


def test_shards_without_their_list_are_no_weights() -> None:
    paths = [path for path in REPOSITORY if not path.endswith(".index.json")]
    assert lacking(paths, INDEX_OF_FLUX) == "transformer"
    assert not set(SHARDS) & set(needed(paths, INDEX_OF_FLUX))


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        ("TokenizersBackend", ["tokenizer.json", "tokenizer_config.json"]),
        ("SentencePieceBackend", ["spiece.model", "tokenizer_config.json"]),
        ("MistralCommonBackend", ["tekken.json", "tokenizer_config.json"]),
        ("Qwen2VLImageProcessorPil", ["preprocessor_config.json"]),
        ("CLIPImageProcessor", ["preprocessor_config.json", "config.json"]),
        ("PixtralProcessor", ["processor_config.json", "chat_template.jinja"]),
        ("CLIPFeatureExtractor", ["preprocessor_config.json"]),
        ("NameOfNextYear", ["tokenizer.json", "._config.json"]),
        ("Qwen2Tokenizer", ["vocab.json", "pytorch_model.bin"]),
    ],
)
def test_a_part_whose_folder_needs_no_weights_is_complete_without(cls: str, names: list[str]) -> None:
    index = {"x": ["transformers", cls]}
    paths = [f"x/{name}" for name in names]
    assert lacking(paths, index) is None
    assert set(needed(paths, index)) == {
        INDEX,
        *(path for path in paths if not path.endswith((".bin", "._config.json"))),
    }


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        ("NameOfNextYear", ["config.json"]),
        ("NameOfNextYear", ["generation_config.json", "tokenizer.json"]),
        ("NameOfNextYear", ["tokenizer.json", "pytorch_model.bin"]),
        ("CLIPTextModel", ["config.json", "model.safetensors.index.json"]),
        ("CLIPTextModel", []),
        ("TokenizersBackend", []),
    ],
)
def test_a_part_with_the_folder_of_a_model_needs_weights(cls: str, names: list[str]) -> None:
    assert lacking([f"x/{name}" for name in names], {"x": ["transformers", cls]}) == "x"


#: Of a part with every copy, the weights that an entry of this dtype reads, and of one with fp16 beside full precision.
COPIES = [
    ("auto", "model.safetensors", "model.safetensors"),
    ("float32", "model.safetensors", "model.safetensors"),
    ("float16", "model.fp16.safetensors", "model.fp16.safetensors"),
    ("bfloat16", "model.bf16.safetensors", "model.safetensors"),
]


@pytest.mark.parametrize(("dtype", "of_all", "of_two"), COPIES)
def test_the_copy_in_the_entrys_dtype_is_taken(dtype: Dtype, of_all: str, of_two: str) -> None:
    index = {"x": ["transformers", "CLIPTextModel"]}
    names = ["config.json", "model.safetensors", "model.fp16.safetensors"]
    for more, weights in (["model.bf16.safetensors"], of_all), ([], of_two):
        paths = [f"x/{name}" for name in [*names, *more]]
        assert needed(paths, index, dtype=dtype) == [INDEX, "x/config.json", f"x/{weights}"]
        told = variant(paths, index, dtype=dtype)
        assert f"{'.' + told if told else ''}.safetensors" == weights.removeprefix("model")
        assert lacking(needed(paths, index, dtype=dtype), index, dtype=dtype) is None


@pytest.mark.parametrize("dtype", [dtype for dtype, *_ in COPIES])
def test_where_one_copy_is_all_there_is_every_dtype_takes_it(dtype: Dtype) -> None:
    index = {"x": ["transformers", "CLIPTextModel"], "y": ["diffusers", "AutoencoderKL"]}
    for copy in ("fp16", "bf16"):
        paths = [
            "x/config.json",
            f"x/model.{copy}.safetensors",
            "y/config.json",
            "y/diffusion_pytorch_model.safetensors",
        ]
        assert set(needed(paths, index, dtype=dtype)) == {INDEX, *paths}
        assert variant(paths, index, dtype=dtype) == copy
        assert lacking(paths, index, dtype=dtype) is None


def test_shards_of_a_copy_that_are_not_all_there_are_not_taken() -> None:
    cut = ["transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors"]
    cut += ["transformer/diffusion_pytorch_model.safetensors.index.fp16.json"]
    assert sorted(needed([*REPOSITORY, *cut], INDEX_OF_FLUX, dtype="float16")) == sorted(REPOSITORY)


@pytest.mark.parametrize("part", [["diffusers"], "words", 7, ["a", 1], None, {}])
def test_an_entry_that_is_not_a_part_is_left_out(part: Any) -> None:
    assert parts_of({"x": part}) == {}
    assert needed(["x/config.json"], {"x": part}) == [INDEX]
