"""DynamicModelManager with a scripted engine: which models are resident, which are evicted, and what is reported."""

import asyncio
import threading
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import pytest
import structlog

from imagegen.catalog.catalog import Catalog, GlobalSettings
from imagegen.catalog.sources import Folders
from imagegen.core.errors import DoesNotFit, FailureCode
from imagegen.core.events import (
    Event,
    EventBus,
    ModelCooled,
    ModelFailed,
    ModelLoaded,
    ModelLoading,
    ModelUnloaded,
    ModelUnloading,
    StreamEvent,
)
from imagegen.core.task import Failure, InputPictures, Lora
from imagegen.gpu.protocol import (
    DeviceMemory,
    Failed,
    Generate,
    Generated,
    Load,
    Loaded,
    Measured,
    Stopped,
    Unload,
    Unloaded,
)
from imagegen.loaders.base import Family
from imagegen.models.facts import CROWDED_FOR
from imagegen.models.manager import DynamicModelManager
from imagegen.models.residency import ModelState
from imagegen.models.status import LoadProgress
from imagegen.testing import FAMILIES
from imagegen.testing.clock import Clock
from imagegen.testing.engine import CRASHED, HUNG, MISSING, OUT_OF_MEMORY, SCRIPTED, Answer, Kind, ScriptedEngine
from imagegen.testing.fake import FakeModelLoader, FakeSpec
from tests.conftest import request_for
from tests.unit.conftest import grey

FULL = DeviceMemory(gpu_available=True, gpu_name="G", allocated=30, cached=35, total=80, host=5)
EMPTY = FULL.evolve(allocated=0, cached=0)
GENERATED = Generated(images=(grey(),), memory=FULL, provenance=SCRIPTED)
#: What a picture takes.
WORK_S = 2


def spec(**fields: Any) -> FakeSpec:
    return FakeSpec.model_validate({"name": "A", "type": "fake", **fields})


CATALOG = Catalog(
    settings=GlobalSettings(auto_unload_minutes=30, gpu_memory_fraction=0.5),
    models={
        "a": spec(),
        "b": spec(local_path="weights/b", steps=7, base_size=96),
        "bare": spec(local_path="weights/bare"),
        "short": spec(auto_unload_minutes=1),
        "never": spec(auto_unload_minutes=0),
        "large": spec(memory_mb=3 * 1024),
        "greedy": spec(memory_mb=1536, gpu_memory_fraction=0.9),
    },
)


class House:
    """A manager with everything that it needs."""

    def __init__(self, catalog: Catalog, folders: Folders, families: Mapping[str, Family] = FAMILIES) -> None:
        self.clock = Clock()
        self.engine = ScriptedEngine(full=FULL, empty=EMPTY, clock=self.clock, work_s=WORK_S)
        self.bus = EventBus(1)
        self.models = DynamicModelManager(catalog, self.engine, self.bus, folders, families, self.clock)

    @property
    def current(self) -> str | None:
        return self.models.current.model if self.models.current else None

    async def measure(self, memory: DeviceMemory) -> None:
        """Start over with a device that has this memory."""
        self.engine.instead["measure"] = Measured(memory=memory)
        await self.models.warm_up()

    async def work(self, model: str, **request: Any) -> Generated | Stopped | Failed:
        """Do what the run loop does for a task."""
        failed = await self.models.ensure(model)
        return failed or await self.models.generate(
            model, request_for(**request), InputPictures(), threading.Event(), lambda *step: None
        )


@pytest.fixture
def house(tmp_path: Path) -> House:
    (tmp_path / "models" / "weights" / "b").mkdir(parents=True)
    return House(CATALOG, Folders(tmp_path / "models", tmp_path / "loras"))


async def told(house: House, *actions: Awaitable[object]) -> list[Event]:
    """The events of some actions."""
    with house.bus.subscribe() as subscription:
        for action in actions:
            await action
        house.bus.close()
        return [it.event async for it in subscription if not isinstance(it.event, StreamEvent)]


# -- loading and switching ---------------------------------------------------------------------------------------------


async def test_at_the_start_nothing_is_resident(house: House) -> None:
    assert house.models.current is None
    assert house.models.status("a").load_seconds is None
    assert house.models.status("a").last_used is None


async def test_a_model_is_loaded_when_it_is_needed_and_then_stays(house: House) -> None:
    await house.work("a")
    await house.work("a")
    assert house.engine.asked == ["load a", "generate a", "generate a"]
    assert house.current == "a"


async def test_a_switch_unloads_first_and_loads_then(house: House) -> None:
    await house.work("a")
    await house.work("b")
    assert house.engine.asked == ["load a", "generate a", "unload a", "load b", "generate b"]
    assert house.current == "b"


async def test_a_switch_is_reported_step_by_step(house: House) -> None:
    await house.models.ensure("a")
    assert await told(house, house.models.ensure("b")) == [
        ModelUnloading(model="a", reason="switch"),
        ModelUnloaded(model="a", reason="switch"),
        ModelLoading(model="b"),
        ModelLoaded(model="b", seconds=3.5, device_bytes=30),
    ]


async def test_a_resident_model_costs_no_swap(house: House) -> None:
    await house.models.ensure("a")
    assert await told(house, house.models.ensure("a")) == []


async def test_the_engine_gets_the_entry_the_settings_and_the_folders(house: House, tmp_path: Path) -> None:
    await house.models.ensure("b")
    (command,) = house.engine.commands
    assert isinstance(command, Load)
    assert FakeSpec.model_validate(command.spec) == CATALOG.model("b")
    assert GlobalSettings.model_validate(command.settings) == CATALOG.settings
    assert (command.models_dir, command.loras_dir) == (str(tmp_path / "models"), str(tmp_path / "loras"))


async def test_the_memory_and_time_of_a_load_are_known(house: House) -> None:
    await house.models.ensure("a")
    assert house.models.status("a").load_seconds == 3.5
    assert house.models.memory == FULL
    assert house.models.current is not None
    assert house.models.current.weight_bytes == 30


async def test_a_model_that_was_removed_from_the_file_is_not_loaded(house: House) -> None:
    failed = await house.models.ensure("gone")
    assert failed is not None
    assert failed.code is FailureCode.MODEL_REMOVED
    assert house.engine.asked == []


async def test_removing_a_model_does_not_unload_the_resident_one(house: House) -> None:
    await house.models.ensure("a")
    await house.models.ensure("gone")
    assert house.current == "a"


