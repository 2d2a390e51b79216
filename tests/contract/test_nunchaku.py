"""4-bit transformers, with a fake of their engine: the chosen file, the messages, and the loaded pipeline."""

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from imagegen.catalog.loading import parse_catalog
from imagegen.core.errors import FailureCode
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Failed, Loaded, Unload, Unloaded
from imagegen.loaders import SPECS, nunchaku
from tests.conftest import load_command
from tests.contract.families import LIBRARY_WARNINGS, Shelf, catalog_of, draw, provenance, shelf_of, small
from tests.nunchaku_files import write_t5, write_transformer
from tests.pretend_cuda import Card, pretended

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIBRARY_WARNINGS]

TESTS = Path(__file__).parents[1]
INSTALL = "install the wheel for your torch and Python from the releases of nunchaku-ai/nunchaku on GitHub"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """Base models, and files in 4 bits that differ: fp4 is made of schnell."""
    kinds = ("flux-dev", "flux-schnell", "flux-kontext", "sdxl")
    with shelf_of(tmp_path_factory.mktemp("models"), kinds) as shelf:
        home = shelf.folder / "nunchaku"
        write_transformer(shelf.model("flux-dev"), home / "svdq-int4_r32-flux.1-dev.safetensors")
        write_transformer(shelf.model("flux-schnell"), home / "svdq-fp4_r32-flux.1-dev.safetensors")
        write_transformer(shelf.model("flux-kontext"), home / "svdq-int4_r32-flux.1-kontext-dev.safetensors")
        write_t5(shelf.model("flux-dev"), home / "awq-int4-flux.1-t5xxl.safetensors")
        yield shelf


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(EngineOptions(device="cpu"))
    yield made
    made.close()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """install("nunchaku_engine") puts a folder of this test suite in front of the path."""

    def install(folder: str) -> ModuleType:
        monkeypatch.syspath_prepend(TESTS / folder)
        return importlib.import_module("nunchaku")

    yield install
    for name in [name for name in sys.modules if name.partition(".")[0] == "nunchaku"]:
        del sys.modules[name]


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """on_gpu(8, 9) is a machine with this GPU for the choice of a file; the CPU runs the model."""
    choose = nunchaku.choose_precision

    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        monkeypatch.setattr(nunchaku, "choose_precision", lambda device: choose("cuda"))

    return pretend


def load(engine: LocalEngine, shelf: Shelf, **changes: Any) -> Loaded | Failed:
    fields = {
        "type": "flux_nunchaku",
        "local_path": "nunchaku",
        "weight_name": "svdq-{precision}_r32-flux.1-dev.safetensors",
        "base_model": "flux-dev",
    }
    catalog = catalog_of(four_bits=small(**fields | changes))
    return engine.load(load_command(catalog, "four_bits", shelf.folder))


def whole(engine: LocalEngine, shelf: Shelf, kind: str = "flux-dev", task: str = "text2image") -> Any:
    """The picture of the model that the files were made from."""
    assert isinstance(engine.load(load_command(catalog_of(whole=shelf.entry(kind)), "whole", shelf.folder)), Loaded)
    return draw(engine, "whole", task)


def same(one: Any, other: Any) -> bool:
    """Equal except for the last bit: the alignment of a weight in memory changes its products."""
    return bool(np.abs(one.astype(int) - other.astype(int)).max() <= 1)


def test_cached_memory_of_torch_is_freed_for_the_engine(
    engine: LocalEngine, shelf: Shelf, installed: Any, on_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = installed("nunchaku_engine")
    on_gpu(8, 9)
    opened_before: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: opened_before.append(len(module.calls)))
    assert isinstance(load(engine, shelf), Loaded)
    assert opened_before == [0]


@pytest.mark.parametrize("word", ["flux_nunchaku", "nunchaku"])
def test_it_draws_with_the_files_transformer(
    engine: LocalEngine, shelf: Shelf, installed: Any, on_gpu: Any, word: str
) -> None:
    module = installed("nunchaku_engine")
    on_gpu(8, 9)
    assert isinstance(load(engine, shelf, type=word), Loaded)
    assert same(draw(engine, "four_bits"), whole(engine, shelf))
    for task in ("image2image", "inpaint"):
        assert same(draw(engine, "four_bits", task), draw(engine, "whole", task))
    (call,) = module.calls
    assert call["device"] == "cpu"
    assert call["offload"] is False
    assert call["torch_dtype"] is torch.float32
    made_by = provenance(engine, "four_bits")
    assert (made_by.loader, made_by.quantization, len(made_by.weights)) == (word, "int4", 2)
    assert "nunchaku" in made_by.versions


