"""What a load takes of the device and of host memory, and what stays warm. On a pretended card."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from imagegen.catalog.loading import parse_catalog
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Generate, Generated, Load, Loaded, Unload, Unloaded
from imagegen.loaders import SPECS, diffusers_model
from tests.conftest import load_command, request_for
from tests.pipelines import build
from tests.pretend_cuda import Card, Cuda, pretended

FLUX = {"name": "A", "type": "flux", "local_path": "flux-dev", "base_size": 64, "torch_dtype": "float32"}

#: What one piece of pinned memory is larger than the tensors in it.
PADDING = 1.2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build("flux-dev", folder / "flux-dev")
    return folder


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    with pretended(Card()) as card:
        yield card


@pytest.fixture
def engine(cuda: Cuda) -> Iterator[LocalEngine]:
    made = LocalEngine(EngineOptions(device="cuda"))
    yield made
    made.close()


def command(models: Path, host_cache_gb: float = 0, model: str = "a", **fields: Any) -> Load:
    settings = {"host_cache_gb": host_cache_gb}
    catalog = {"global": settings, "models": {"a": FLUX | fields, "b": FLUX | fields}}
    return load_command(parse_catalog(json.dumps(catalog), SPECS), model, models)


def load(engine: LocalEngine, models: Path, host_cache_gb: float = 0, model: str = "a", **fields: Any) -> Loaded:
    answer = engine.load(command(models, host_cache_gb, model, **fields))
    assert isinstance(answer, Loaded), answer
    return answer


def unload(engine: LocalEngine, model: str = "a", **how: Any) -> Unloaded:
    answer = engine.unload(Unload(model=model, **how))
    assert isinstance(answer, Unloaded), answer
    return answer


def draw(engine: LocalEngine, model: str = "a") -> bytes:
    answer = engine.generate(Generate(model=model, request=request_for()), threading.Event(), lambda step, total: None)
    assert isinstance(answer, Generated), answer
    return answer.images[0].rgb


def part_bytes(models: Path, part: str) -> int:
    """In float32."""
    files = (models / "flux-dev" / part).glob("*.safetensors")
    return sum(4 * tensor.numel() for file in files for tensor in load_file(file).values())


# -- the warm tier -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host_cache_gb", [0, 1e-6, 100])
def test_a_load_pins_nothing_whatever_the_host_may_keep(
    engine: LocalEngine, cuda: Cuda, models: Path, host_cache_gb: float
) -> None:
    loaded = load(engine, models, host_cache_gb)
    assert (loaded.host_bytes, cuda.pinned.bytes) == (0, 0)
    assert loaded.device_bytes == loaded.weight_bytes


def test_a_model_is_pinned_when_it_is_to_stay_warm_and_its_copy_counts_when_it_is_back(
    engine: LocalEngine, cuda: Cuda, models: Path
) -> None:
    first = load(engine, models)
    expected = draw(engine)
    assert unload(engine, keep_warm=True).warm
    assert first.weight_bytes <= cuda.pinned.bytes < PADDING * first.weight_bytes
    for _ in range(2):
        back = load(engine, models)
        assert (back.warm, back.moved_bytes, back.host_bytes) == (True, first.weight_bytes, first.weight_bytes)
        assert draw(engine) == expected
        pinned = cuda.pinned.bytes
        assert unload(engine, keep_warm=True).warm
        assert cuda.pinned.bytes == pinned  # nothing was copied to leave
    unload(engine)
    assert cuda.pinned.bytes == 0


def test_a_model_does_not_stay_warm_where_the_machine_has_no_room(
    engine: LocalEngine, cuda: Cuda, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(engine, models)
    monkeypatch.setattr(diffusers_model, "room", lambda: loaded.weight_bytes - 1)
    assert not unload(engine, keep_warm=True).warm
    assert cuda.pinned.bytes == 0
    load(engine, models)
    monkeypatch.setattr(diffusers_model, "room", lambda: loaded.weight_bytes)
    assert unload(engine, keep_warm=True).warm


def test_another_share_of_the_host_makes_no_other_entry(engine: LocalEngine, models: Path) -> None:
    load(engine, models, 1)
    unload(engine, keep_warm=True)
    assert load(engine, models, 2).warm


def test_two_warm_models_share_their_copies_and_a_swap_moves_what_differs(
    engine: LocalEngine, cuda: Cuda, models: Path
) -> None:
    first, transformer = load(engine, models, model="a"), part_bytes(models, "transformer")
    expected = draw(engine, "a")
    for old, new in (("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")):
        assert unload(engine, old, keep_warm=True, switching=True).warm
        assert load(engine, models, model=new).moved_bytes == transformer
        assert draw(engine, new) == expected
    assert cuda.pinned.bytes < PADDING * (first.weight_bytes + transformer)
    unload(engine, "b")  # the warm one
    assert draw(engine, "a") == expected
    assert unload(engine, "a", keep_warm=True).warm
    assert cuda.device.bytes < part_bytes(models, "text_encoder_2")  # embeddings
    assert load(engine, models, model="a").moved_bytes == first.weight_bytes
    assert draw(engine, "a") == expected


# -- what the device must hold -----------------------------------------------------------------------------------------


def test_an_offloaded_model_needs_less_of_the_device_than_all_its_weights(engine: LocalEngine, models: Path) -> None:
    sizes = {part: part_bytes(models, part) for part in ("transformer", "text_encoder", "text_encoder_2", "vae")}
    loaded = load(engine, models, cpu_offload="model")
    largest = max(size for part, size in sizes.items() if part != "vae")
    assert loaded.device_bytes == largest + sizes["vae"] < sum(sizes.values()) <= loaded.weight_bytes
    assert loaded.host_bytes == loaded.weight_bytes


def test_a_model_in_eight_bits_needs_what_these_take(engine: LocalEngine, models: Path) -> None:
    full = load(engine, models, torch_dtype="bfloat16")
    cast = load(engine, models, model="b", torch_dtype="bfloat16", layerwise_casting="float8_e4m3fn")
    assert cast.device_bytes == cast.weight_bytes < 0.8 * full.device_bytes