async def test_a_model_that_does_not_load_is_not_resident(house: House) -> None:
    house.engine.instead["load"] = MISSING
    assert await house.models.ensure("a") == MISSING
    assert house.current is None
    assert house.models.status("a").load_seconds is None


async def test_a_failed_load_can_be_tried_again(house: House) -> None:
    house.engine.instead["load"] = OUT_OF_MEMORY
    await house.models.ensure("a")
    assert await house.models.ensure("a") is None
    assert house.current == "a"


# -- how far a load is -------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> House:
    """The model `a` is a file of 1000 bytes."""
    (tmp_path / "a.bin").write_bytes(bytes(1000))
    return House(CATALOG.evolve(models={"a": spec(local_path="a.bin")}), Folders(tmp_path, tmp_path))


async def test_each_percent_of_a_load_is_reported_once_and_never_above_the_total(file: House) -> None:
    file.engine.reads = [4, 9, 10, 505, 509, 500, 3000]
    seen, shown = list[LoadProgress](), list[LoadProgress | None]()

    def on_progress(progress: LoadProgress) -> None:
        seen.append(progress)
        shown.append(file.models.status("a").load_progress)

    events = await told(file, file.models.ensure("a", on_progress))
    assert seen == shown == [LoadProgress(10, 1000), LoadProgress(505, 1000), LoadProgress(1000, 1000)]
    assert [(e.bytes_done, e.bytes_total) for e in events if isinstance(e, ModelLoading)] == [
        (0, 1000),
        (10, 1000),
        (505, 1000),
        (1000, 1000),
    ]
    assert file.models.status("a").load_progress is None


async def test_a_load_of_unknown_files_reports_bytes_without_percent(house: House) -> None:
    house.engine.reads = [10, 20]
    shown = list[LoadProgress | None]()
    house.engine.on_call = lambda call: shown.append(house.models.status("a").load_progress)
    house.engine.instead["load"] = CRASHED
    events = await told(house, house.models.ensure("a"))
    assert shown == [LoadProgress(20, None)]
    assert [type(event) for event in events] == [ModelLoading, ModelFailed]
    assert house.models.status("a").load_progress is None


async def test_a_model_that_comes_from_host_memory_reads_nothing(file: House) -> None:
    await file.models.apply(file.models.catalog.evolve(settings=CATALOG.settings.evolve(host_cache_gb=1)))
    await file.models.ensure("a")
    await file.models.evict_idle()
    file.clock.now += 10**6
    await file.models.evict_idle()
    assert file.models.status("a").state is ModelState.WARM
    file.engine.reads = [500]
    events = await told(file, file.models.ensure("a"))
    assert [event for event in events if isinstance(event, ModelLoading)] == [ModelLoading(model="a")]


# -- work --------------------------------------------------------------------------------------------------------------


async def test_the_outcome_is_the_engines(house: House) -> None:
    await house.models.ensure("a")
    for outcome in (GENERATED, Stopped(), OUT_OF_MEMORY):
        house.engine.instead["generate"] = outcome
        assert await house.work("a") == outcome


async def test_the_time_a_model_has_worked_since_it_was_loaded_is_counted(house: House) -> None:
    for _ in range(3):
        await house.work("a")
    assert house.models.served_s == 6
    await house.work("b")
    assert house.models.served_s == 2
    await house.work("a")
    assert house.models.served_s == 2


async def test_the_last_use_of_a_model_is_remembered_when_it_has_left(house: House) -> None:
    await house.work("a")
    used = house.models.status("a").last_used
    assert used is not None
    assert house.models.current is not None
    assert house.models.current.last_used_at == used
    await house.work("b")
    assert house.models.status("a").last_used == used


async def test_a_failed_task_leaves_the_model_where_it_is(house: House) -> None:
    await house.models.ensure("a")
    house.engine.instead["generate"] = OUT_OF_MEMORY
    await house.work("a")
    assert house.current == "a"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    file = tmp_path / "loras" / "ink.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"x")
    return file.resolve()


async def test_the_engine_gets_the_file_of_a_lora(house: House, lora: Path) -> None:
    await house.work("a", loras=(Lora(path="ink.safetensors", scale=0.7),))
    command = house.engine.commands[-1]
    assert isinstance(command, Generate)
    assert command.lora_files == (str(lora),)


async def test_a_lora_that_was_removed_meanwhile_fails_the_task_and_not_the_model(house: House) -> None:
    outcome = await house.work("a", loras=(Lora(path="ink.safetensors", scale=0.7),))
    assert isinstance(outcome, Failed)
    assert outcome.code is FailureCode.LORA_NOT_FOUND
    assert house.engine.asked == ["load a"]
    assert house.current == "a"


# -- what does not fit, and what does not leave ----------------------------------------------------------------------

SMALL = EMPTY.evolve(total=2 * 2**30)


async def test_a_model_that_can_never_fit_is_refused_with_the_numbers_and_evicts_nothing(house: House) -> None:
    house.engine.instead["measure"] = Measured(memory=SMALL)
    await house.models.warm_up()
    await house.models.check_fits("a")
    with pytest.raises(DoesNotFit, match=r"'large' take 3\.0 GiB; G has 1\.0 GiB"):
        await house.models.check_fits("large")
    await house.models.check_fits("greedy")
    await house.models.ensure("a")
    await house.measure(SMALL)
    failed = await house.models.ensure("large")
    assert failed is not None
    assert (failed.code, house.current) == (FailureCode.OUT_OF_MEMORY, "a")


async def test_an_offloaded_model_that_was_loaded_once_is_loaded_again(house: House) -> None:
    """Its weights are larger than the device, but their part on the device at one time is not."""
    loaded = Loaded(seconds=1, weight_bytes=3 * 2**30, device_bytes=2**29, host_bytes=3 * 2**30, memory=SMALL)
    for model in ("a", "b", "a"):
        house.engine.instead = {"load": loaded}
        assert await house.models.ensure(model) is None
    house.engine.instead = {"load": loaded.evolve(device_bytes=2**30 + 1)}
    await house.models.ensure("b")
    with pytest.raises(DoesNotFit):
        await house.models.check_fits("b")


async def test_the_device_and_host_bytes_of_an_offloaded_model_are_reported(house: House) -> None:
    house.engine.instead["load"] = Loaded(seconds=1, weight_bytes=30, device_bytes=20, host_bytes=30, memory=FULL)
    events = await told(house, house.models.ensure("a"))
    assert events[1] == ModelLoaded(model="a", seconds=1, device_bytes=20)
    assert house.models.current is not None
    assert (house.models.current.device_bytes, house.models.status("a").host_bytes) == (20, 30)