@pytest.mark.parametrize(
    ("capability", "file"),
    [
        ((7, 5), "svdq-int4_r32-flux.1-dev.safetensors"),
        ((8, 0), "svdq-int4_r32-flux.1-dev.safetensors"),
        ((8, 6), "svdq-int4_r32-flux.1-dev.safetensors"),
        ((8, 9), "svdq-int4_r32-flux.1-dev.safetensors"),
        ((12, 0), "svdq-fp4_r32-flux.1-dev.safetensors"),
        ((12, 1), "svdq-fp4_r32-flux.1-dev.safetensors"),
    ],
)
def test_the_gpu_decides_which_file(
    engine: LocalEngine, shelf: Shelf, installed: Any, on_gpu: Any, capability: tuple[int, int], file: str
) -> None:
    module = installed("nunchaku_engine")
    on_gpu(*capability)
    assert isinstance(load(engine, shelf), Loaded)
    assert [Path(call["path"]).name for call in module.calls] == [file]


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (9, 0), (10, 0)])
def test_a_gpu_without_kernels_is_refused_with_alternatives(
    engine: LocalEngine, shelf: Shelf, installed: Any, on_gpu: Any, capability: tuple[int, int]
) -> None:
    installed("nunchaku_engine")
    on_gpu(*capability)
    failed = load(engine, shelf)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.UNSUPPORTED_DEVICE
    assert failed.message == (
        f"Nunchaku has no kernels for this GPU (compute capability {capability[0]}.{capability[1]}); "
        "it runs on Turing, Ampere, Ada and Blackwell. Use the GGUF or the plain model instead."
    )


def test_a_cpu_is_reported(engine: LocalEngine, shelf: Shelf, installed: Any) -> None:
    installed("nunchaku_engine")
    failed = load(engine, shelf)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.UNSUPPORTED_DEVICE
    assert failed.message == "Nunchaku models need an NVIDIA GPU; this service runs on a CPU."


