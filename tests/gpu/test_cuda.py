"""What only a CUDA device can show: `pytest -m gpu` on a machine that has one."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import parse_catalog
from imagegen.core.errors import FailureCode
from imagegen.gpu.child import ChildEngine
from imagegen.gpu.engine import Engine, LocalEngine
from imagegen.gpu.memory import give_back
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Loaded, Measured, Unload, Unloaded
from imagegen.loaders import SPECS
from tests.conftest import load_command, request_for
from tests.pipelines import build

pytestmark = pytest.mark.gpu

CUDA = EngineOptions(device="cuda")


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(CUDA)
    yield made
    made.close()
    give_back("cuda")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("flux-dev", "sd3.5", "sdxl"):
        build(kind, folder / kind)
    return folder


def catalog(**fields: Any) -> Catalog:
    model = {"name": "A", "type": "flux", "local_path": "flux-dev", "base_size": 64, "torch_dtype": "float32"}
    return parse_catalog(json.dumps({"models": {"a": model | fields}}), SPECS)


def draw(engine: Engine, model: str = "a", **changes: Any) -> bytes:
    command = Generate(model=model, request=request_for(**changes))
    outcome = engine.generate(command, threading.Event(), lambda step, total: None)
    assert isinstance(outcome, Generated), outcome
    return outcome.images[0].rgb


def allocated(engine: Engine) -> int:
    answer = engine.measure()
    assert isinstance(answer, Measured)
    return answer.memory.allocated


def test_unloading_brings_device_memory_back_to_where_it_was(engine: LocalEngine, shipped: Catalog) -> None:
    before = allocated(engine)
    for _ in range(3):
        loaded = engine.load(load_command(shipped, "tiny"))
        assert isinstance(loaded, Loaded)
        draw(engine, "tiny", width=128, height=128)
        assert allocated(engine) - before >= loaded.weight_bytes
        assert isinstance(engine.unload(Unload(model="tiny")), Unloaded)
        # cuBLAS keeps a workspace of its own after the first call.
        assert allocated(engine) - before < 64 * 2**20


def test_the_same_seed_gives_the_same_pixels_in_a_thread_and_in_a_process(shipped: Catalog) -> None:
    pictures = []
    for make in (LocalEngine, ChildEngine):
        engine: Engine = make(CUDA)
        assert isinstance(engine.load(load_command(shipped, "tiny")), Loaded)
        pictures += [draw(engine, "tiny", seed=3), draw(engine, "tiny", seed=3)]
        engine.close()
    assert len(set(pictures)) == 1


@pytest.mark.parametrize("kind", ["flux-dev", "sd3.5", "sdxl"])
def test_the_device_draws_what_the_cpu_draws(engine: LocalEngine, models: Path, kind: str) -> None:
    word = {"sd3.5": "StableDiffusion3Pipeline", "sdxl": "StableDiffusionXLPipeline"}.get(kind, "FluxPipeline")
    family = "flux" if kind == "flux-dev" else "stable_diffusion"
    chosen = catalog(local_path=kind, type=family, pipeline_class=word)
    on_cpu = LocalEngine(EngineOptions(device="cpu"))
    for side in (engine, on_cpu):
        assert isinstance(side.load(load_command(chosen, "a", models)), Loaded)
    pairs = zip(draw(engine), draw(on_cpu), strict=True)
    assert sum(abs(a - b) for a, b in pairs) / (64 * 64 * 3) < 4


@pytest.mark.parametrize("offload", ["model", "sequential", "group"])
def test_offloading_changes_the_memory_and_not_the_picture(engine: LocalEngine, models: Path, offload: str) -> None:
    assert isinstance(engine.load(load_command(catalog(), "a", models)), Loaded)
    plain = draw(engine)
    engine.unload(Unload(model="a"))
    assert isinstance(engine.load(load_command(catalog(cpu_offload=offload), "a", models)), Loaded)
    offloaded = draw(engine)
    assert max(abs(a - b) for a, b in zip(plain, offloaded, strict=True)) <= 2
    assert draw(engine) == offloaded


def test_a_full_device_fails_one_task_with_the_numbers_and_the_next_one_runs(
    engine: LocalEngine, shipped: Catalog
) -> None:
    assert isinstance(engine.load(load_command(shipped, "tiny")), Loaded)
    expected = draw(engine, "tiny")
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(int(free * 0.85), dtype=torch.uint8, device="cuda")
    command = Generate(model="tiny", request=request_for(width=8192, height=8192, steps=1))
    failed = engine.generate(command, threading.Event(), lambda step, total: None)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.OUT_OF_MEMORY
    assert "GiB" in failed.message
    del hog
    give_back("cuda")
    assert draw(engine, "tiny") == expected