async def test_before_the_device_is_known_everything_may_fit(house: House) -> None:
    await house.models.check_fits("large")


async def test_a_picture_that_took_more_than_there_is_is_not_tried_again_nor_is_a_larger_one(house: House) -> None:
    await house.models.ensure("a")
    house.engine.instead["generate"] = OUT_OF_MEMORY.evolve(need_bytes=2 * 2**30)
    await house.work("a", width=1024, height=1024)
    await house.measure(SMALL)
    await house.models.check_fits("a", 1024 * 1024 - 1)
    with pytest.raises(DoesNotFit, match=r"at least 2\.0 GiB"):
        await house.models.check_fits("a", 1024 * 1024)
    await house.measure(SMALL.evolve(total=6 * 2**30))  # somebody else had the memory
    await house.models.check_fits("a", 2048 * 2048)


@pytest.mark.parametrize(("left", "replaced"), [(2**30 + 1000, False), (2**30 + 1001, True)])
async def test_a_worker_that_gives_too_little_back_is_replaced(house: House, left: int, replaced: bool) -> None:
    house.engine.instead["measure"] = Measured(memory=EMPTY.evolve(cached=1000))
    await house.models.warm_up()
    await house.models.ensure("a")
    house.engine.instead["unload"] = Unloaded(memory=EMPTY.evolve(cached=left))
    report = await house.models.unload("a")
    assert ("recycle" in house.engine.asked) is replaced
    assert report.left == (0 if replaced else left)


async def test_a_worker_that_frees_too_little_is_replaced_also_after_a_failed_load(house: House) -> None:
    await house.models.ensure("a")
    house.engine.instead["load"] = OUT_OF_MEMORY
    house.engine.instead["measure"] = Measured(memory=EMPTY.evolve(cached=2**40))
    assert await house.models.ensure("b") == OUT_OF_MEMORY
    assert house.engine.asked[-1] == "recycle"
    assert house.models.memory == EMPTY


async def test_memory_that_was_only_kept_for_a_load_that_failed_does_not_replace_the_worker(house: House) -> None:
    await house.models.ensure("a")
    house.engine.instead["unload"] = Unloaded(memory=EMPTY.evolve(cached=2**40))
    house.engine.instead["load"] = OUT_OF_MEMORY
    assert await house.models.ensure("b") == OUT_OF_MEMORY
    assert "recycle" not in house.engine.asked
    assert house.models.memory == EMPTY


async def test_a_card_that_cannot_be_used_is_logged_once_with_the_reason(house: House) -> None:
    memory = DeviceMemory(cuda_problem="The driver is too old.")
    house.engine.instead |= {"measure": Measured(memory=memory), "unload": Unloaded(memory=memory)}
    with structlog.testing.capture_logs() as logged:
        await house.models.warm_up()
        house.engine.instead["load"] = Loaded(seconds=1, weight_bytes=1, memory=memory)
        await house.models.ensure("a")
        await house.models.unload("a")
    (line,) = [line for line in logged if line["event"] == "cuda_not_usable"]
    assert (line["log_level"], line["reason"]) == ("warning", "The driver is too old.")


async def test_a_worker_that_lost_its_card_is_logged_as_well(house: House) -> None:
    await house.models.warm_up()
    lost = DeviceMemory(cuda_problem="No CUDA GPUs are available")
    house.engine.instead["load"] = Loaded(seconds=1, weight_bytes=1, memory=lost)
    with structlog.testing.capture_logs() as logged:
        await house.models.ensure("a")
    assert [line["event"] for line in logged] == ["cuda_not_usable", "model_loaded"]


async def test_the_memory_of_other_processes_outlives_the_worker(house: House) -> None:
    card = DeviceMemory(gpu_available=True, cached=4 * 2**30, free=7 * 2**30, total=24 * 2**30)
    house.engine.instead["load"] = Loaded(seconds=1, weight_bytes=1, memory=card)
    await house.models.ensure("a")
    house.engine.instead["generate"] = CRASHED
    await house.work("a")
    now = house.models.memory
    assert (now.cached, now.free) == (0, 24 * 2**30 - card.foreign)


async def test_a_worker_that_does_not_come_back_holds_nothing(house: House) -> None:
    await house.models.ensure("a")
    house.engine.instead["unload"] = Unloaded(memory=EMPTY.evolve(cached=2**40))
    house.engine.instead["measure"] = CRASHED
    assert (await house.models.unload("a")).left == 0


async def test_a_switch_does_not_replace_the_worker(house: House) -> None:
    await house.models.ensure("a")
    house.engine.instead["unload"] = Unloaded(memory=EMPTY.evolve(cached=2**40))
    await house.models.ensure("b")
    assert "recycle" not in house.engine.asked


# -- dying workers -----------------------------------------------------------------------------------------------------


async def test_replacing_a_worker_ends_its_models_without_blame(house: House) -> None:
    spoiled = Failed(code=FailureCode.IMPORT_FAILED, message="spoiled", spoiled=True, worker_replaced=True)
    for _ in range(3):
        await house.models.ensure("a")
        house.engine.instead["load"] = spoiled
        assert await house.models.ensure("b") == spoiled
        assert house.current is None
    assert not house.models.quarantined("b")


@pytest.mark.parametrize("death", [CRASHED, HUNG])
async def test_resident_models_die_with_their_worker(house: House, death: Failed) -> None:
    await house.models.ensure("a")
    house.engine.instead["generate"] = death
    assert await told(house, house.work("a")) == [ModelUnloaded(model="a", reason="worker_died")]
    assert house.current is None
    assert (house.models.memory.allocated, house.models.memory.cached, house.models.memory.host) == (0, 0, 0)
    assert house.models.memory.gpu_name == "G"


async def test_after_a_death_the_model_is_loaded_again(house: House) -> None:
    house.engine.instead["generate"] = CRASHED
    await house.work("a")
    await house.work("a")
    assert house.engine.asked == ["load a", "generate a", "load a", "generate a"]


async def test_a_worker_that_dies_while_loading_leaves_nothing_resident(house: House) -> None:
    house.engine.instead["load"] = CRASHED
    assert await house.models.ensure("a") == CRASHED
    assert house.current is None


