"""TaskManager with a scripted engine and a clock that the test advances: intake, runner, stopping."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from imagegen.api.native.tasks.view import task_view
from imagegen.core.errors import (
    DeviceFault,
    Draining,
    FailureCode,
    ImageNotFound,
    KeyReused,
    ModelQuarantined,
    NoReceipt,
    QueueFull,
    StorageFull,
    TaskFinished,
    TaskNotFound,
)
from imagegen.core.events import TaskMoved, TaskQueued
from imagegen.core.task import GenerationTask, InputPictures, StoredImage, TaskStatus, TaskType
from imagegen.gpu.protocol import Failed
from imagegen.storage.images import FileStore
from imagegen.storage.journal import Claim, TaskFilter, TaskJournal
from imagegen.tasks.admission import Limits, TaskDraft
from imagegen.testing.clock import Clock
from imagegen.testing.engine import BROKEN, CRASHED, OUT_OF_MEMORY, SCRIPTED, ScriptedEngine
from imagegen.testing.managers import Managers
from tests.conftest import fake_catalog
from tests.unit.conftest import task_id as id_of
from tests.unit.conftest import task_of

LIMITS = Limits(max_queue=4, max_batch_size=2, max_pixels=10_000)
BROKEN_DEVICE = Failed(code=FailureCode.DEVICE_FAULT, message="The device is broken.")


#: The most pictures of one call of `a`.
MAX_BATCH = 4


class GatedJournal(TaskJournal):
    """A journal whose updates of some tasks wait until the test opens the gate, or fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.holds: Callable[[GenerationTask], bool] = lambda task: False
        self.refuses: Callable[[GenerationTask], bool] = lambda task: False
        self.waiting = asyncio.Event()
        self.gate = asyncio.Event()

    async def update(self, *changed: GenerationTask) -> None:
        if any(map(self.refuses, changed)):
            raise StorageFull
        if any(map(self.holds, changed)):
            self.waiting.set()
            await self.gate.wait()
        await super().update(*changed)


