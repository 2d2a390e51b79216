"""Tasks whose model's weights are being pulled: they wait beside the queue, and other tasks run."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from imagegen.core.errors import FailureCode, QueueFull
from imagegen.core.events import Event, TaskDownloading
from imagegen.core.task import GenerationTask, TaskStatus, TaskType
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.executor import GpuExecutor
from imagegen.hub.process import OnProgress
from imagegen.hub.protocol import Fetch, Fetched, Progress, Refused
from imagegen.hub.puller import PullState
from imagegen.tasks.admission import Limits, TaskDraft
from imagegen.testing.managers import Managers
from tests.conftest import CPU, fake_catalog

LIMITS = Limits(max_queue=3, max_batch_size=1, max_pixels=10_000)
GATED = Refused(code=FailureCode.HUB_GATED, message="Accept the licence.")


class House(Managers):
    """The managers with a fake engine and a scripted download. `far` is on the hub, `near` needs no weights."""

    def __init__(self, root: Path, *, auto_download: bool = True) -> None:
        catalog = fake_catalog(far={"hf_path": "org/far"}, near={})
        catalog = catalog.evolve(settings=catalog.settings.evolve(auto_download=auto_download))
        super().__init__(root, GpuExecutor(lambda: LocalEngine(CPU)), catalog, limits=LIMITS, fetch=self._fetch)
        self.downloads = 0
        self.fetching = False
        self.tell: OnProgress = lambda progress: None
        self.end: asyncio.Future[Fetched | Refused] = asyncio.Future()

    async def _fetch(self, command: Fetch, on_progress: OnProgress) -> Fetched | Refused:
        self.downloads += 1
        self.tell = on_progress
        self.end = asyncio.Future()
        self.fetching = True
        try:
            return await self.end
        finally:
            self.fetching = False

    async def submit(self, model: str, priority: int = 0) -> str:
        draft = TaskDraft(type=TaskType.TEXT2IMAGE, model=model, prompt="x", priority=priority)
        return (await self.tasks.submit(draft)).id

    async def until(self, task_id: str, *, downloading: bool = False) -> GenerationTask:
        """Wait until the task has ended or its weights are being pulled, and return it."""
        while True:
            task, pull = await self.tasks.records.get(task_id), self.tasks.pull_of(task_id)
            on_its_way = self.fetching and pull is not None and pull.state is PullState.DOWNLOADING
            if on_its_way if downloading else task.status.finished:
                return task
            await asyncio.sleep(0.001)

    def events(self, task_id: str) -> list[Event]:
        return [published.event for published in self.bus.history(task_id)]


@asynccontextmanager
async def opened(root: Path, **options: Any) -> AsyncIterator[House]:
    house = House(root, **options)
    running = asyncio.create_task(house.tasks.run()), asyncio.create_task(house.puller.run())
    try:
        yield house
    finally:
        house.tasks.begin_drain()
        house.puller.begin_drain()
        await running[0]
        await house.close(*running)


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


async def test_a_task_waits_for_its_weights_and_the_others_go_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        far = await house.submit("far", priority=-1)
        near = await house.submit("near")
        assert (await house.until(near)).status is TaskStatus.COMPLETED
        waiting = await house.until(far, downloading=True)
        assert (waiting.status, waiting.attempt, waiting.started_at) == (TaskStatus.PENDING, 0, None)
        assert (house.tasks.queue_size, house.tasks.outlook(waiting)) == (1, (0, None, None))
        house.tell(Progress(bytes_done=5, bytes_total=10))
        house.end.set_result(Fetched())
        assert (await house.until(far)).status is TaskStatus.COMPLETED
        assert house.downloads == 1
        assert [event.name for event in house.events(far)][:2] == ["queued", "downloading"]


async def test_bytes_are_reported_in_the_tasks_stream(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        far = await house.submit("far")
        await house.until(far, downloading=True)
        with house.bus.subscribe(far) as events:
            for done in (100, 101, 500):
                house.tell(Progress(bytes_done=done, bytes_total=1000))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            house.end.set_result(Fetched())
            seen = []
            async for published in events:
                seen.append(published.event)
                if published.event.final:
                    break
        assert [e.bytes_done for e in seen if isinstance(e, TaskDownloading)] == [0, 100, 500]


async def test_a_failed_pull_fails_all_tasks_that_wait_for_it_with_its_message(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        ids = [await house.submit("far") for _ in range(2)]
        for task_id in ids:
            await house.until(task_id, downloading=True)
        house.end.set_result(GATED)
        for task_id in ids:
            failure = (await house.until(task_id)).failure
            assert failure is not None
            assert (failure.code, failure.message) == (GATED.code, GATED.message)
        again = await house.submit("far")
        await house.until(again, downloading=True)
        assert house.downloads == 2


async def test_a_cancelled_pull_fails_the_tasks_that_wait_for_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        far = await house.submit("far")
        await house.until(far, downloading=True)
        house.puller.cancel("far")
        failure = (await house.until(far)).failure
        assert failure is not None
        assert failure.code is FailureCode.PULL_CANCELLED


async def cancel_it(house: House, task_id: str) -> None:
    await house.tasks.cancel(task_id)


async def clear_all(house: House, task_id: str) -> None:
    assert await house.tasks.clear() == 1


@pytest.mark.parametrize("stop", [cancel_it, clear_all])
async def test_a_task_that_waits_for_weights_can_be_cancelled(tmp_path: Path, stop: Callable[..., Any]) -> None:
    async with opened(tmp_path) as house:
        far = await house.submit("far")
        await house.until(far, downloading=True)
        await stop(house, far)
        assert (await house.tasks.records.get(far)).status is TaskStatus.CANCELLED
        assert house.tasks.queue_size == 0
        late = await house.submit("far")
        await house.until(late, downloading=True)
        house.end.set_result(Fetched())
        assert (await house.until(late)).status is TaskStatus.COMPLETED
        assert house.downloads == 1


async def test_tasks_that_wait_for_weights_count_in_the_queue(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        ids = [await house.submit("far") for _ in range(3)]
        for task_id in ids:
            await house.until(task_id, downloading=True)
        with pytest.raises(QueueFull):
            await house.submit("near")
        for task_id in ids:
            assert house.tasks.outlook(await house.tasks.records.get(task_id)) == (0, None, None)


async def test_after_a_restart_it_waits_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        far = await house.submit("far")
        await house.until(far, downloading=True)
    async with opened(tmp_path) as house:
        assert (await house.until(far, downloading=True)).status is TaskStatus.PENDING
        house.end.set_result(Fetched())
        assert (await house.until(far)).status is TaskStatus.COMPLETED


async def test_weights_that_another_program_downloads_meanwhile_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as house:
        looks = iter([False])
        monkeypatch.setattr(house.puller, "is_here", lambda model: next(looks, True))
        far = await house.submit("far")
        assert (await house.until(far)).status is TaskStatus.COMPLETED
        assert house.downloads == 0


async def test_without_auto_download_nothing_is_fetched(tmp_path: Path) -> None:
    async with opened(tmp_path, auto_download=False) as house:
        far = await house.submit("far")
        assert (await house.until(far)).status is TaskStatus.COMPLETED  # a fake model needs no weights
        assert house.downloads == 0
