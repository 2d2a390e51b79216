"""Tasks that share a call: each has its own pictures, progress and end, and fails alone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from imagegen.core.errors import FailureCode
from imagegen.core.events import TaskStarted, TaskStep
from imagegen.core.task import GenerationTask, TaskStatus, TaskType
from imagegen.gpu.engine import Engine, LocalEngine
from imagegen.gpu.worker_engine import WorkerEngine
from imagegen.tasks.admission import TaskDraft
from imagegen.tasks.batching import likeness
from imagegen.testing.fake import colour_of
from tests.conftest import CPU, request_for
from tests.contract.test_cancelling import House, opened


@asynccontextmanager
async def batching(root: Path, engine: Engine | None = None, **fields: Any) -> AsyncIterator[House]:
    """A house whose model `a` makes four pictures in a call, as if measurements had shown that it pays."""
    fields = {"max_batch": 4, "guidance_scale": 0} | fields
    async with opened(root, engine=engine or LocalEngine(CPU), a=fields) as house:
        alike = likeness(TaskType.TEXT2IMAGE, request_for(), 0)
        assert alike is not None
        for pictures in (1, 1, 2, 4):
            house.device.measurements.payoffs.learn("a", alike.kind, pictures, 100 / pictures)
        yield house


@asynccontextmanager
async def held(house: House) -> AsyncIterator[None]:
    """Keep the device busy: tasks that are submitted meanwhile wait."""
    gate = asyncio.Event()
    holding = asyncio.create_task(house.tasks.between_tasks(gate.wait))
    await asyncio.sleep(0)
    yield
    gate.set()
    await holding


async def submit(house: House, prompts: Sequence[str], **fields: Any) -> list[str]:
    """Submit them so that all wait before the first one is taken."""
    drafts = [
        TaskDraft(type=TaskType.TEXT2IMAGE, model="a", prompt=prompt, seed=seed, **fields)
        for seed, prompt in enumerate(prompts)
    ]
    async with held(house):
        return [(await house.tasks.submit(draft)).id for draft in drafts]


async def ended(house: House, ids: Sequence[str]) -> list[GenerationTask]:
    for task_id in ids:
        await house.until_ended(task_id)
    return [await house.tasks.records.get(task_id) for task_id in ids]


def in_call(task: GenerationTask) -> int | None:
    """The number of pictures of the call that made it."""
    return None if task.provenance is None else task.provenance.call_pictures


def steps(house: House, task_id: str) -> list[tuple[int, int]]:
    events = [published.event for published in house.bus.history(task_id)]
    return [(event.step, event.total) for event in events if isinstance(event, TaskStep)]


def starts(house: House, task_id: str) -> list[int]:
    events = [published.event for published in house.bus.history(task_id)]
    return [event.attempt for event in events if isinstance(event, TaskStarted)]


async def until_step(house: House, task_id: str) -> None:
    while not steps(house, task_id):
        await asyncio.sleep(0.01)


async def test_waiting_tasks_share_a_call_and_each_has_its_own_picture_and_progress(tmp_path: Path) -> None:
    async with batching(tmp_path) as house:
        ids = await submit(house, "abcdef")
        tasks = await ended(house, ids)
        assert [task.status for task in tasks] == [TaskStatus.COMPLETED] * 6
        assert [in_call(task) for task in tasks] == [4, 4, 4, 4, 2, 2]
        for seed, task in enumerate(tasks):
            (image,) = task.images
            assert (image.seed, task.attempt, task.request.seed) == (seed, 1, seed)
            assert colour_of(seed) in _first_pixel(tmp_path / "data" / "images" / image.path)
            assert steps(house, task.id) == [(k, 4) for k in range(1, 5)]


def _first_pixel(file: Path) -> bytes:
    with Image.open(file) as image:
        pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return bytes(int(value) for value in pixel)


async def test_without_max_batch_each_picture_has_its_own_call(tmp_path: Path) -> None:
    async with batching(tmp_path, max_batch=1) as house:
        tasks = await ended(house, await submit(house, "abc", batch_size=2))
        assert [in_call(task) for task in tasks] == [1, 1, 1]


async def test_the_pictures_of_one_task_share_a_call_as_well(tmp_path: Path) -> None:
    async with batching(tmp_path) as house:
        (task,) = await ended(house, ids := await submit(house, "a", batch_size=3))
        assert (in_call(task), [image.seed for image in task.images]) == (3, [0, 1, 2])
        assert steps(house, ids[0]) == [(3 * k, 12) for k in range(1, 5)]


async def test_a_member_that_is_cancelled_ends_at_once_and_the_others_go_on(tmp_path: Path) -> None:
    async with batching(tmp_path, step_seconds=0.05) as house:
        ids = await submit(house, "abc", steps=4)
        await until_step(house, ids[0])
        assert (await house.tasks.cancel(ids[1])).status is TaskStatus.CANCELLED
        cancelled, *others = await ended(house, [ids[1], ids[0], ids[2]])
        assert (cancelled.status, cancelled.images) == (TaskStatus.CANCELLED, ())
        assert [(task.status, in_call(task)) for task in others] == [(TaskStatus.COMPLETED, 3)] * 2
        assert len(steps(house, ids[1])) < 4
        assert len(steps(house, ids[2])) == 4


async def test_a_call_whose_tasks_are_all_cancelled_is_stopped(tmp_path: Path) -> None:
    async with batching(tmp_path, step_seconds=0.02) as house:
        ids = await submit(house, "ab", steps=4)
        await until_step(house, ids[0])
        for task_id in ids:
            await house.tasks.cancel(task_id)
        assert [task.status for task in await ended(house, ids)] == [TaskStatus.CANCELLED] * 2
        (after,) = await ended(house, await submit(house, "c"))
        assert after.status is TaskStatus.COMPLETED


async def test_a_hurried_drain_puts_every_member_of_a_call_back(tmp_path: Path) -> None:
    async with batching(tmp_path, step_seconds=0.05) as house:
        ids = await submit(house, "abc", steps=4)
        await until_step(house, ids[0])
        house.tasks.begin_drain()
        house.tasks.hurry()
        while house.tasks.queue_size < 3:
            await asyncio.sleep(0.01)
        tasks = await house.journal.unfinished()
        assert [(task.id, task.status, task.attempt) for task in tasks] == [(i, TaskStatus.PENDING, 0) for i in ids]


async def test_a_call_that_is_out_of_memory_is_retried_in_smaller_calls_and_no_task_fails(tmp_path: Path) -> None:
    async with batching(tmp_path, most_pictures=2) as house:
        tasks = await ended(house, await submit(house, "abcd"))
        assert [(task.status, in_call(task), task.attempt) for task in tasks] == [(TaskStatus.COMPLETED, 2, 1)] * 4
        again = await ended(house, ids := await submit(house, "abcd"))
        assert [task.status for task in again] == [TaskStatus.COMPLETED] * 4
        assert [starts(house, task_id) for task_id in ids] == [[1]] * 4  # nothing is tried that is known not to fit


async def test_in_a_call_with_an_error_only_the_task_that_causes_it_fails(tmp_path: Path) -> None:
    async with batching(tmp_path, fault="error", fault_prompt="poison") as house:
        tasks = await ended(house, await submit(house, ["a", "poison", "c"]))
        assert [task.status for task in tasks] == [TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.COMPLETED]
        assert [(in_call(task), task.attempt) for task in tasks] == [(1, 1), (None, 1), (1, 1)]
        assert tasks[1].failure is not None
        assert tasks[1].failure.code is FailureCode.GENERATION_FAILED


async def test_a_request_that_kills_its_worker_does_not_take_its_companions_down_again(tmp_path: Path) -> None:
    async with batching(tmp_path, WorkerEngine(CPU), fault="exit", fault_prompt="poison") as house:
        ids = await submit(house, ["poison", "b", "c"])
        poison, *others = await ended(house, ids)
        assert poison.failure is not None
        assert (poison.failure.code, poison.attempt) == (FailureCode.WORKER_CRASHED, 2)
        assert [(task.status, task.attempt, in_call(task)) for task in others] == [(TaskStatus.COMPLETED, 2, 1)] * 2
        assert not house.models.quarantined("a")


async def test_while_the_service_drains_no_task_joins_a_call(tmp_path: Path) -> None:
    async with batching(tmp_path, load_seconds=0.3) as house:
        ids = await submit(house, "abc")
        await house.until_loading("a")
        house.tasks.begin_drain()
        await ended(house, ids[:1])
        tasks = [await house.tasks.records.get(task_id) for task_id in ids]
        assert [task.status for task in tasks] == [TaskStatus.COMPLETED, TaskStatus.PENDING, TaskStatus.PENDING]


async def test_a_task_that_missed_its_deadline_does_not_join_a_call(tmp_path: Path) -> None:
    async with batching(tmp_path) as house:
        async with held(house):
            draft = TaskDraft(type=TaskType.TEXT2IMAGE, model="a", prompt="x")
            ids = [(await house.tasks.submit(draft.evolve(deadline_s=seconds))).id for seconds in (None, 0.0)]
        first, second = await ended(house, ids)
        assert (first.status, in_call(first)) == (TaskStatus.COMPLETED, 1)
        assert second.failure is not None
        assert second.failure.code is FailureCode.DEADLINE_EXCEEDED
