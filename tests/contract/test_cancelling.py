"""Cancelling while a model is loaded, with a real worker process: the task ends at once, the worker after a grace."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from imagegen.app import Service
from imagegen.core.events import Event, StreamEvent, Subscription
from imagegen.core.task import GenerationTask, TaskStatus, TaskType
from imagegen.gpu import executor
from imagegen.gpu.engine import Engine, LocalEngine
from imagegen.gpu.executor import GpuExecutor
from imagegen.gpu.protocol import EngineOptions
from imagegen.gpu.worker_engine import WorkerEngine
from imagegen.models.residency import ModelState
from imagegen.storage.journal import TaskJournal
from imagegen.tasks.admission import TaskDraft
from imagegen.testing.service import make_service
from tests.conftest import CPU

FOR_EVER = {"load_seconds": 60}
#: Bytes of a file of weights.
SIZE = 8 * 2**20


class House:
    """A service without HTTP."""

    def __init__(self, made: Service, journal: TaskJournal) -> None:
        services = made.services
        self.journal, self.bus, self.device, self.tasks = journal, services.bus, services.device, services.tasks
        self.models = self.device.models

    async def submit(self, model: str) -> str:
        return (await self.tasks.submit(TaskDraft(type=TaskType.TEXT2IMAGE, model=model, prompt="x"))).id

    async def until_loading(self, model: str) -> None:
        while self.models.status(model).state is not ModelState.LOADING:
            await asyncio.sleep(0.01)

    async def until_ended(self, task_id: str) -> TaskStatus:
        while not (task := await self.tasks.records.get(task_id)).status.finished:
            await asyncio.sleep(0.01)
        return task.status


@asynccontextmanager
async def opened(
    root: Path,
    *,
    grace_s: float = 0,
    engine: Engine | None = None,
    journal: TaskJournal | None = None,
    **models: Any,
) -> AsyncIterator[House]:
    engine = engine or WorkerEngine(CPU)
    journal = journal or TaskJournal(root / "tasks.sqlite3")
    limits = {"max_queue": 9, "max_batch_size": 4, "max_pixels": 10_000, "cancel_grace_s": grace_s}
    async with make_service(
        models, folder=root, engine=GpuExecutor(lambda: engine), journal=journal, models_dir=root, **limits
    ) as made:
        yield House(made, journal)


async def test_a_cancelled_load_ends_its_task_at_once_and_its_model_is_no_worse_for_it(tmp_path: Path) -> None:
    async with opened(tmp_path, stuck=FOR_EVER, good={}) as house:
        for _ in range(2):  # as many as would quarantine a model that kills its worker
            stuck, good = await house.submit("stuck"), await house.submit("good")
            await house.until_loading("stuck")
            assert (await house.tasks.cancel(stuck)).status is TaskStatus.CANCELLED
            assert (await house.tasks.cancel(stuck)).status is TaskStatus.CANCELLED
            assert await house.until_ended(good) is TaskStatus.COMPLETED
            assert (await house.tasks.records.get(stuck)).attempt == 0
            await house.tasks.between_tasks(house.models.unload_all)
        assert not house.models.quarantined("stuck")
        assert house.models.status("stuck").state is ModelState.COLD


async def test_a_load_that_ends_within_the_grace_is_not_lost(tmp_path: Path) -> None:
    async with opened(tmp_path, grace_s=60, slow={"load_seconds": 0.5}) as house:
        cancelled = await house.submit("slow")
        await house.until_loading("slow")
        await house.tasks.cancel(cancelled)
        assert await house.until_ended(await house.submit("slow")) is TaskStatus.COMPLETED
        assert [event.event.name for event in house.bus.history(cancelled)] == [
            "queued",
            "started",
            "loading",
            "cancelled",
        ]


async def test_a_load_that_another_task_needs_continues(tmp_path: Path) -> None:
    engine = WorkerEngine(CPU)
    async with opened(tmp_path, engine=engine, slow={"load_seconds": 0.5}) as house:
        cancelled, other = await house.submit("slow"), await house.submit("slow")
        await house.until_loading("slow")
        pid = engine.pid
        await house.tasks.cancel(cancelled)
        assert await house.until_ended(other) is TaskStatus.COMPLETED
        assert engine.pid == pid


async def test_in_a_thread_the_task_ends_at_once_and_the_load_continues(tmp_path: Path) -> None:
    async with opened(tmp_path, engine=LocalEngine(CPU), slow={"load_seconds": 0.5}) as house:
        cancelled = await house.submit("slow")
        await house.until_loading("slow")
        assert (await house.tasks.cancel(cancelled)).status is TaskStatus.CANCELLED
        assert house.models.status("slow").state is ModelState.LOADING
        assert await house.until_ended(await house.submit("slow")) is TaskStatus.COMPLETED


# -- how far a load is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [WorkerEngine, LocalEngine])
async def test_a_task_and_a_model_tell_how_far_their_load_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[EngineOptions], Engine]
) -> None:
    monkeypatch.setattr(executor, "LOOK_EVERY_S", 0.02)
    (tmp_path / "weights").write_bytes(bytes(SIZE))
    slow = {"local_path": "weights", "read_seconds_per_mib": 0.05}
    async with opened(tmp_path, engine=make(CPU), slow=slow) as house:
        with house.bus.subscribe() as everything:
            task_id = await house.submit("slow")
            with house.bus.subscribe(task_id) as its_own:
                await house.until_loading("slow")
                while (progress := house.models.status("slow").load_progress) is None or not progress.percent:
                    await asyncio.sleep(0.01)
                assert await house.until_ended(task_id) is TaskStatus.COMPLETED
        assert progress.bytes_total == SIZE
        for name, listener in (("loading", its_own), ("model_loading", everything)):
            told = [event for event in await all_of(listener) if event.name == name]
            done = [event.bytes_done for event in told]  # type: ignore[attr-defined]
            assert len(done) > 3
            assert done[0] == 0
            assert done == sorted(set(done))
            assert done[-1] <= SIZE
            assert {event.bytes_total for event in told[1:]} == {SIZE}  # type: ignore[attr-defined]
        remembered = [published.event.name for published in house.bus.history(task_id)]
        assert remembered.count("loading") == 1


async def all_of(listener: Subscription) -> list[Event]:
    listener.end("stopping")
    return [it.event async for it in listener if not isinstance(it.event, StreamEvent)]


async def test_a_cancelled_task_gets_no_progress_of_its_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "LOOK_EVERY_S", 0.02)
    (tmp_path / "weights").write_bytes(bytes(SIZE))
    slow = {"local_path": "weights", "read_seconds_per_mib": 0.05}
    async with opened(tmp_path, grace_s=60, slow=slow) as house:
        task_id = await house.submit("slow")
        with house.bus.subscribe(task_id) as its_own:
            while not house.models.status("slow").load_progress:
                await asyncio.sleep(0.01)
            await house.tasks.cancel(task_id)
            while house.models.status("slow").state is ModelState.LOADING:
                await asyncio.sleep(0.01)
        assert (await all_of(its_own))[-1].name == "cancelled"


# -- an end is told once it is on disk, and comes once -----------------------------------------------------------------


class SlowDisk(TaskJournal):
    """Writes no end of a task until the test allows it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.refused = asyncio.Event()
        self.let = asyncio.Event()

    async def update(self, *changed: GenerationTask) -> None:
        if any(task.status.finished for task in changed):
            self.refused.set()
            await self.let.wait()
        await super().update(*changed)


