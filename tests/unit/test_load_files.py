"""The files that a load reads, for each family; the progress of a load counts their bytes."""

import json
from pathlib import Path
from typing import Any

import pytest

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.sources import Folders
from imagegen.models.facts import Facts
from imagegen.models.fitting import Fitting
from imagegen.testing import FAMILIES
from tests.conftest import fake_catalog

PARTS = {
    "transformer": "FluxTransformer2DModel",
    "unet": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "T5EncoderModel",
    "safety_checker": "StableDiffusionSafetyChecker",
    "tokenizer": "CLIPTokenizer",
}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Files of as many bytes as their names have letters."""
    for name, kinds in {"flux": {"transformer", "text_encoder_2"}, "sd": {"unet", "safety_checker"}}.items():
        index: dict[str, Any] = {"_class_name": "FluxPipeline" if name == "flux" else "StableDiffusionPipeline"}
        for part in (*kinds, "text_encoder", "tokenizer"):
            home = tmp_path / name / part
            home.mkdir(parents=True)
            index[part] = ["transformers" if "to" not in part else "diffusers", PARTS[part]]
            names = ["config.json", "pytorch_model.bin"]
            if part != "tokenizer":
                names += ["model.safetensors", "model.fp16.safetensors"]
            for file in names:
                (home / file).write_bytes(bytes(len(file)))
        (tmp_path / name / "model_index.json").write_text(json.dumps(index))
    for file in ("flux.gguf", "svdq-fp4.safetensors", "t5.safetensors", "weights"):
        (tmp_path / file).write_bytes(bytes(len(file)))
    return Folders(tmp_path, tmp_path)


def files(folders: Folders, fields: dict[str, Any]) -> list[str]:
    family = FAMILIES[fields["type"]]
    spec = family.spec.model_validate({"name": "x"} | fields)
    return sorted(str(file.relative_to(folders.models)) for file in family.loader.files(spec, folders))


def part(folder: str, *names: str, weights: bool = True) -> set[str]:
    files = ("config.json", "model.safetensors") if weights else ("config.json",)
    return {f"{folder}/{name}/{file}" for name in names for file in files}


FLUX = part("flux", "text_encoder") | part("flux", "tokenizer", weights=False) | {"flux/model_index.json"}
T5, TRANSFORMER = part("flux", "text_encoder_2"), part("flux", "transformer")


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"type": "flux", "local_path": "flux"}, FLUX | T5 | TRANSFORMER),
        (
            {"type": "stable_diffusion", "pipeline_class": "StableDiffusionPipeline", "local_path": "sd"},
            part("sd", "unet", "text_encoder")
            | part("sd", "tokenizer", "safety_checker", weights=False)
            | {"sd/model_index.json"},
        ),
        (
            {"type": "gguf", "local_path": "flux.gguf", "base_model": "flux"},
            FLUX | T5 | part("flux", "transformer", weights=False) | {"flux.gguf"},
        ),
        (
            {"type": "nunchaku", "local_path": "svdq-{precision}.safetensors", "base_model": "flux"},
            FLUX | T5 | part("flux", "transformer", weights=False) | {"svdq-fp4.safetensors"},
        ),
        (
            {
                "type": "nunchaku",
                "local_path": "svdq-fp4.safetensors",
                "t5_weight_name": "t5.safetensors",
                "base_model": "flux",
            },
            FLUX
            | part("flux", "transformer", "text_encoder_2", weights=False)
            | {"svdq-fp4.safetensors", "t5.safetensors"},
        ),
        ({"type": "fake", "local_path": "weights"}, {"weights"}),
        ({"type": "fake"}, set()),
    ],
)
def test_a_load_reads_these_files(folders: Folders, fields: dict[str, Any], wanted: set[str]) -> None:
    assert files(folders, fields) == sorted(wanted)


def catalog(**fields: Any) -> Catalog:
    return fake_catalog(a=fields)


def test_their_bytes_are_known_before_a_load(folders: Folders) -> None:
    assert Fitting(Facts(), folders, FAMILIES).file_bytes("a", catalog(local_path="weights")) == len("weights")


@pytest.mark.parametrize(
    "fields", [{"type": "fake"}, {"type": "flux", "local_path": "nowhere"}, {"type": "flux", "local_path": "sd"}]
)
def test_the_bytes_of_a_model_without_files_are_unknown(folders: Folders, fields: dict[str, Any]) -> None:
    assert Fitting(Facts(), folders, FAMILIES).file_bytes("a", catalog(**fields)) is None