async def test_a_worker_that_dies_while_unloading_does_not_stop_the_switch(house: House) -> None:
    await house.models.ensure("a")
    house.engine.instead["unload"] = CRASHED
    events = await told(house, house.models.ensure("b"))
    assert events[1] == ModelUnloaded(model="a", reason="worker_died")
    assert [type(event) for event in events].count(ModelUnloaded) == 1
    assert house.current == "b"


# -- idle models -------------------------------------------------------------------------------------------------------


async def evict_after(house: House, minutes: float) -> str | None:
    house.clock.now += minutes * 60
    await house.models.evict_idle()
    return house.current


async def test_an_idle_model_leaves_after_its_time(house: House) -> None:
    await house.work("a")
    assert await evict_after(house, 29.9) == "a"
    assert await evict_after(house, 0.1) is None
    assert house.engine.asked[-1] == "unload a"


async def test_an_eviction_is_reported(house: House) -> None:
    await house.models.ensure("a")
    assert await told(house, evict_after(house, 31)) == [
        ModelUnloading(model="a", reason="idle"),
        ModelUnloaded(model="a", reason="idle"),
    ]
    assert house.models.memory == EMPTY


async def test_every_use_restarts_the_idle_time(house: House) -> None:
    await house.work("a")
    house.clock.now += 29 * 60
    await house.work("a")
    assert await evict_after(house, 29) == "a"
    assert await evict_after(house, 1) is None


async def test_a_load_without_work_counts_as_a_use(house: House) -> None:
    await house.models.ensure("a")
    assert await evict_after(house, 29) == "a"


async def test_a_failed_task_counts_as_a_use(house: House) -> None:
    await house.models.ensure("a")
    house.clock.now += 29 * 60
    house.engine.instead["generate"] = OUT_OF_MEMORY
    await house.work("a")
    assert await evict_after(house, 29) == "a"


async def test_a_model_can_have_a_time_of_its_own(house: House) -> None:
    await house.work("short")
    assert await evict_after(house, 1) is None


async def test_with_zero_minutes_a_model_never_leaves(house: House) -> None:
    await house.work("never")
    assert await evict_after(house, 1e6) == "never"


async def test_an_empty_device_evicts_nothing(house: House) -> None:
    await house.models.evict_idle()
    assert house.engine.asked == []


# -- asked to leave ----------------------------------------------------------------------------------------------------


async def test_an_unload_names_the_unloaded_model(house: House) -> None:
    await house.models.ensure("a")
    assert (await house.models.unload_all()).models == ["a"]
    assert (await house.models.unload_all()).models == []
    assert house.current is None


async def test_a_requested_unload_is_reported(house: House) -> None:
    await house.models.ensure("a")
    assert await told(house, house.models.unload_all()) == [
        ModelUnloading(model="a", reason="asked"),
        ModelUnloaded(model="a", reason="asked"),
    ]


# -- the start ---------------------------------------------------------------------------------------------------------


async def test_the_device_is_known_before_the_first_task(house: House) -> None:
    await house.models.warm_up()
    assert house.models.memory == EMPTY


async def test_a_worker_that_does_not_start_is_no_end_of_the_service(house: House) -> None:
    house.engine.instead["measure"] = CRASHED
    await house.models.warm_up()
    assert not house.models.memory.gpu_available
    assert await house.models.ensure("a") is None


# -- states and quarantine ---------------------------------------------------------------------------------------------


CRASHED = Failed(code=FailureCode.WORKER_CRASHED, message="It died.")


async def test_a_model_is_cold_then_resident_then_cold(house: House) -> None:
    assert house.models.status("a").state is ModelState.COLD
    await house.models.ensure("a")
    assert house.models.status("a").state is ModelState.RESIDENT
    await house.models.unload("a")
    assert house.models.status("a").state is ModelState.COLD


async def test_on_its_way_it_is_loading_or_unloading(house: House) -> None:
    seen = list[tuple[str, ModelState]]()
    house.engine.on_call = lambda call: seen.append((call, house.models.status("a").state))
    await house.work("a")
    await house.models.unload_all()
    assert seen == [
        ("load a", ModelState.LOADING),
        ("generate a", ModelState.RESIDENT),
        ("unload a", ModelState.UNLOADING),
    ]


async def test_weights_that_turn_up_after_all_still_leave_one_model_resident(house: House) -> None:
    await house.models.ensure("a")
    await house.models.ensure("bare")
    assert house.engine.asked == ["load a", "load bare", "unload a"]
    assert house.current == "bare"


async def test_a_model_that_is_lost_with_the_one_that_leaves_late_is_loaded_again(house: House) -> None:
    await house.models.ensure("a")
    house.engine.instead["unload"] = CRASHED
    assert await house.models.ensure("bare") is None
    assert house.engine.asked == ["load a", "load bare", "unload a", "load bare"]
    assert house.current == "bare"


async def test_a_model_without_weights_evicts_nothing(house: House) -> None:
    await house.models.ensure("a")
    house.engine.instead["load"] = MISSING
    assert await house.models.ensure("bare") == MISSING
    assert house.current == "a"
    assert house.models.status("bare").state is ModelState.COLD


async def test_a_load_that_failed_is_an_error_until_one_succeeds(house: House) -> None:
    broken = MISSING.evolve(code=FailureCode.WEIGHTS_CORRUPT)
    house.engine.instead["load"] = broken
    await house.models.ensure("a")
    assert house.models.status("a").state is ModelState.ERROR
    assert house.models.status("a").error == broken
    await house.models.ensure("a")
    assert house.models.status("a").state is ModelState.RESIDENT
    assert house.models.status("a").error is None


async def test_a_model_that_kills_its_worker_twice_at_its_load_is_quarantined_until_it_is_loaded_by_hand(
    house: House,
) -> None:
    for _ in range(2):
        house.engine.instead["load"] = CRASHED
        await house.models.ensure("a")
    assert house.models.quarantined("a")
    failed = await house.models.ensure("a")
    assert failed is not None
    assert failed.code is FailureCode.MODEL_QUARANTINED
    assert len(house.engine.asked) == 2
    assert house.models.status("a").state is ModelState.ERROR
    assert await house.models.load("a") is None
    assert house.models.status("a").state is ModelState.RESIDENT


async def test_a_load_by_hand_ends_a_quarantine_even_if_it_fails(house: House) -> None:
    for _ in range(2):
        house.engine.instead["load"] = CRASHED
        await house.models.ensure("a")
    house.engine.instead["load"] = MISSING
    assert await house.models.load("a") == MISSING
    assert house.models.status("a").error is None
    assert house.models.status("a").state is ModelState.COLD