@asynccontextmanager
async def on_a_slow_disk(root: Path, **models: Any) -> AsyncIterator[tuple[House, SlowDisk]]:
    disk = SlowDisk(root / "slow.sqlite3")
    async with opened(root, journal=disk, engine=LocalEngine(CPU), grace_s=60, **models) as house:
        try:
            yield house, disk
        finally:
            disk.let.set()


async def test_an_end_is_on_disk_before_it_is_published(tmp_path: Path) -> None:
    async with on_a_slow_disk(tmp_path, quick={}) as (house, disk):
        task_id = await house.submit("quick")
        await disk.refused.wait()
        assert (await house.tasks.records.get(task_id)).status is TaskStatus.PROCESSING
        assert "completed" not in [told.event.name for told in house.bus.history(task_id)]
        disk.let.set()
        assert await house.until_ended(task_id) is TaskStatus.COMPLETED


async def test_a_load_that_ends_while_its_cancelled_task_is_written_down_ends_it_no_second_time(tmp_path: Path) -> None:
    async with on_a_slow_disk(tmp_path, slow={"load_seconds": 0.5}) as (house, disk):
        task_id = await house.submit("slow")
        await house.until_loading("slow")
        cancelling = asyncio.create_task(house.tasks.cancel(task_id))
        await disk.refused.wait()
        assert (await house.tasks.cancel(task_id)).status is TaskStatus.PROCESSING  # once more, and it changes nothing
        while house.models.status("slow").state is not ModelState.RESIDENT:
            await asyncio.sleep(0.01)
        await house.tasks.between_tasks(house.models.warm_up)  # the run loop has gone on
        disk.let.set()
        assert (await cancelling).status is TaskStatus.CANCELLED
        assert [told.event.name for told in house.bus.history(task_id)].count("cancelled") == 1
