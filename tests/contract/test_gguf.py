"""Quantised transformers: how close they are to the original, and the messages for files that do not fit."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from imagegen.core.errors import FailureCode
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Failed, Loaded
from tests.conftest import load_command
from tests.contract.families import LIBRARY_WARNINGS, Shelf, catalog_of, draw, provenance, shelf_of, small, write_lora
from tests.gguf_files import Quantisation, write_gguf, write_tensors

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIBRARY_WARNINGS]

SEEDS = (1, 2, 3)

#: Decibels to the pictures of the whole model, at least. Pictures of 8 bits differ by as little as 55 dB or not at all.
NEARNESS: Mapping[Quantisation, float] = {
    "F16": 60,
    "BF16": 55,
    "Q8_0": 50,
    "Q5_0": 38,
    "Q4_K": 36,
    "Q4_0": 32,
}

#: Pipelines beside FLUX whose transformer may come from such a file.
OTHERS = ("flux2-klein", "sd3.5", "chroma", "qwen-image", "z-image", "lumina2", "aura-flow")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf_of(tmp_path_factory.mktemp("models"), ("flux-dev", "flux-wide", *OTHERS)) as shelf:
        yield shelf


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(EngineOptions(device="cpu"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(engine: LocalEngine, shelf: Shelf) -> list[Any]:
    """The picture of the unquantised model."""
    catalog = catalog_of(whole=shelf.entry("flux-wide"))
    assert isinstance(engine.load(load_command(catalog, "whole", shelf.folder)), Loaded)
    return [draw(engine, "whole", seed=seed, steps=4) for seed in SEEDS]


def load(engine: LocalEngine, shelf: Shelf, **fields: Any) -> Loaded | Failed:
    """Load an entry with the name `quantised`."""
    catalog = catalog_of(quantised=small(type="gguf", **fields))
    return engine.load(load_command(catalog, "quantised", shelf.folder))


def decibels(one: Any, other: Any) -> float:
    error = float(((one.astype(float) - other.astype(float)) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.mark.parametrize("quantisation", get_args(Quantisation))
def test_a_quantised_transformer_draws_nearly_the_same_as_the_original(
    engine: LocalEngine, shelf: Shelf, whole: list[Any], quantisation: Quantisation
) -> None:
    base = shelf.model("flux-wide")
    write_gguf(base, shelf.folder / f"{quantisation}.gguf", quantisation)
    assert isinstance(load(engine, shelf, local_path=f"{quantisation}.gguf", base_model="flux-wide"), Loaded)
    drawn = [draw(engine, "quantised", seed=seed, steps=4) for seed in SEEDS]
    assert decibels(np.stack(drawn), np.stack(whole)) >= NEARNESS[quantisation]
    for task in ("image2image", "inpaint"):
        assert draw(engine, "quantised", task).std() > 5


def test_a_receipt_has_the_quantisation_and_the_files(engine: LocalEngine, shelf: Shelf) -> None:
    told = []
    for quantisation in ("Q4_0", "Q8_0"):
        write_gguf(shelf.model("flux-dev"), shelf.folder / "same.gguf", quantisation)
        assert isinstance(load(engine, shelf, local_path="same.gguf", base_model="flux-dev"), Loaded)
        told.append(provenance(engine, "quantised"))
    assert [it.quantization for it in told] == ["Q4_0", "Q8_0"]
    assert told[0].weights[0] != told[1].weights[0]
    assert told[0].weights[1] == told[1].weights[1]
    assert "gguf" in told[0].versions


def test_it_stays_quantised_in_memory(engine: LocalEngine, shelf: Shelf) -> None:
    base = shelf.model("flux-wide")
    sizes = {}
    for quantisation in ("F16", "Q4_0"):
        write_gguf(base, shelf.folder / f"{quantisation}.gguf", quantisation)
        loaded = load(engine, shelf, local_path=f"{quantisation}.gguf", base_model="flux-wide")
        assert isinstance(loaded, Loaded)
        sizes[quantisation] = loaded.weight_bytes
    transformer = (shelf.folder / "F16.gguf").stat().st_size - (shelf.folder / "Q4_0.gguf").stat().st_size
    assert sizes["F16"] - sizes["Q4_0"] >= 0.9 * transformer


def test_a_lora_counts_for_its_request_only(engine: LocalEngine, shelf: Shelf, tmp_path: Path) -> None:
    write_gguf(shelf.model("flux-dev"), shelf.folder / "dev.gguf", "Q4_0")
    assert isinstance(load(engine, shelf, local_path="dev.gguf", base_model="flux-dev"), Loaded)
    file = write_lora(shelf.model("flux-dev"), tmp_path / "style.safetensors")
    plain = draw(engine, "quantised")
    assert not np.array_equal(draw(engine, "quantised", lora=file), plain)
    assert np.array_equal(draw(engine, "quantised"), plain)


def test_the_base_model_needs_no_transformer(engine: LocalEngine, shelf: Shelf, tmp_path: Path) -> None:
    write_gguf(shelf.model("flux-dev"), shelf.folder / "dev.gguf", "Q8_0")
    assert isinstance(load(engine, shelf, local_path="dev.gguf", base_model="flux-dev"), Loaded)
    before = draw(engine, "quantised")
    base = shutil.copytree(shelf.model("flux-dev"), tmp_path / "base")
    (base / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert isinstance(load(engine, shelf, local_path="dev.gguf", base_model=str(base)), Loaded)
    assert np.array_equal(draw(engine, "quantised"), before)


def test_the_file_may_be_named_in_its_folder(engine: LocalEngine, shelf: Shelf) -> None:
    (shelf.folder / "files").mkdir()
    write_gguf(shelf.model("flux-dev"), shelf.folder / "files" / "a-Q4_0.gguf", "Q4_0")
    entry = {"local_path": "files", "gguf_file": "a-Q4_0.gguf", "base_model": "flux-dev"}
    assert isinstance(load(engine, shelf, **entry), Loaded)
    failed = load(engine, shelf, **entry | {"gguf_file": "b-Q4_0.gguf"})
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WEIGHTS_MISSING


@pytest.mark.parametrize("kind", OTHERS)
def test_other_transformers_come_from_such_files_too(engine: LocalEngine, shelf: Shelf, kind: str) -> None:
    write_gguf(shelf.model(kind), shelf.folder / f"{kind}.gguf", "Q8_0")
    name = shelf.entry(kind)["pipeline_class"]
    loaded = load(engine, shelf, local_path=f"{kind}.gguf", base_model=kind, pipeline_class=name)
    assert isinstance(loaded, Loaded)
    assert draw(engine, "quantised").std() > 5


# -- files that do not fit -----------------------------------------------------------------------------------------


def refused(engine: LocalEngine, shelf: Shelf, **fields: Any) -> Failed:
    """The answer to the load; the loaded model still works."""
    before = draw(engine, "whole")
    failed = load(engine, shelf, **fields)
    assert isinstance(failed, Failed)
    assert str(shelf.folder) not in failed.message
    assert np.array_equal(draw(engine, "whole"), before)
    return failed


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_named(engine: LocalEngine, shelf: Shelf, share: float) -> None:
    file = write_gguf(shelf.model("flux-dev"), shelf.folder / "cut.gguf", "Q8_0")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    failed = refused(engine, shelf, local_path="cut.gguf", base_model="flux-dev")
    assert failed.code is FailureCode.WEIGHTS_CORRUPT
    assert "cut.gguf" in failed.message


def write_typed(file: Path, kind: GGMLQuantizationType) -> None:
    """A complete GGUF file whose only tensor has this type."""
    values, size = GGML_QUANT_SIZES[kind]
    writer = GGUFWriter(file, arch="flux")
    writer.add_tensor("x.weight", np.zeros((2, 256 // values * size), dtype=np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("IQ1_S", "Q2_K"),
        ("IQ1_M", "Q2_K"),
        ("IQ2_XXS", "Q2_K"),
        ("IQ2_S", "Q2_K"),
        ("IQ3_XXS", "Q3_K"),
        ("IQ3_S", "Q3_K"),
        ("TQ1_0", "Q2_K"),
        ("TQ2_0", "Q2_K"),
        ("MXFP4", "Q4_K"),
        ("Q8_K", "Q8_0"),
    ],
)
def test_a_type_that_the_library_does_not_read_is_named_with_the_one_to_take(
    engine: LocalEngine, shelf: Shelf, name: str, instead: str
) -> None:
    write_typed(shelf.folder / "typed.gguf", GGMLQuantizationType[name])
    failed = refused(engine, shelf, local_path="typed.gguf", base_model="flux-dev")
    assert failed.code is FailureCode.WEIGHTS_REFUSED
    assert f"typed.gguf has weights of type {name}," in failed.message
    assert f"Use the file with {instead} in its name" in failed.message
    assert "cut off" not in failed.message


@pytest.mark.usefixtures("whole")
def test_a_type_that_is_newer_than_the_library_is_refused(engine: LocalEngine, shelf: Shelf) -> None:
    file = shelf.folder / "newer.gguf"
    write_typed(file, GGMLQuantizationType.I8)
    # Name, one dimension count of 4 bytes, two dimensions of 8, then the type.
    data = bytearray(file.read_bytes())
    place = data.index(b"x.weight") + len(b"x.weight") + 4 + 2 * 8
    data[place : place + 4] = (4000).to_bytes(4, "little")
    file.write_bytes(data)
    failed = refused(engine, shelf, local_path="newer.gguf", base_model="flux-dev")
    assert failed.code is FailureCode.WEIGHTS_REFUSED
    assert "of a type that gguf" in failed.message


@pytest.mark.usefixtures("whole")
def test_a_transformer_of_another_width_is_refused(engine: LocalEngine, shelf: Shelf) -> None:
    write_gguf(shelf.model("flux-dev"), shelf.folder / "dev.gguf", "Q8_0")
    failed = refused(engine, shelf, local_path="dev.gguf", base_model="flux-wide")
    assert failed.code is FailureCode.WEIGHTS_CORRUPT
    assert "dev.gguf" in failed.message


@pytest.mark.usefixtures("whole")
def test_a_transformer_of_another_model_is_refused(engine: LocalEngine, shelf: Shelf) -> None:
    write_gguf(shelf.model("sd3"), shelf.folder / "sd3.gguf", "Q8_0")
    failed = refused(engine, shelf, local_path="sd3.gguf", base_model="flux-wide")
    assert failed.code is FailureCode.WEIGHTS_CORRUPT
    assert "sd3.gguf" in failed.message


@pytest.mark.usefixtures("whole")
def test_a_base_without_a_transformer_is_refused(engine: LocalEngine, shelf: Shelf) -> None:
    write_gguf(shelf.model("flux-dev"), shelf.folder / "dev.gguf", "Q8_0")
    shelf.model("sdxl")
    failed = refused(engine, shelf, local_path="dev.gguf", base_model="sdxl")
    assert failed.code is FailureCode.WEIGHTS_REFUSED
    assert "FluxPipeline" in failed.message


# -- the original's key names --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("quantisation", ["Q4_0", "Q8_0"])
def test_a_file_in_the_originals_key_names_is_the_same_model(
    engine: LocalEngine, shelf: Shelf, tmp_path: Path, quantisation: Quantisation
) -> None:
    """A transformer at full width, which the library's conversion assumes, with one block of each kind."""
    shutil.copytree(shelf.model("flux-dev"), base := tmp_path / "base")
    tensors = full_transformer(base / "transformer")
    drawn = []
    for style in ("diffusers", "original"):
        file = write_tensors(tensors, tmp_path / f"{style}.gguf", quantisation, style)
        assert isinstance(load(engine, shelf, local_path=str(file), base_model=str(base)), Loaded)
        drawn.append(draw(engine, "quantised", steps=1))
        file.unlink()
    assert drawn[0].std() > 5
    assert np.array_equal(*drawn)


def full_transformer(folder: Path) -> dict[str, torch.Tensor]:
    """Widen the configuration of a transformer's folder to that of the real one; random weights for it."""
    from diffusers import FluxTransformer2DModel

    config = json.loads((folder / "config.json").read_bytes())
    config |= {"num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56]}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        empty = FluxTransformer2DModel.from_config(config)
    noise = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape, generator=noise, dtype=torch.bfloat16) * 0.02
        for name, tensor in empty.state_dict().items()
    }