async def test_a_worker_that_dies_during_an_unload_does_not_count_against_the_model(house: House) -> None:
    for _ in range(3):
        await house.models.ensure("a")
        house.engine.instead["unload"] = CRASHED
        await house.models.unload("a")
    assert not house.models.quarantined("a")


async def test_two_requests_that_kill_it_in_a_row_are_a_quarantine_and_a_picture_between_them_is_not(
    house: House,
) -> None:
    for between in (True, False):
        house.engine.instead["generate"] = CRASHED
        await house.work("a", prompt="one")
        if between:
            await house.work("a", prompt="fine")
        house.engine.instead["generate"] = CRASHED
        await house.work("a", prompt="another")
        assert house.models.quarantined("a") is not between
        await house.models.load("a")


async def test_when_a_model_leaves_is_known(house: House) -> None:
    assert house.models.status("a").unloads_at is None
    await house.models.ensure("a")
    resident = house.models.current
    assert resident is not None
    assert house.models.status("a").unloads_at == resident.last_used_at + timedelta(minutes=30)
    await house.models.ensure("never")
    assert house.models.status("never").unloads_at is None


async def test_a_model_that_a_waiting_task_needs_is_not_evicted(house: House) -> None:
    await house.models.ensure("a")
    house.clock.now += 1e6
    await house.models.evict_idle({"a"})
    assert house.current == "a"
    await house.models.evict_idle({"b"})
    assert house.current is None


async def test_the_freed_memory_is_measured_after_an_unload(house: House) -> None:
    await house.models.ensure("a")
    report = await house.models.unload("a", "b")
    assert (report.models, report.freed, report.left) == (["a"], FULL.held - EMPTY.held, EMPTY.held)
    again = await house.models.unload("a")
    assert (again.models, again.freed) == ([], 0)


# -- warm --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def warm_house(tmp_path: Path) -> House:
    """A host with room for two models of 30 bytes."""
    settings = CATALOG.settings.evolve(host_cache_gb=65 / 2**30)
    return House(CATALOG.evolve(settings=settings), Folders(tmp_path, tmp_path))


def kept_warm(house: House) -> list[bool]:
    return [command.keep_warm for command in house.engine.commands if isinstance(command, Unload)]


async def test_without_room_in_the_host_nothing_stays_warm(house: House) -> None:
    await house.models.ensure("a")
    await house.models.ensure("never")
    assert kept_warm(house) == [False]
    assert house.models.status("a").state is ModelState.COLD


async def test_events_report_the_moves_of_a_warm_model(warm_house: House) -> None:
    await warm_house.work("a")
    assert await told(warm_house, warm_house.models.ensure("never"), warm_house.models.unload("a")) == [
        ModelUnloading(model="a", reason="switch"),
        ModelUnloaded(model="a", reason="switch", warm=True),
        ModelLoading(model="never"),
        ModelLoaded(model="never", seconds=3.5, device_bytes=30),
        ModelCooled(model="a", reason="asked"),
    ]


@pytest.mark.parametrize(
    "instead",
    [
        {"generate": GENERATED.evolve(made_room=True)},
        {"generate": OUT_OF_MEMORY.evolve(made_room=True)},
        {"generate": Stopped(made_room=True)},
        {"generate": CRASHED},
        {"load": Loaded(seconds=1, weight_bytes=30, memory=FULL, made_room=True)},
        {"load": OUT_OF_MEMORY.evolve(made_room=True)},
    ],
    ids=str,
)
async def test_warm_models_that_the_engine_dropped_are_cold(warm_house: House, instead: dict[Kind, Answer]) -> None:
    await warm_house.work("a")
    await warm_house.models.ensure("never")
    if "load" in instead:
        await warm_house.models.unload("never")
    assert warm_house.models.status("a").state is ModelState.WARM
    warm_house.engine.instead = instead
    await warm_house.work("never")
    assert warm_house.models.status("a").state is ModelState.COLD


async def test_a_warm_model_that_does_not_come_back_is_warm_no_longer(warm_house: House) -> None:
    await warm_house.work("a")
    await warm_house.models.ensure("never")
    warm_house.engine.instead["load"] = MISSING
    assert await warm_house.models.ensure("a") == MISSING
    assert warm_house.models.status("a").state is ModelState.COLD


async def test_a_failed_load_is_reported_with_its_reason(house: House) -> None:
    house.engine.instead["load"] = OUT_OF_MEMORY
    assert (await told(house, house.models.ensure("a")))[1:] == [
        ModelFailed(model="a", failure=Failure(code=OUT_OF_MEMORY.code, message=OUT_OF_MEMORY.message))
    ]


async def test_a_model_that_cannot_stay_warm_is_cold(warm_house: House) -> None:
    await warm_house.work("a")
    warm_house.engine.instead["unload"] = Unloaded(warm=False, memory=EMPTY)
    await warm_house.work("never")
    assert warm_house.models.status("a").state is ModelState.COLD


async def test_a_model_that_is_switched_away_stays_warm_and_comes_back(warm_house: House) -> None:
    models = warm_house.models
    await models.ensure("a")
    await models.ensure("never")
    assert kept_warm(warm_house) == [True]
    assert (models.status("a").state, models.status("a").host_bytes) == (ModelState.WARM, 30)
    warm_house.engine.instead["load"] = Loaded(seconds=0.2, warm=True, weight_bytes=30, memory=FULL)
    await models.ensure("a")
    assert (models.status("a").state, models.status("never").state) == (ModelState.RESIDENT, ModelState.WARM)
    assert (models.status("a").warm_seconds, models.status("a").load_seconds) == (0.2, 3.5)


async def test_the_cost_of_a_switch_depends_on_whether_the_model_is_warm(warm_house: House) -> None:
    models = warm_house.models
    await models.ensure("a")
    await models.ensure("never")
    warm_house.engine.instead["load"] = Loaded(seconds=0.2, warm=True, weight_bytes=30, memory=FULL)
    await models.ensure("a")
    assert models.switch_seconds("a") == 3.5
    await models.ensure("never")
    assert models.switch_seconds("a") == 0.2


async def test_the_least_recently_used_is_dropped_when_the_host_is_full(warm_house: House) -> None:
    for model in ("a", "short", "never", "bare"):
        warm_house.clock.now += 1
        await warm_house.models.ensure(model)
    states = {model: warm_house.models.status(model).state for model in ("a", "short", "never", "bare")}
    assert states == {
        "a": ModelState.COLD,
        "short": ModelState.WARM,
        "never": ModelState.WARM,
        "bare": ModelState.RESIDENT,
    }