def test_without_the_engine_the_error_names_what_to_install(
    engine: LocalEngine, shelf: Shelf, on_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nunchaku", None)  # not there, whatever is installed
    on_gpu(8, 9)
    failed = load(engine, shelf)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.ENGINE_MISSING
    assert failed.message == f"The Nunchaku engine is not installed: {INSTALL}."


def test_the_other_package_of_that_name_is_recognised(
    engine: LocalEngine, shelf: Shelf, installed: Any, on_gpu: Any
) -> None:
    installed("nunchaku_impostor")
    on_gpu(8, 9)
    failed = load(engine, shelf)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.ENGINE_MISSING
    assert failed.message == (
        "The installed package 'nunchaku' is not the engine, but an unrelated package of that name on PyPI: "
        f"run `pip uninstall nunchaku`, then {INSTALL}."
    )


def test_kontext_edits(engine: LocalEngine, shelf: Shelf, installed: Any, on_gpu: Any) -> None:
    installed("nunchaku_engine")
    on_gpu(8, 6)
    fields = {
        "pipeline_class": "FluxKontextPipeline",
        "weight_name": "svdq-{precision}_r32-flux.1-kontext-dev.safetensors",
        "base_model": "flux-kontext",
    }
    assert isinstance(load(engine, shelf, **fields), Loaded)
    edited = draw(engine, "four_bits", "image2image")
    assert same(edited, whole(engine, shelf, "flux-kontext", "image2image"))


@pytest.mark.parametrize("local_path", ["nunchaku", "nunchaku/svdq-{precision}_r32-flux.1-dev.safetensors"])
def test_a_quantised_t5_takes_the_place_of_the_bases(
    engine: LocalEngine, shelf: Shelf, installed: Any, on_gpu: Any, tmp_path: Path, local_path: str
) -> None:
    module = installed("nunchaku_engine")
    on_gpu(8, 9)
    reference = whole(engine, shelf)
    base = shutil.copytree(shelf.model("flux-dev"), tmp_path / "base")
    (base / "text_encoder_2" / "model.safetensors").unlink()
    (base / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    entry = {"local_path": local_path, "base_model": str(base), "t5_weight_name": "awq-int4-flux.1-t5xxl.safetensors"}
    assert isinstance(load(engine, shelf, **entry), Loaded)
    assert [call["class"] for call in module.calls] == ["NunchakuFluxTransformer2dModel", "NunchakuT5EncoderModel"]
    assert {call["device"] for call in module.calls} == {"cpu"}
    assert same(draw(engine, "four_bits"), reference)


def test_a_file_that_is_not_there_is_missing(engine: LocalEngine, shelf: Shelf, installed: Any, on_gpu: Any) -> None:
    installed("nunchaku_engine")
    on_gpu(12, 0)
    failed = load(engine, shelf, weight_name="svdq-{precision}_r32-flux.1-kontext-dev.safetensors")
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WEIGHTS_MISSING
    assert str(shelf.folder) not in failed.message


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("part", ["transformer", "t5"])
def test_a_file_that_was_cut_off_is_named(
    engine: LocalEngine, shelf: Shelf, installed: Any, on_gpu: Any, part: str, share: float
) -> None:
    installed("nunchaku_engine")
    on_gpu(8, 9)
    write = write_transformer if part == "transformer" else write_t5
    file = write(shelf.model("flux-dev"), shelf.folder / "nunchaku" / "cut.safetensors")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    failed = load(engine, shelf, **{"weight_name" if part == "transformer" else "t5_weight_name": "cut.safetensors"})
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WEIGHTS_CORRUPT
    assert "cut.safetensors" in failed.message
    assert str(shelf.folder) not in failed.message


def test_a_file_of_another_kind_is_refused(engine: LocalEngine, shelf: Shelf, installed: Any, on_gpu: Any) -> None:
    installed("nunchaku_engine")
    on_gpu(8, 9)
    plain = shelf.model("sdxl") / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(plain, shelf.folder / "nunchaku" / "plain.safetensors")
    failed = load(engine, shelf, weight_name="plain.safetensors")
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WEIGHTS_CORRUPT
    assert "plain.safetensors" in failed.message


# -- memory that torch does not know of --------------------------------------------------------------------------------


def test_the_stand_in_holds_its_weights_as_the_engine_does(shelf: Shelf, installed: Any) -> None:
    module = installed("nunchaku_engine")
    file = shelf.folder / "nunchaku" / "svdq-int4_r32-flux.1-dev.safetensors"
    with pretended():
        transformer = module.NunchakuFluxTransformer2dModel.from_pretrained(str(file))
        seen = dict(transformer.named_parameters())
        assert {tensor.device.type for tensor in seen.values()} == {"cuda"}
        assert not [name for name in seen if "transformer_blocks" in name]
        assert module._C.utils.used > 0
        del transformer
        assert (module._C.utils.used, module._C.utils.kept > 0) == (0, True)


@pytest.fixture
def memory(installed: Any, on_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The device memory of the engine; the loader measures it as on a GPU."""
    held = installed("nunchaku_engine")._C.utils
    on_gpu(8, 9)
    monkeypatch.setattr(nunchaku, "outside_torch", lambda device: held.used + held.kept)
    return held


def test_the_blocks_count_as_weights(engine: LocalEngine, shelf: Shelf, memory: Any) -> None:
    loaded = load(engine, shelf)
    assert isinstance(loaded, Loaded)
    plain = engine.load(load_command(catalog_of(whole=shelf.entry("flux-dev")), "whole", shelf.folder))
    assert isinstance(plain, Loaded)
    assert memory.used > 0
    assert loaded.weight_bytes == loaded.moved_bytes == plain.weight_bytes
    assert loaded.memory.outside == memory.used  # else it would look like another process's


@pytest.mark.parametrize("keep_warm", [False, True])
def test_an_unload_frees_all_memory_of_the_engine(
    engine: LocalEngine, shelf: Shelf, memory: Any, keep_warm: bool
) -> None:
    load(engine, shelf)
    before = draw(engine, "four_bits")
    answer = engine.unload(Unload(model="four_bits", keep_warm=keep_warm))
    assert isinstance(answer, Unloaded)
    assert not answer.warm
    assert (memory.used, memory.kept) == (0, 0)
    load(engine, shelf)
    assert same(draw(engine, "four_bits"), before)


def test_the_memory_of_a_failed_load_is_freed_before_the_next(engine: LocalEngine, shelf: Shelf, memory: Any) -> None:
    file = write_t5(shelf.model("flux-dev"), shelf.folder / "nunchaku" / "cut.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert isinstance(load(engine, shelf, t5_weight_name="cut.safetensors"), Failed)
    assert memory.kept > 0
    assert isinstance(load(engine, shelf), Loaded)
    assert memory.kept == 0


def test_when_the_device_is_full_the_engine_frees_its_caches(engine: LocalEngine, shelf: Shelf, memory: Any) -> None:
    load(engine, shelf)
    memory.kept = 1000
    engine._models["four_bits"].model.trim()
    assert memory.kept == 0


def test_memory_outside_torch_is_the_used_memory_minus_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 12)
    assert nunchaku.outside_torch("cuda") == 18
    assert nunchaku.outside_torch("cpu") == 0


@pytest.mark.parametrize("offload", ["none", "model", "encoders"])
def test_on_a_card_it_loads_beside_a_warm_tier_and_leaves_nothing(shelf: Shelf, installed: Any, offload: str) -> None:
    held = installed("nunchaku_engine")._C.utils
    entry = small(
        type="nunchaku",
        local_path="nunchaku",
        weight_name="svdq-{precision}_r32-flux.1-dev.safetensors",
        base_model="flux-dev",
        torch_dtype="float32",
        cpu_offload=offload,
    )
    text = json.dumps({"global": {"host_cache_gb": 100}, "models": {"four_bits": entry}})
    with pretended(Card(capability=(8, 9))) as cuda:
        engine = LocalEngine(EngineOptions(device="cuda"))
        loaded = engine.load(load_command(parse_catalog(text, SPECS), "four_bits", shelf.folder))
        assert isinstance(loaded, Loaded), loaded
        first = draw(engine, "four_bits")
        assert same(draw(engine, "four_bits"), first)
        answer = engine.unload(Unload(model="four_bits", keep_warm=True))
        assert isinstance(answer, Unloaded)
        assert not answer.warm
        assert (cuda.device.bytes, cuda.pinned.bytes, held.used, held.kept) == (0, 0, 0, 0)
        engine.close()