class SlowBucket:
    """A store of pictures that takes a picture once the test opens the gate."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.called = asyncio.Event()
        self.files: dict[str, bytes] = {}

    async def put(self, name: str, data: bytes, media_type: str) -> None:
        self.called.set()
        await self.gate.wait()
        self.files[name] = data

    async def pieces(self, name: str, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        yield self.files[name][start:stop]

    async def size(self, name: str) -> int:
        if name not in self.files:
            raise ImageNotFound
        return len(self.files[name])

    async def delete(self, names: Collection[str]) -> None:
        for name in names:
            self.files.pop(name, None)

    async def url(self, name: str, method: Literal["GET", "HEAD"]) -> str | None:
        return None


class House(Managers):
    """The managers with a scripted engine, a clock that stands still, and a journal with a gate."""

    journal: GatedJournal

    def __init__(self, root: Path, bucket: FileStore | None, models: dict[str, Any]) -> None:
        self.clock = Clock()
        self.engine = ScriptedEngine(waits=True)
        catalog = fake_catalog(**({"a": {"max_batch": MAX_BATCH}, "b": {}} | models))
        journal = GatedJournal(root / "tasks.sqlite3")
        super().__init__(root, self.engine, catalog, limits=LIMITS, journal=journal, bucket=bucket, clock=self.clock)

    async def submit(self, model: str = "a", **fields: Any) -> str:
        return (await self.tasks.submit(draft(model, **fields))).id

    async def record(self, task_id: str) -> GenerationTask:
        return await self.tasks.records.get(task_id)

    async def until(self, task_id: str, name: str, times: int = 1) -> None:
        """Wait until the task has had this many events of this name."""
        with self.bus.subscribe(task_id) as events:
            async for published in events:
                times -= published.event.name == name
                if times == 0:
                    return
                assert not published.event.final, f"ended with {published.event.name}, and no {name} came"

    async def ended(self, task_id: str) -> GenerationTask:
        with self.bus.subscribe(task_id) as events:
            async for published in events:
                if published.event.final:
                    break
        return await self.record(task_id)

    def names(self, task_id: str) -> list[str]:
        return [published.event.name for published in self.bus.history(task_id)]

    async def make(self, seconds: float = 1) -> None:
        """End the running call, or the next one, with success."""
        await self.engine.until_generating()
        self.clock.now += seconds
        self.engine.answer(None)

    async def fail_call(self, outcome: Failed) -> None:
        """End the running call, or the next one, with a failure."""
        await self.engine.until_generating()
        self.engine.answer(outcome)

    async def learn_to_pair(self) -> None:
        """After two calls of one picture, a call of two is tried."""
        for _ in range(2):
            task_id = await self.submit()
            await self.make()
            await self.ended(task_id)

    async def together(self, number: int) -> list[str]:
        """This many tasks in one running call."""
        blocker = await self.submit("b")
        await self.engine.until_generating()
        ids = [await self.submit() for _ in range(number)]
        self.engine.answer(None)
        await self.ended(blocker)
        for task_id in ids:
            await self.until(task_id, "started")
        assert len((await self.engine.until_generating()).companions) == number - 1
        return ids

    async def pair(self) -> list[str]:
        """Two tasks in one running call."""
        await self.learn_to_pair()
        return await self.together(2)

    async def four(self) -> list[str]:
        """Four tasks in one running call, after a fast call of two."""
        pair = await self.pair()
        await self.make()
        for task_id in pair:
            await self.ended(task_id)
        return await self.together(4)


def draft(model: str = "a", **fields: Any) -> TaskDraft:
    return TaskDraft(type=TaskType.TEXT2IMAGE, model=model, prompt="x", **fields)


@asynccontextmanager
async def closed_house(root: Path, bucket: FileStore | None = None, **models: Any) -> AsyncIterator[House]:
    """Its run loop is not started."""
    house = House(root, bucket, models)
    try:
        yield house
    finally:
        await house.close()


@asynccontextmanager
async def running(house: House) -> AsyncIterator["asyncio.Task[None]"]:
    """Its run loop runs; at the end it is stopped like by kill -9."""
    loop = asyncio.create_task(house.tasks.run())
    try:
        yield loop
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError, ExceptionGroup):
            await loop


@asynccontextmanager
async def opened(root: Path, bucket: FileStore | None = None, **models: Any) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(closed_house(root, bucket, **models))
        await stack.enter_async_context(running(house))
        yield house


# -- intake: accepting -------------------------------------------------------------------------------------------------


async def test_an_accepted_task_is_on_disk_and_in_the_queue(tmp_path: Path) -> None:
    async with closed_house(tmp_path) as house:
        first, second = await house.submit(), await house.submit()
        assert [task.id for task in await house.journal.unfinished()] == [first, second]
        assert house.tasks.queue_size == 2
        (published,) = house.bus.history(second)
        assert isinstance(published.event, TaskQueued)
        assert published.event.position == 1


async def test_a_task_whose_caller_disconnects_is_still_queued(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        submitting = asyncio.create_task(house.tasks.submit(draft()))
        while house.tasks.queue_size == 0:  # it is on its way to the journal
            await asyncio.sleep(0)
        submitting.cancel()
        await house.make()
        (task,) = (await house.tasks.records.page(TaskFilter(), 10)).tasks
        assert (await house.ended(task.id)).status is TaskStatus.COMPLETED


async def test_a_full_queue_refuses_and_counts_tasks_that_are_still_being_written(tmp_path: Path) -> None:
    async with closed_house(tmp_path) as house:
        answers = await asyncio.gather(*(house.submit() for _ in range(6)), return_exceptions=True)
        assert sum(isinstance(answer, QueueFull) for answer in answers) == 2
        assert house.tasks.queue_size == await house.tasks.records.count() == 4


async def test_a_quarantined_model_takes_no_task_and_no_plan(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        task_id = await house.submit()
        for _ in range(2):
            house.engine.holds = True
            await house.engine.until_loading()
            house.engine.end_load(CRASHED)
        await house.ended(task_id)
        with pytest.raises(ModelQuarantined):
            await house.submit()
        with pytest.raises(ModelQuarantined):
            await house.tasks.plan(draft())


async def test_a_service_that_drains_takes_no_task(tmp_path: Path) -> None:
    async with closed_house(tmp_path) as house:
        assert not house.tasks.draining
        house.tasks.begin_drain()
        assert house.tasks.draining
        with pytest.raises(Draining):
            await house.submit()
        with pytest.raises(Draining):
            await house.tasks.between_tasks(house.journal.count)


async def test_a_plan_accepts_nothing(tmp_path: Path) -> None:
    async with closed_house(tmp_path) as house:
        await house.submit()
        plan = await house.tasks.plan(draft("b", seed=3))
        assert (plan.model, plan.request.seed, plan.outlook.position) == ("b", 3, 1)
        assert house.tasks.queue_size == await house.tasks.records.count() == 1


async def test_a_key_makes_one_task_even_while_the_queue_is_full(tmp_path: Path) -> None:
    async with closed_house(tmp_path) as house:
        first = await house.tasks.submit_once(draft(), Claim("key", "digest"))
        for _ in range(3):
            await house.submit()
        again = await house.tasks.submit_once(draft(), Claim("key", "digest"))
        assert (first.repeated, again.repeated, again.task.id) == (False, True, first.task.id)
        with pytest.raises(KeyReused):
            await house.tasks.submit_once(draft(), Claim("key", "another digest"))
        with pytest.raises(QueueFull):
            await house.tasks.submit_once(draft(), Claim("another key", "digest"))


async def test_a_replay_asks_for_the_same_pictures_and_needs_a_receipt(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        first = await house.submit(seed=5)
        with pytest.raises(NoReceipt):
            await house.tasks.submit(await house.tasks.redraft(first))
        await house.make()
        made = await house.ended(first)
        replay = await house.tasks.submit(await house.tasks.redraft(first))
        assert (replay.request, replay.status) == (made.request, TaskStatus.PENDING)
        assert replay.replay is not None
        assert replay.replay.of == first
        assert replay.replay.pixels_sha256 == (made.images[0].pixels_sha256,)


# -- intake: what an earlier run left ----------------------------------------------------------------------------------


async def left(house: House, **fields: Any) -> str:
    """A task of an earlier run in the journal."""
    task = await house.journal.insert(task_of(1, model="a"), InputPictures())
    assert isinstance(task, GenerationTask)
    await house.journal.update(task.evolve(**fields))
    return task.id


@pytest.mark.parametrize("status", [TaskStatus.PENDING, TaskStatus.PROCESSING])
async def test_a_task_that_an_earlier_run_left_is_queued_with_its_attempts_and_its_seed(
    tmp_path: Path, status: TaskStatus
) -> None:
    async with closed_house(tmp_path) as house:
        task_id = await left(house, status=status, attempt=1)
        async with running(house):
            assert (await house.engine.until_generating()).request == task_of(1).request
            house.engine.answer(None)
            task = await house.ended(task_id)
            assert (task.status, task.attempt) == (TaskStatus.COMPLETED, 2)


async def test_a_task_that_was_interrupted_in_its_last_attempt_fails(tmp_path: Path) -> None:
    async with closed_house(tmp_path) as house:
        task_id = await left(house, status=TaskStatus.PROCESSING, attempt=2)
        async with running(house):
            task = await house.ended(task_id)
        assert task.failure is not None
        assert (task.failure.code, task.attempt) == (FailureCode.INTERRUPTED, 2)
        assert await house.journal.get(task_id) == task


async def test_pictures_that_the_spool_has_lost_are_made_again_and_that_attempt_does_not_count(tmp_path: Path) -> None:
    async with closed_house(tmp_path, SlowBucket()) as house:
        lost = (StoredImage(path=f"20261123/{id_of(1)}-0.png", width=8, height=6, seed=7, bytes=9),)
        task_id = await left(house, status=TaskStatus.PROCESSING, attempt=2, storing=lost)
        async with running(house):
            await house.engine.until_generating()
            task = await house.record(task_id)
            assert (task.status, task.attempt, task.storing) == (TaskStatus.PROCESSING, 2, ())


async def test_pictures_that_wait_in_the_spool_are_stored_and_not_made_again(tmp_path: Path) -> None:
    bucket = SlowBucket()
    async with opened(tmp_path, bucket) as house:
        task_id = await house.submit()
        await house.make()
        await bucket.called.wait()
    async with opened(tmp_path, bucket) as house:
        bucket.gate.set()
        task = await house.ended(task_id)
        assert (task.status, task.attempt, len(task.images), task.storing) == (TaskStatus.COMPLETED, 1, 1, ())
        assert house.names(task_id) == ["saved", "completed"]
        assert list(bucket.files) == [task.images[0].path]


async def test_a_restart_gives_no_deadline_more_time(tmp_path: Path) -> None:
    async with closed_house(tmp_path) as house:
        task_id = await left(house, deadline_s=60.0)  # accepted long ago
        async with running(house):
            task = await house.ended(task_id)
        assert task.failure is not None
        assert task.failure.code is FailureCode.DEADLINE_EXCEEDED


# -- runner: one attempt -----------------------------------------------------------------------------------------------


async def test_an_attempt_counts_once_the_model_is_loaded(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        house.engine.holds = True
        task_id = await house.submit()
        await house.engine.until_loading()
        for task in (await house.record(task_id), await house.journal.get(task_id)):
            assert task is not None
            assert (task.status, task.attempt) == (TaskStatus.PROCESSING, 0)
        house.engine.end_load(None)
        await house.engine.until_generating()
        for task in (await house.record(task_id), await house.journal.get(task_id)):
            assert task is not None
            assert (task.status, task.attempt) == (TaskStatus.PROCESSING, 1)
        house.engine.answer(None)
        task = await house.ended(task_id)
        assert (task.status, task.attempt, task.provenance) == (TaskStatus.COMPLETED, 1, SCRIPTED)
        assert house.names(task_id) == ["queued", "started", "loading", "loaded", "saved", "completed"]


async def test_the_end_of_a_running_task_is_expected_from_what_the_last_one_took(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        first = await house.submit("b")
        await house.make(seconds=8)
        await house.ended(first)
        house.clock.now += 100
        second, third = await house.submit("b"), await house.submit("b")
        await house.engine.until_generating()
        house.engine.step(3, 4)
        running, waiting = [house.tasks.outlook(await house.record(it)) for it in (second, third)]
        assert running is not None
        assert running.start_at is not None
        assert running.finish_at is not None
        assert running.position is None
        assert 1 < (running.finish_at - running.start_at).total_seconds() < 3
        assert waiting is not None
        assert waiting.start_at is not None
        assert waiting.finish_at is not None
        assert waiting.position == 0
        assert (waiting.finish_at - waiting.start_at).total_seconds() == pytest.approx(8, abs=0.1)


async def test_a_late_listener_gets_a_changed_position(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        await house.submit("b")
        await house.engine.until_generating()
        last, before = await house.submit(), await house.submit(priority=-1)
        with house.bus.subscribe(last, after=house.bus.last_id) as events:
            house.tasks.publish_position(last)
            published = await events.next()
        assert published is not None
        assert isinstance(published.event, TaskMoved)
        assert published.event.position == 1
        house.tasks.publish_position(before)
        assert house.bus.last_id == published.id


async def test_the_pictures_of_a_task_that_is_being_ended_can_be_fetched(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        house.journal.holds = lambda task: task.status is TaskStatus.COMPLETED
        task_id = await house.submit()
        await house.make()
        await house.journal.waiting.wait()
        assert house.names(task_id)[-1] == "saved"
        task = await house.record(task_id)
        assert task.status is TaskStatus.PROCESSING
        assert await house.tasks.records.picture(task.images[0].path) == task.images[0]
        assert house.tasks.outlook(task) is None
        house.journal.gate.set()
        assert (await house.ended(task_id)).status is TaskStatus.COMPLETED


async def test_an_end_that_the_disk_refuses_is_an_end_and_is_written_later(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        house.journal.refuses = lambda task: task.status.finished
        task_id = await house.submit()
        await house.make()
        task = await house.ended(task_id)
        assert task.status is TaskStatus.COMPLETED
        assert await house.journal.get(task_id) != task
        with pytest.raises(StorageFull):
            await house.tasks.records.write_ends()
        house.journal.refuses = lambda task: False
        await asyncio.gather(house.tasks.records.write_ends(), house.tasks.records.write_ends())
        assert await house.journal.get(task_id) == task


async def test_control_tickets_run_before_waiting_tasks(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        first, second = await house.submit("b"), await house.submit("b")
        await house.engine.until_generating()
        assert repr(house.tasks) == (
            "<TaskManager [OPEN, Waiting: 1, Live: 2, <Call [RUNNING, Model: b, Tasks: 1, Step: 0/0]>]>"
        )
        assert house.tasks.is_running("b")
        assert not house.tasks.is_running("a")
        assert house.tasks.wanted == {"b"}

        async def statuses() -> list[TaskStatus]:
            assert not house.engine.busy
            return [(await house.record(task_id)).status for task_id in (first, second)]

        asking = asyncio.create_task(house.tasks.between_tasks(statuses))
        gone = asyncio.create_task(house.tasks.between_tasks(house.journal.count))
        await asyncio.sleep(0)
        gone.cancel()  # its caller goes away; the run loop goes on
        house.engine.answer(None)
        assert (await asking)[1] is TaskStatus.PENDING
        await house.make()
        assert (await house.ended(second)).status is TaskStatus.COMPLETED


async def test_while_a_model_works_the_files_of_the_one_that_is_loaded_next_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, c={}, d={}) as house:
        began: list[str | None] = []
        ended: list[str | None] = []

        @contextmanager
        def reading_ahead(model: str | None) -> Iterator[None]:
            began.append(model)
            yield
            ended.append(model)

        monkeypatch.setattr(house.models, "reading_ahead", reading_ahead)
        first = await house.submit("a")
        await house.engine.until_generating()
        assert (began, ended) == ([None], [])  # nobody waits
        waiting = [await house.submit("a"), await house.submit("b"), await house.submit("c")]
        await house.make()
        await house.ended(first)
        assert ended == [None]
        for task_id in waiting:
            await house.make()
            await house.ended(task_id)
        assert began == ended == [None, "b", "c", None]


# -- runner: the rules of a failed attempt -----------------------------------------------------------------------------


async def test_a_broken_device_ends_the_run_loop_and_the_task_runs_again_after_a_restart(tmp_path: Path) -> None:
    async with closed_house(tmp_path) as house:
        async with running(house) as loop:
            task_id = await house.submit()
            await house.fail_call(BROKEN_DEVICE)
            await asyncio.wait([loop])
            assert isinstance(loop.exception(), ExceptionGroup)
            assert loop.exception().subgroup(DeviceFault)  # type: ignore[union-attr]
        stored = await house.journal.get(task_id)
        assert stored is not None
        assert (stored.status, stored.attempt) == (TaskStatus.PROCESSING, 1)
    async with opened(tmp_path) as house:
        await house.make()
        task = await house.ended(task_id)
        assert (task.status, task.attempt) == (TaskStatus.COMPLETED, 2)


async def test_a_task_runs_again_after_its_worker_died_and_fails_when_that_happens_twice(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        task_id, other = await house.submit("b"), await house.submit("b")
        await house.fail_call(CRASHED)
        await house.until(task_id, "queued", times=2)
        await house.fail_call(CRASHED)
        task = await house.ended(task_id)
        assert task.failure is not None
        assert (task.failure.code, task.attempt) == (FailureCode.WORKER_CRASHED, 2)
        assert house.names(task_id) == [
            *("queued", "started", "loading", "loaded"),
            *("queued", "started", "loading", "loaded"),
            "failed",
        ]
        await house.make()
        assert (await house.ended(other)).status is TaskStatus.COMPLETED


async def test_a_load_that_kills_the_worker_is_an_attempt(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        task_id = await house.submit()
        for _ in range(2):
            house.engine.holds = True
            await house.engine.until_loading()
            house.engine.end_load(CRASHED)
        task = await house.ended(task_id)
        assert task.failure is not None
        assert (task.failure.code, task.attempt) == (FailureCode.WORKER_CRASHED, 2)


async def test_a_task_whose_model_is_quarantined_shows_no_attempt_that_never_ran(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        house.engine.always["load"] = CRASHED
        ids = await asyncio.gather(house.submit(), house.submit())
        failed = [await house.ended(task_id) for task_id in ids]
        assert [(task.failure and task.failure.code, task.attempt) for task in failed] == [
            (FailureCode.WORKER_CRASHED, 2),
            (FailureCode.MODEL_QUARANTINED, 0),
        ]


async def test_the_log_lines_of_a_load_and_of_a_failure_name_the_task(tmp_path: Path) -> None:
    with capture_logs(processors=[merge_contextvars]) as logged:
        async with opened(tmp_path) as house:
            task_id = await house.submit("b")
            await house.fail_call(BROKEN)
            await house.ended(task_id)
    named = {line["event"]: line.get("task_id") for line in logged}
    assert named["model_loaded"] == named["engine_failed"] == named["task_ended"] == task_id


@pytest.mark.parametrize("outcome", [BROKEN, OUT_OF_MEMORY])
async def test_any_other_failure_of_a_task_alone_is_its_end(tmp_path: Path, outcome: Failed) -> None:
    async with opened(tmp_path) as house:
        task_id = await house.submit()
        await house.fail_call(outcome)
        task = await house.ended(task_id)
        assert task.failure is not None
        assert (task.failure.code, task.failure.message, task.attempt) == (outcome.code, outcome.message, 1)
        assert task.completed_at is not None


async def test_each_task_of_a_shared_call_has_the_warnings_of_its_own_request(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        ids = await house.pair()
        house.engine.warnings = (("Two layers of the LoRA are ignored.",), ())
        await house.make()
        tasks = [await house.ended(task_id) for task_id in ids]
        assert [task.warnings for task in tasks] == [("Two layers of the LoRA are ignored.",), ()]
        assert [await house.journal.get(task.id) for task in tasks] == tasks
        assert [task_view(task, None, prefix="").model_dump().get("warnings") for task in tasks] == [
            list(tasks[0].warnings),
            None,
        ]


async def test_after_a_shared_call_that_failed_each_task_runs_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        ids = await house.four()
        await house.fail_call(BROKEN)
        for task_id in ids:
            command = await house.engine.until_generating()
            assert (command.companions, (await house.record(task_id)).attempt) == ((), 1)
            house.engine.answer(BROKEN if task_id == ids[0] else None)
            await house.ended(task_id)
        statuses = [(await house.record(task_id)).status for task_id in ids]
        assert statuses == [TaskStatus.FAILED] + [TaskStatus.COMPLETED] * 3


async def test_after_a_shared_call_that_was_too_large_the_tasks_run_in_smaller_calls(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        ids = await house.four()
        await house.fail_call(OUT_OF_MEMORY)
        for pair in (ids[:2], ids[2:]):
            assert len((await house.engine.until_generating()).companions) == 1
            house.engine.answer(None)
            for task_id in pair:
                task = await house.ended(task_id)
                assert (task.status, task.attempt) == (TaskStatus.COMPLETED, 1)


async def test_after_a_shared_call_that_killed_the_worker_the_attempt_counts_for_both(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        ids = await house.pair()
        await house.fail_call(CRASHED)
        for task_id in ids:
            assert (await house.engine.until_generating()).companions == ()
            house.engine.answer(None)
            task = await house.ended(task_id)
            assert (task.status, task.attempt) == (TaskStatus.COMPLETED, 2)


# -- stopping: cancel --------------------------------------------------------------------------------------------------


async def test_a_task_that_waits_is_cancelled_at_once(tmp_path: Path) -> None:
    async with closed_house(tmp_path) as house:
        task_id = await house.submit()
        task = await house.tasks.cancel(task_id)
        assert task.status is TaskStatus.CANCELLED
        assert await house.journal.get(task_id) == task
        assert house.tasks.queue_size == 0
        assert await house.tasks.cancel(task_id) == task
        with pytest.raises(TaskNotFound):
            await house.tasks.cancel(id_of(9))


async def test_a_task_whose_model_loads_is_cancelled_at_once_and_the_load_continues(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        house.engine.holds = True
        task_id = await house.submit()
        await house.engine.until_loading()
        assert (await house.tasks.cancel(task_id)).status is TaskStatus.CANCELLED
        assert house.engine.loading is not None
        house.engine.end_load(None)
        other = await house.submit()
        await house.make()
        await house.ended(other)
        assert house.names(task_id) == ["queued", "started", "loading", "cancelled"]
        assert "loading" not in house.names(other)


async def test_a_task_that_runs_is_cancelled_between_two_steps(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        task_id = await house.submit()
        await house.engine.until_generating()
        assert (await house.tasks.cancel(task_id)).status is TaskStatus.PROCESSING
        house.engine.answer(None)
        task = await house.ended(task_id)
        assert (task.status, task.images) == (TaskStatus.CANCELLED, ())
        assert house.names(task_id)[-1] == "cancelled"


async def test_a_task_that_was_cancelled_when_its_call_failed_is_cancelled(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        task_id = await house.submit()
        await house.engine.until_generating()
        await house.tasks.cancel(task_id)
        house.engine.answer(CRASHED)
        assert (await house.ended(task_id)).status is TaskStatus.CANCELLED


async def test_in_a_shared_call_a_cancelled_task_ends_at_once_and_the_other_continues(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        first, second = await house.pair()
        house.engine.step(1, 4)
        assert (await house.tasks.cancel(first)).status is TaskStatus.CANCELLED
        house.engine.step(2, 4)
        assert not house.engine.told_to_stop
        outlook = house.tasks.outlook(await house.record(second))
        assert outlook is not None
        house.engine.answer(None)
        task = await house.ended(second)
        assert (task.status, len(task.images)) == (TaskStatus.COMPLETED, 1)
        assert task.images[0].seed == task.request.seed
        assert (house.names(first).count("step"), house.names(second).count("step")) == (1, 2)
        assert house.names(first)[-1] == "cancelled"


async def test_a_shared_call_stops_once_all_its_tasks_are_cancelled(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        ids = await house.pair()
        for task_id in ids:
            assert (await house.tasks.cancel(task_id)).status is TaskStatus.CANCELLED
        assert house.engine.told_to_stop
        house.engine.answer(None)
        after = await house.submit("b")
        await house.make()
        assert (await house.ended(after)).status is TaskStatus.COMPLETED


async def test_a_task_whose_pictures_wait_for_the_store_can_be_cancelled(tmp_path: Path) -> None:
    bucket = SlowBucket()
    async with opened(tmp_path, bucket) as house:
        task_id = await house.submit()
        await house.make()
        await bucket.called.wait()
        assert (await house.tasks.cancel(task_id)).status is TaskStatus.PROCESSING
        task = await house.ended(task_id)
        assert (task.status, task.images, bucket.files) == (TaskStatus.CANCELLED, (), {})


async def test_a_completed_task_cannot_be_cancelled(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        task_id = await house.submit()
        await house.make()
        await house.ended(task_id)
        with pytest.raises(TaskFinished):
            await house.tasks.cancel(task_id)


async def test_a_task_that_returns_to_the_queue_can_be_cancelled_before_that_is_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        house.journal.holds = lambda task: task.status is TaskStatus.PENDING
        task_id = await house.submit()
        await house.fail_call(CRASHED)
        await house.journal.waiting.wait()
        assert (await house.tasks.cancel(task_id)).status is TaskStatus.CANCELLED
        house.journal.gate.set()
        other = await house.submit("b")
        await house.make()
        await house.ended(other)
        assert house.names(task_id).count("started") == 1


# -- stopping: those that wait -----------------------------------------------------------------------------------------


async def test_clear_cancels_waiting_tasks_and_not_the_running_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        first, *others = [await house.submit("b"), await house.submit(), await house.submit()]
        await house.engine.until_generating()
        assert await house.tasks.clear() == 2
        assert [(await house.record(it)).status for it in others] == [TaskStatus.CANCELLED] * 2
        house.engine.answer(None)
        assert (await house.ended(first)).status is TaskStatus.COMPLETED
        assert await house.tasks.clear() == 0


async def test_a_task_that_has_not_begun_by_its_deadline_fails(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        began = await house.submit("b", deadline_s=10)
        await house.engine.until_generating()
        late, patient = await house.submit("b", deadline_s=10), await house.submit("b", deadline_s=30)
        house.clock.now += 9
        assert await house.tasks.fail_late() == 0
        house.clock.now += 1
        assert await house.tasks.fail_late() == 1
        task = await house.ended(late)
        assert task.failure is not None
        assert (task.failure.code, task.failure.message) == (
            FailureCode.DEADLINE_EXCEEDED,
            "The task could not begin within its deadline of 10 s.",
        )
        house.engine.answer(None)
        assert (await house.ended(began)).status is TaskStatus.COMPLETED
        await house.make()
        assert (await house.ended(patient)).status is TaskStatus.COMPLETED


async def test_a_deadline_that_passes_just_before_a_task_is_taken_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        blocker, late = await house.submit("b"), await house.submit("b", deadline_s=10)
        await house.engine.until_generating()
        house.clock.now += 10
        house.engine.answer(None)
        await house.ended(blocker)
        task = await house.ended(late)
        assert task.failure is not None
        assert task.failure.code is FailureCode.DEADLINE_EXCEEDED
        assert "started" not in house.names(late)


async def test_a_late_task_does_not_join_a_call(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        await house.learn_to_pair()
        blocker = await house.submit("b")
        await house.engine.until_generating()
        first, late = await house.submit(), await house.submit(deadline_s=10)
        house.clock.now += 10
        house.engine.answer(None)
        await house.ended(blocker)
        assert (await house.engine.until_generating()).companions == ()
        house.engine.answer(None)
        assert (await house.ended(first)).status is TaskStatus.COMPLETED
        assert (await house.ended(late)).status is TaskStatus.FAILED


async def test_tasks_of_a_removed_model_fail_and_the_running_one_continues(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        blocker, removed = await house.submit("b"), await house.submit("a")
        await house.engine.until_generating()
        catalog = house.models.catalog.evolve(models={"b": house.models.catalog.model("b")})
        await house.models.apply(catalog)
        assert await house.tasks.fail_removed() == 1
        task = await house.ended(removed)
        assert task.failure is not None
        assert task.failure.code is FailureCode.MODEL_REMOVED
        house.engine.answer(None)
        assert (await house.ended(blocker)).status is TaskStatus.COMPLETED


# -- stopping: the service ---------------------------------------------------------------------------------------------


async def test_a_drain_waits_for_the_running_task_and_starts_no_other(tmp_path: Path) -> None:
    async with closed_house(tmp_path) as house, running(house) as loop:
        first, second = await house.submit("b"), await house.submit("b")
        await house.engine.until_generating()
        house.tasks.begin_drain()
        house.tasks.begin_drain()
        house.engine.answer(None)
        await asyncio.wait([loop])
        assert loop.exception() is None
        assert (await house.record(first)).status is TaskStatus.COMPLETED
        assert (await house.record(second)).status is TaskStatus.PENDING


async def test_no_task_joins_a_call_while_the_service_drains(tmp_path: Path) -> None:
    async with closed_house(tmp_path) as house, running(house) as loop:
        await house.learn_to_pair()
        await house.tasks.between_tasks(house.models.unload_all)
        house.engine.holds = True
        first, second = await house.submit(), await house.submit()
        await house.engine.until_loading()
        house.tasks.begin_drain()
        house.engine.end_load(None)
        assert (await house.engine.until_generating()).companions == ()
        house.engine.answer(None)
        await asyncio.wait([loop])
        assert (await house.record(first)).status is TaskStatus.COMPLETED
        assert (await house.record(second)).status is TaskStatus.PENDING


@pytest.mark.parametrize("outcome", [None, CRASHED])
async def test_a_hurried_drain_puts_the_running_tasks_back_and_the_attempt_does_not_count(
    tmp_path: Path, outcome: Failed | None
) -> None:
    async with closed_house(tmp_path) as house, running(house) as loop:
        ids = await house.pair()
        house.tasks.begin_drain()
        house.tasks.hurry()
        house.engine.answer(outcome)
        await asyncio.wait([loop])
        assert loop.exception() is None
        for task_id in ids:
            task = await house.journal.get(task_id)
            assert task is not None
            assert (task.status, task.attempt, task.started_at) == (TaskStatus.PENDING, 0, None)
        assert house.tasks.queue_size == 2


async def test_a_hurried_drain_puts_a_loading_task_back(tmp_path: Path) -> None:
    async with closed_house(tmp_path) as house, running(house) as loop:
        house.engine.holds = True
        task_id = await house.submit()
        await house.engine.until_loading()
        house.tasks.begin_drain()
        house.tasks.hurry()
        house.engine.end_load(None)
        await asyncio.wait([loop])
        task = await house.journal.get(task_id)
        assert task is not None
        assert (task.status, task.attempt) == (TaskStatus.PENDING, 0)


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_cancelled_task_is_not_put_back_by_a_hurried_drain(tmp_path: Path, cancel_first: bool) -> None:
    async with closed_house(tmp_path) as house, running(house) as loop:
        task_id = await house.submit()
        await house.engine.until_generating()
        if cancel_first:
            await house.tasks.cancel(task_id)
        house.tasks.begin_drain()
        house.tasks.hurry()
        if not cancel_first:
            await house.tasks.cancel(task_id)
        house.engine.answer(None)
        await asyncio.wait([loop])
        assert (await house.record(task_id)).status is TaskStatus.CANCELLED


async def test_a_hurried_drain_does_not_wait_for_the_store(tmp_path: Path) -> None:
    bucket = SlowBucket()
    async with closed_house(tmp_path, bucket) as house, running(house) as loop:
        task_id = await house.submit()
        await house.make()
        await bucket.called.wait()
        house.tasks.begin_drain()
        house.tasks.hurry()
        await asyncio.wait([loop])
        assert loop.exception() is None
        task = await house.journal.get(task_id)
        assert task is not None
        assert (task.status, len(task.storing)) == (TaskStatus.PROCESSING, 1)