async def test_the_copy_of_a_resident_model_counts_in_the_hosts_share(warm_house: House) -> None:
    """65 bytes: room for two copies of 30, one of which a returned resident model keeps."""
    models = warm_house.models
    for model in ("a", "never"):
        await models.ensure(model)
    back = Loaded(seconds=0.2, warm=True, weight_bytes=30, host_bytes=30, memory=FULL)
    warm_house.engine.instead["load"] = back
    await models.ensure("a")
    assert (models.status("a").host_bytes, models.status("never").host_bytes) == (30, 30)
    warm_house.engine.instead["load"] = back.evolve(warm=False)  # offloaded: its weights lie in the host
    await models.ensure("short")
    assert (models.status("a").state, models.status("never").state) == (ModelState.WARM, ModelState.COLD)
    assert (models.status("a").host_bytes, models.status("short").host_bytes) == (30, 30)


@pytest.mark.parametrize(
    ("available", "gpu", "states"),
    [
        # Half of 120 bytes, of which the first copy then takes 30: two copies.
        ((120, 90, 60), True, ["warm", "warm", "resident"]),
        ((118, 88, 58), True, ["cold", "warm", "resident"]),
        ((60, 30, 30), True, ["cold", "warm", "resident"]),
        ((59, 59, 59), True, ["cold", "cold", "resident"]),
        ((1000, 1000, 1000), False, ["cold", "cold", "resident"]),  # host memory is where it runs
    ],
)
async def test_by_default_half_of_the_available_host_memory_keeps_models_warm(
    house: House, available: tuple[int, ...], gpu: bool, states: list[str]
) -> None:
    models = house.models
    for model, left in zip(("a", "never", "short"), available, strict=True):
        memory = FULL.evolve(gpu_available=gpu, host_available=left)
        house.engine.instead = {"load": Loaded(seconds=1, weight_bytes=30, memory=memory)}
        await models.ensure(model)
    assert [models.status(model).state for model in ("a", "never", "short")] == states


async def test_an_idle_model_first_moves_to_the_host_and_is_then_dropped(warm_house: House) -> None:
    await warm_house.models.ensure("short")
    for state in (ModelState.WARM, ModelState.COLD):
        warm_house.clock.now += 60
        await warm_house.models.evict_idle()
        assert warm_house.models.status("short").state is state


async def test_unloading_by_hand_frees_the_host_too(warm_house: House) -> None:
    await warm_house.models.ensure("a")
    await warm_house.models.ensure("never")
    report = await warm_house.models.unload_all()
    assert report.models == ["never", "a"]
    assert kept_warm(warm_house) == [True, False, False]
    assert {warm_house.models.status(model).state for model in ("a", "never")} == {ModelState.COLD}


async def test_a_warm_model_that_a_waiting_task_needs_stays_warm(warm_house: House) -> None:
    await warm_house.models.ensure("short")
    await warm_house.models.ensure("never")
    warm_house.clock.now += 60
    await warm_house.models.evict_idle({"short"})
    assert warm_house.models.status("short").state is ModelState.WARM
    await warm_house.models.evict_idle()
    assert warm_house.models.status("short").state is ModelState.COLD


async def test_a_returning_warm_model_is_not_dropped_for_the_leaving_one(warm_house: House) -> None:
    for model in ("a", "short", "never"):
        await warm_house.models.ensure(model)
    await warm_house.models.ensure("a")
    assert [command.model for command in warm_house.engine.commands if isinstance(command, Unload)][2:] == [
        "short",
        "never",
    ]
    assert (warm_house.models.status("a").state, warm_house.models.status("never").state) == (
        ModelState.RESIDENT,
        ModelState.WARM,
    )


async def test_a_worker_found_dead_at_the_drop_of_a_warm_model_loses_all_models(warm_house: House) -> None:
    for model in ("a", "short", "never"):
        await warm_house.models.ensure(model)
    warm_house.engine.instead["unload"] = CRASHED
    assert await warm_house.models.ensure("bare") is None
    assert warm_house.engine.asked[-2:] == ["unload a", "load bare"]
    states = {model: warm_house.models.status(model).state for model in ("a", "short", "never", "bare")}
    assert states.pop("bare") is ModelState.RESIDENT
    assert set(states.values()) == {ModelState.COLD}


async def test_a_worker_that_is_found_dead_by_an_unload_of_all_is_no_end_of_the_service(warm_house: House) -> None:
    for model in ("a", "short", "never"):
        await warm_house.models.ensure(model)
    warm_house.engine.instead["unload"] = CRASHED
    assert (await warm_house.models.unload_all()).models == ["never", "a", "short"]
    assert warm_house.engine.asked[-1] == "unload never"


async def test_idle_models_of_a_dead_worker_are_not_resident(warm_house: House) -> None:
    for model in ("a", "short", "never"):
        await warm_house.models.ensure(model)
    warm_house.engine.instead["unload"] = CRASHED
    warm_house.clock.now += 31 * 60
    await warm_house.models.evict_idle()
    assert warm_house.current is None


async def test_a_warm_model_needs_no_weights_on_the_disk_to_come_back(warm_house: House) -> None:
    await warm_house.models.ensure("bare")
    await warm_house.models.ensure("a")
    await warm_house.models.ensure("bare")
    assert warm_house.engine.asked[-2:] == ["unload a", "load bare"]


async def test_a_dead_worker_loses_the_warm_models(warm_house: House) -> None:
    await warm_house.models.ensure("a")
    await warm_house.models.ensure("never")
    warm_house.engine.instead["generate"] = CRASHED
    await warm_house.work("never")
    assert {warm_house.models.status(model).state for model in ("a", "never")} == {ModelState.COLD}


# -- the files of the next model ---------------------------------------------------------------------------------------


class Listed(FakeModelLoader):
    """Counts the requests for the files of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def files(self, spec: FakeSpec, folders: Folders) -> Sequence[Path]:
        self.asked += 1
        return ()


class Ahead(House):
    """A manager whose threads run one after the other."""

    def __init__(self, folder: Path) -> None:
        self.loader = Listed()
        super().__init__(CATALOG, Folders(folder, folder), {"fake": Family(FakeSpec, self.loader)})
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=1))

    async def read(self, model: str | None) -> int:
        """The number of requests for a model's files while another model works."""
        before = self.loader.asked
        with self.models.reading_ahead(model):
            await asyncio.to_thread(lambda: None)  # the thread that reads has ended by then
        return self.loader.asked - before


