"""Tests that need a CUDA device: `pytest -m gpu`."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import parse_catalog
from imagegen.catalog.sources import Folders
from imagegen.core.errors import DoesNotFit, FailureCode
from imagegen.core.events import EventBus
from imagegen.core.task import Lora
from imagegen.gpu.engine import Engine, LocalEngine
from imagegen.gpu.executor import GpuExecutor
from imagegen.gpu.memory import give_back, measure
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Loaded, Measured, Unload, Unloaded
from imagegen.gpu.worker_engine import WorkerEngine
from imagegen.loaders import FAMILIES, SPECS
from imagegen.loaders.folder import header_bytes
from imagegen.loaders.host_copy import HostCopy, tensors_of
from imagegen.models.facts import Facts
from imagegen.models.fitting import Fitting
from imagegen.models.manager import DynamicModelManager
from tests.conftest import load_command, request_for
from tests.contract.test_lora import write_lora
from tests.pipelines import build

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


def catalog(host_cache_gb: float = 0, residual_limit_mb: int = 1024, **fields: Any) -> Catalog:
    """Two models with the same files."""
    model = {"name": "A", "type": "flux", "local_path": "flux-dev", "base_size": 64, "torch_dtype": "float32"} | fields
    settings = {"host_cache_gb": host_cache_gb, "residual_limit_mb": residual_limit_mb}
    return parse_catalog(json.dumps({"global": settings, "models": {"a": model, "b": model}}), SPECS)


def load(engine: Engine, models: Path, chosen: Catalog, model: str = "a") -> Loaded:
    answer = engine.load(load_command(chosen, model, models))
    assert isinstance(answer, Loaded), answer
    return answer


def draw(engine: Engine, model: str = "a", **changes: Any) -> bytes:
    command = Generate(model=model, request=request_for(**changes))
    outcome = engine.generate(command, threading.Event(), lambda *step: None)
    assert isinstance(outcome, Generated), outcome
    return outcome.images[0].rgb


def allocated(engine: Engine) -> int:
    answer = engine.measure()
    assert isinstance(answer, Measured)
    return answer.memory.allocated


def test_unloading_frees_all_device_memory_of_the_model(engine: LocalEngine, shipped: Catalog) -> None:
    left = [allocated(engine)]
    for _ in range(3):
        loaded = engine.load(load_command(shipped, "tiny"))
        assert isinstance(loaded, Loaded)
        draw(engine, "tiny", width=128, height=128)
        assert allocated(engine) - left[0] >= loaded.weight_bytes
        assert isinstance(engine.unload(Unload(model="tiny")), Unloaded)
        left.append(allocated(engine))
    # cuBLAS keeps a workspace of its own after the first call.
    assert left[1] - left[0] < 64 * 2**20
    assert left[1] == left[2] == left[3]


def test_the_stages_of_a_picture_add_up_to_its_time(engine: LocalEngine, shipped: Catalog) -> None:
    engine.load(load_command(shipped, "tiny"))
    command = Generate(model="tiny", request=request_for(steps=20, width=256, height=256))
    began = time.monotonic()
    made = engine.generate(command, threading.Event(), lambda *_: None)
    took = time.monotonic() - began
    assert isinstance(made, Generated)
    seconds = {it.stage: it.seconds for it in made.stages}
    assert seconds.keys() == {"encode", "denoise", "decode"}
    assert sum(seconds.values()) <= took


def test_the_same_seed_gives_the_same_pixels_in_a_thread_and_in_a_process(shipped: Catalog) -> None:
    pictures = []
    for make in (LocalEngine, WorkerEngine):
        engine: Engine = make(CUDA)
        assert isinstance(engine.load(load_command(shipped, "tiny")), Loaded)
        pictures += [draw(engine, "tiny", seed=3), draw(engine, "tiny", seed=3)]
        engine.close()
    assert len(set(pictures)) == 1


@pytest.mark.parametrize("word", ["auto", "cuda", "cuda:0"])
def test_each_word_for_the_card_loads(models: Path, word: str) -> None:
    engine = LocalEngine(EngineOptions(device=word))
    load(engine, models, catalog())
    assert allocated(engine) > 0
    engine.close()


@pytest.mark.parametrize("kind", ["flux-dev", "sd3.5", "sdxl"])
def test_the_device_draws_what_the_cpu_draws(engine: LocalEngine, models: Path, kind: str) -> None:
    word = {"sd3.5": "StableDiffusion3Pipeline", "sdxl": "StableDiffusionXLPipeline"}.get(kind, "FluxPipeline")
    family = "flux" if kind == "flux-dev" else "stable_diffusion"
    chosen = catalog(local_path=kind, type=family, pipeline_class=word)
    on_cpu = LocalEngine(EngineOptions(device="cpu"))
    for side in (engine, on_cpu):
        load(side, models, chosen)
    pairs = zip(draw(engine), draw(on_cpu), strict=True)
    assert sum(abs(a - b) for a, b in pairs) / (64 * 64 * 3) < 4


def test_a_second_resident_model_takes_only_its_own_parts_and_frees_them(engine: LocalEngine, models: Path) -> None:
    first = load(engine, models, catalog())
    alone, one = draw(engine), allocated(engine)
    second = load(engine, models, catalog(), "b")
    both = allocated(engine)
    own = second.weight_bytes - sum(second.shared.values())
    assert second.shared == first.shared
    assert second.moved_bytes == own < second.weight_bytes
    assert own <= both - one < own + 2**20  # the allocator rounds each tensor up to 512 bytes
    assert [draw(engine, model) for model in "abab"] == [alone] * 4
    before = allocated(engine)
    engine.unload(Unload(model="a"))
    assert own <= before - allocated(engine)
    assert draw(engine, "b") == alone


def test_the_working_memory_of_a_picture_is_reported_and_grows_with_its_size(engine: LocalEngine, models: Path) -> None:
    load(engine, models, catalog())
    draw(engine)  # cuBLAS takes its workspace
    taken = []
    for side in (64, 256):
        command = Generate(model="a", request=request_for(width=side, height=side))
        outcome = engine.generate(command, threading.Event(), lambda *step: None)
        assert isinstance(outcome, Generated)
        taken.append(outcome.working_bytes)
    assert 0 < taken[0] < taken[1] < 2**30


@pytest.mark.parametrize("offload", ["model", "encoders", "sequential", "group"])
def test_offloading_changes_the_memory_and_not_the_picture(engine: LocalEngine, models: Path, offload: str) -> None:
    load(engine, models, catalog())
    plain = draw(engine)
    engine.unload(Unload(model="a"))
    load(engine, models, catalog(cpu_offload=offload))
    offloaded = draw(engine)
    assert max(abs(a - b) for a, b in zip(plain, offloaded, strict=True)) <= 2
    assert draw(engine) == offloaded


def test_a_lora_counts_for_one_picture_on_weights_that_went_straight_to_the_device(
    engine: LocalEngine, shipped: Catalog, tmp_path: Path
) -> None:
    file = write_lora(tmp_path / "style.safetensors")
    assert isinstance(engine.load(load_command(shipped, "tiny")), Loaded)
    plain = draw(engine, "tiny")
    request = request_for(loras=(Lora(path=file.name, scale=1),))
    command = Generate(model="tiny", request=request, lora_files=(str(file),))
    styled = engine.generate(command, threading.Event(), lambda *step: None)
    assert isinstance(styled, Generated), styled
    assert styled.images[0].rgb != plain
    assert draw(engine, "tiny") == plain


# -- the warm tier -----------------------------------------------------------------------------------------------------


def test_weights_in_host_memory_are_pinned_in_one_block_and_return_unchanged() -> None:
    module = torch.nn.Linear(512, 512)
    expected, before = module.weight.detach().clone(), pinned_blocks()
    copy = HostCopy([module.to("cuda")], "cuda")
    for _ in range(2):
        copy.to_host()
        assert pinned_blocks() - before == 1
        assert all(tensor.is_pinned() for tensor in tensors_of([module]))
        assert copy.to_device() == copy.bytes == (512 * 512 + 512) * 4
        assert module.weight.is_cuda
        assert torch.equal(module.weight.cpu(), expected)


def test_a_warm_model_leaves_the_device_and_returns_by_a_copy(engine: LocalEngine, models: Path) -> None:
    chosen = catalog(host_cache_gb=1)
    cold = load(engine, models, chosen)
    expected, full, left = draw(engine), allocated(engine), []
    for _ in range(3):
        assert isinstance(engine.unload(Unload(model="a", keep_warm=True)), Unloaded)
        left.append(allocated(engine))
        back = load(engine, models, chosen)
        assert back.warm
        assert back.moved_bytes == back.weight_bytes == cold.weight_bytes
        assert draw(engine) == expected
    assert full - left[0] >= cold.weight_bytes
    assert left[0] == left[1] == left[2]


def test_a_warm_model_that_is_dropped_gives_its_pinned_memory_back(engine: LocalEngine, models: Path) -> None:
    give_back("cuda")
    before = pinned()
    loaded = load(engine, models, catalog(host_cache_gb=1))
    assert pinned() <= before
    engine.unload(Unload(model="a", keep_warm=True))
    assert pinned() - before >= loaded.weight_bytes
    engine.unload(Unload(model="a"))
    assert pinned() <= before


def pinned_blocks() -> int:
    """The number of blocks that torch holds on it."""
    held: int = torch.cuda.memory.host_memory_stats().get("allocations.current", 0)
    return held


def pinned() -> int:
    """The bytes that torch holds on it, used or cached."""
    held: int = torch.cuda.memory.host_memory_stats().get("allocated_bytes.current", 0)
    return held


# -- parts that two models share ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("host_cache_gb", [0, 1])
def test_a_swap_moves_the_transformer_and_the_device_holds_one_model(
    engine: LocalEngine, models: Path, host_cache_gb: int
) -> None:
    chosen, warm = catalog(host_cache_gb=host_cache_gb), bool(host_cache_gb)
    needed = sum(header_bytes(file, 4) for file in (models / "flux-dev" / "transformer").glob("*.safetensors"))
    first = load(engine, models, chosen, "a")
    expected, one_model = draw(engine, "a"), allocated(engine)
    for old, new in (("a", "b"), ("b", "a"), ("a", "b")):
        engine.unload(Unload(model=old, keep_warm=warm, switching=True))
        swapped = load(engine, models, chosen, new)
        assert swapped.moved_bytes == needed < first.weight_bytes
        assert allocated(engine) - one_model < first.weight_bytes / 2
        assert draw(engine, new) == expected


# -- what does not fit, and what stays behind --------------------------------------------------------------------------


def test_weights_that_can_never_fit_are_refused_with_the_numbers_of_the_device(models: Path) -> None:
    memory, facts = measure("cuda"), Facts()
    fitting = Fitting(facts, Folders(models, models / "loras"), FAMILIES)
    facts.learn("a", weights=fitting.least_bytes("a", catalog(), memory))
    with pytest.raises(DoesNotFit) as refused:
        fitting.check("a", 64 * 64, catalog(gpu_memory_fraction=1e-6), memory)
    assert f"{memory.gpu_name} has 0.0 GiB" in refused.value.detail
    fitting.check("a", 64 * 64, catalog(), memory)


# What stays is the workspace of cuBLAS: more than 1 MiB, and less than 1024. The pretended card has none.
@pytest.mark.parametrize(("limit_mb", "replaced"), [(1024, False), pytest.param(1, True, marks=pytest.mark.gpu)])
async def test_a_worker_is_replaced_if_more_than_the_limit_stays_on_the_device(
    models: Path, limit_mb: int, replaced: bool
) -> None:
    engine = WorkerEngine(CUDA)
    executor = GpuExecutor(lambda: engine)
    chosen = catalog(residual_limit_mb=limit_mb)
    manager = DynamicModelManager(chosen, executor, EventBus(first_id=1), Folders(models, models / "loras"), FAMILIES)
    await manager.warm_up()
    worker = engine.pid
    assert await manager.ensure("a") is None
    await executor.generate(Generate(model="a", request=request_for()), threading.Event(), lambda *step: None)
    report = await manager.unload_all()
    assert report.models == ["a"]
    assert (engine.pid != worker) is replaced
    await executor.close(patience_s=10)


def test_a_full_device_fails_one_task_with_the_numbers_and_the_next_one_runs(
    engine: LocalEngine, shipped: Catalog
) -> None:
    assert isinstance(engine.load(load_command(shipped, "tiny")), Loaded)
    expected = draw(engine, "tiny")
    free, total = torch.cuda.mem_get_info()
    ours = int(total * shipped.memory_fraction("tiny")) - torch.cuda.memory_reserved()
    hog = torch.empty(min(free, ours) - 256 * 2**20, dtype=torch.uint8, device="cuda")
    command = Generate(model="tiny", request=request_for(width=8192, height=8192, steps=1))
    failed = engine.generate(command, threading.Event(), lambda *step: None)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.OUT_OF_MEMORY
    assert "GiB" in failed.message
    assert failed.need_bytes > hog.numel()
    del hog
    give_back("cuda")
    assert draw(engine, "tiny") == expected


@pytest.mark.gpu
def test_torch_itself_tries_cudnns_attention_first_on_the_cards_that_the_docs_name() -> None:
    query = torch.ones(1, 1, 64, 64, dtype=torch.bfloat16, device="cuda")
    torch.nn.functional.scaled_dot_product_attention(query, query, query)  # the order is made at the first call
    first = torch._C._get_sdp_priority_order()[0]
    preferred = torch.cuda.get_device_capability()[0] in (9, 10) and torch.backends.cudnn.version() > 91500
    assert (first == torch.nn.attention.SDPBackend.CUDNN_ATTENTION.value) is preferred