@pytest.mark.parametrize(
    ("gpu", "model", "times"), [(True, "b", 1), (False, "b", 0), (True, "gone", 0), (True, None, 0)]
)
async def test_the_files_of_the_next_model_are_read_where_there_is_a_device(
    tmp_path: Path, gpu: bool, model: str | None, times: int
) -> None:
    house = Ahead(tmp_path)
    await house.measure(EMPTY.evolve(gpu_available=gpu))
    assert await house.read(model) == times


async def test_a_model_that_was_loaded_is_read_again_when_it_is_needed_again(tmp_path: Path) -> None:
    house = Ahead(tmp_path)
    await house.measure(EMPTY)
    assert [await house.read("b"), await house.read("b")] == [1, 0]
    await house.models.ensure("b")
    assert [await house.read("b"), await house.read("b")] == [1, 0]


# -- several resident models -------------------------------------------------------------------------------------------

#: A device that has room for as many models of 30 bytes as there are.
VAST = FULL.evolve(total=1000)
TRIO = {model: spec(name=model, max_batch=2) for model in ("a", "b", "c", "d")}


def several(max_resident: int, **settings: Any) -> Catalog:
    usual = {"auto_unload_minutes": 30, "gpu_memory_fraction": 1, "max_resident": max_resident}
    return Catalog(settings=GlobalSettings(**usual | settings), models=TRIO)


class Several(House):
    """A manager that may keep several models, on a device of `total` bytes; each takes 30."""

    @classmethod
    async def of(
        cls,
        folder: Path,
        max_resident: int,
        total: int = 1000,
        sizes: Mapping[str, int | None] = MappingProxyType({}),
        **settings: Any,
    ) -> Self:
        """`sizes`: the sizes of models whose files have another size; None: unknown."""
        families = {"fake": Family(FakeSpec, FakeModelLoader({**dict.fromkeys(TRIO, 30), **sizes}))}
        house = cls(several(max_resident, **settings), Folders(folder, folder), families)
        await house.has(total, free=total)
        for model in TRIO:
            await house.models.check_fits(model)
        return house

    async def has(self, total: int, *, free: int) -> None:
        """Set the device's memory, and the part that other processes leave free."""
        self.engine.empty = EMPTY.evolve(total=total, free=free)
        self.engine.full = FULL.evolve(total=total, free=free - FULL.cached)
        await self.measure(self.engine.empty)

    async def load(self, *models: str, **answer: Any) -> None:
        for model in models:
            self.clock.now += 1
            loaded = Loaded(seconds=3.5, weight_bytes=30, memory=self.engine.full)
            self.engine.instead["load"] = loaded.evolve(**answer)
            assert await self.models.ensure(model) is None
            self.engine.instead.clear()

    @property
    def residents(self) -> str:
        """The resident models, the most recently used one first."""
        return "".join(resident.model for resident in self.models.residents)


async def test_as_many_models_stay_as_may_and_the_least_recently_used_leaves(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 2)
    await house.load("a", "b")
    assert (house.residents, house.current) == ("ba", "b")
    await house.work("a")
    assert house.engine.asked == ["load a", "load b", "generate a"]
    assert (house.residents, house.current) == ("ab", "a")
    await house.load("c")
    assert house.engine.asked[3:] == ["unload b", "load c"]
    assert house.residents == "ca"


@pytest.mark.parametrize(("total", "residents"), [(97, "cba"), (96, "cb"), (66, "c")])
async def test_as_many_models_stay_as_fit_with_room_to_work(tmp_path: Path, total: int, residents: str) -> None:
    house = await Several.of(tmp_path, 3, total=total)  # 3 x 30, and a quarter of 30 to work
    await house.load("a", "b", "c")
    assert house.residents == residents


async def test_memory_of_other_processes_is_subtracted(tmp_path: Path) -> None:
    gib = 2**30
    house = await Several.of(tmp_path, 2, total=10 * gib, sizes=dict.fromkeys(TRIO, 3 * gib))
    for free, residents in ((10 * gib, "ba"), (4 * gib, "b")):
        await house.has(10 * gib, free=free)
        await house.load("a", "b", device_bytes=3 * gib)
        assert house.residents == residents
        await house.models.unload_all()


async def test_the_measured_working_memory_is_kept_free(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 3, total=100)
    await house.load("a")
    for working_bytes in (40, 1):  # the largest counts
        house.engine.instead["generate"] = GENERATED.evolve(working_bytes=working_bytes, memory=house.engine.full)
        await house.work("a")
    await house.load("b")
    assert house.residents == "ba"
    await house.load("c")
    assert house.residents == "cb"
    assert house.models.victims("a") == ["b"]


async def test_shared_parts_are_counted_once(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 3, total=76)
    await house.load("a", "b", shared={"t5": 20})
    assert house.residents == "ba"
    await house.load("c")  # nobody knows yet that it has the same
    assert house.residents == "cb"
    await house.models.unload_all()
    await house.load("c", shared={"t5": 20})
    await house.models.unload_all()
    await house.load("a", "b", "c", shared={"t5": 20})
    assert house.residents == "cba"


async def test_a_model_of_unknown_size_is_loaded_alone_first_and_beside_others_later(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 3, sizes={"c": None})
    await house.load("a", "b")
    await house.load("c")
    assert house.residents == "c"
    await house.load("a")
    assert house.residents == "ac"


async def test_evictions_are_known_beforehand(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 2)
    assert house.models.victims("a") == []
    await house.load("a", "b")
    assert [house.models.victims(model) for model in "abc"] == [[], [], ["a"]]
    assert house.models.stays("c", ("b", "a")) == ("b",)
    assert house.models.stays("c", ("b",)) == ("b",)
    assert house.models.stays("c", ()) == ()
    assert (await Several.of(tmp_path, 1)).models.stays("c", ("b",)) == ()


async def test_a_load_by_hand_counts_as_a_use(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 2)
    await house.load("a", "b")
    assert await house.models.load("a") is None
    assert house.engine.asked == ["load a", "load b"]
    assert house.residents == "ab"


async def test_each_resident_model_has_its_own_time(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 3)
    await house.load("a", "b", "c")
    house.clock.now += 29 * 60
    await house.work("b")
    house.clock.now += 60
    await house.models.evict_idle({"c"})
    assert house.residents == "bc"
    assert [bool(house.models.status(model).unloads_at) for model in "abc"] == [False, True, True]


async def test_the_work_of_all_resident_models_since_the_latest_load_is_counted(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 2)
    await house.load("a", "b")
    for model in "aab":
        await house.work(model)
    assert house.models.served_s == 3 * WORK_S
    await house.load("c")
    assert house.models.served_s == 0


async def test_with_a_smaller_max_resident_the_least_recently_used_are_evicted(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 3)
    await house.load("a", "b", "c")
    events = await told(house, house.models.apply(several(1)))
    assert house.residents == "c"
    assert house.engine.asked == ["load a", "load b", "load c", "unload a", "unload b"]
    assert [event.reason for event in events if isinstance(event, ModelUnloaded)] == ["config", "config"]
    await house.models.apply(several(3))
    await house.load("a")
    assert house.residents == "ac"


@pytest.mark.parametrize("death", [CRASHED, HUNG])
async def test_a_dead_worker_loses_all_resident_models(tmp_path: Path, death: Failed) -> None:
    house = await Several.of(tmp_path, 3)
    await house.load("a", "b", "c")
    house.engine.instead["generate"] = death
    await house.work("b")
    assert house.residents == ""
    assert not any(house.models.quarantined(model) for model in "abc")


async def test_a_worker_that_is_found_dead_by_the_first_that_leaves_is_no_end_of_the_service(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 3, total=100, sizes={"c": 90})
    await house.load("a", "b")
    house.engine.instead["unload"] = CRASHED
    assert await house.models.ensure("c") is None
    assert (house.engine.asked[2:], house.residents) == (["unload a", "load c"], "c")
    await house.load("a")
    house.engine.instead["unload"] = CRASHED
    house.clock.now += 31 * 60
    await house.models.evict_idle()
    assert house.residents == ""


# -- out of memory beside others ---------------------------------------------------------------------------------------


async def test_a_load_that_runs_out_of_memory_beside_others_is_tried_once_more_without_them(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 3)
    await house.load("a", "b")
    house.engine.instead["load"] = OUT_OF_MEMORY.evolve(need_bytes=10**15)
    events = await told(house, house.models.ensure("c"))
    assert house.engine.asked[2:] == ["load c", "unload a", "unload b", "load c"]
    assert house.residents == "c"
    assert [type(event) for event in events].count(ModelLoading) == 1
    assert ModelFailed not in map(type, events)
    switches = [it.switching for it in house.engine.commands if isinstance(it, Unload)]
    assert switches == [True, True]  # what `c` shares with them stays
    await house.measure(VAST)
    await house.models.check_fits("c", 10**6)  # what it took in company says nothing


async def test_a_picture_that_runs_out_of_memory_beside_others_is_tried_once_more_without_them(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 3, host_cache_gb=1)
    await house.load("a", "b", "c")
    house.engine.instead["generate"] = OUT_OF_MEMORY.evolve(need_bytes=10**15)
    events = await told(house, asserted(house.work("b"), Generated))
    assert house.engine.asked[3:] == ["generate b", "unload a", "unload c", "generate b"]
    assert house.residents == "b"
    assert kept_warm(house) == [False, False]
    assert [(event.model, event.reason) for event in events if isinstance(event, ModelUnloaded)] == [
        ("a", "room"),
        ("c", "room"),
    ]
    await house.measure(VAST)
    await house.models.check_fits("b", 10**6)


async def asserted(work: Awaitable[object], kind: type) -> None:
    assert isinstance(await work, kind)


async def test_a_task_that_is_out_of_memory_alone_fails_and_is_not_retried_for_ever(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 3)
    await house.load("a", "b")
    alone = OUT_OF_MEMORY.evolve(message="The weights take 3 of 4 GiB.")
    house.engine.always["generate"] = alone
    assert await house.work("b") == alone
    assert house.engine.asked[2:] == ["generate b", "unload a", "generate b"]
    assert await house.work("b") == alone
    assert house.engine.asked[5:] == ["generate b"]
    house.engine.always["load"] = alone
    assert await house.models.ensure("c") == alone
    assert house.engine.asked[6:] == ["load c", "unload b", "load c"]
    assert house.models.status("c").error == alone


async def test_a_shared_call_that_is_out_of_memory_evicts_nothing(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 2)
    await house.load("a", "b")
    house.engine.instead["generate"] = OUT_OF_MEMORY
    outcome = await house.models.generate(
        "b", request_for(batch_size=2), InputPictures(), threading.Event(), lambda *step: None, together=True
    )
    assert (outcome, house.residents) == (OUT_OF_MEMORY, "ba")


async def test_models_that_ran_out_of_memory_together_are_apart_for_some_loads(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 2)
    await house.load("a", "b")
    house.engine.instead["generate"] = OUT_OF_MEMORY
    await house.work("b")
    for _ in range(CROWDED_FOR // 2):
        await house.load("a")
        assert house.residents == "a"
        await house.load("b")
        assert house.residents == "b"
    await house.load("a")
    assert house.residents == "ab"


async def test_another_entry_may_stay_where_the_one_before_ran_out_of_memory(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 2)
    await house.load("a", "b")
    house.engine.instead["generate"] = OUT_OF_MEMORY
    await house.work("b")
    changed = several(2)
    await house.models.apply(changed.evolve(models=TRIO | {"a": spec(name="a", gpu_memory_fraction=0.9)}))
    await house.load("a")
    assert house.residents == "ab"


async def test_a_model_that_is_lost_when_others_leave_for_its_picture_is_loaded_again(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 2)
    await house.load("a", "b")
    house.engine.instead |= {"generate": OUT_OF_MEMORY, "unload": CRASHED}
    assert isinstance(await house.work("b"), Generated)
    assert house.engine.asked[2:] == ["generate b", "unload a", "load b", "generate b"]
    assert not house.models.quarantined("b")


async def test_a_model_that_is_lost_and_does_not_load_again_kills_one_worker_and_not_two(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 2)
    await house.load("a", "b")
    house.engine.instead |= {"generate": OUT_OF_MEMORY, "unload": CRASHED, "load": CRASHED}
    assert await house.work("b") == CRASHED
    assert not house.models.quarantined("b")


async def test_an_abandoned_load_evicts_no_model(tmp_path: Path) -> None:
    house = await Several.of(tmp_path, 2)
    await house.load("a")
    house.engine.instead["load"] = OUT_OF_MEMORY
    house.engine.on_call = lambda call: house.models.abandon_load("b")
    await house.models.ensure("b")
    assert house.engine.asked[1:] == ["load b"]
    assert house.residents == "a"
