"""TaskManager: the interface to all tasks. Its three parts are Intake, Runner and Stopping."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from imagegen.core.events import EventBus
from imagegen.core.task import GenerationTask
from imagegen.hub.puller import ModelPuller, Pull
from imagegen.storage.images import ImageStore
from imagegen.storage.journal import Claim, TaskJournal
from imagegen.storage.room import Room
from imagegen.tasks.admission import Limits, TaskDraft
from imagegen.tasks.device import Device
from imagegen.tasks.intake import Accepted, Intake
from imagegen.tasks.life import Saving
from imagegen.tasks.outlooks import Outlook, Outlooks, Plan
from imagegen.tasks.parking import Parking
from imagegen.tasks.records import Records
from imagegen.tasks.runner import Runner
from imagegen.tasks.stopping import Stopping

__all__ = ["Accepted", "TaskManager"]

T = TypeVar("T")


class TaskManager:
    """Accepts, orders, runs and ends tasks. `records` finds a task; its LiveTask has its stage."""

    def __init__(
        self,
        device: Device,
        journal: TaskJournal,
        images: ImageStore,
        bus: EventBus,
        limits: Limits,
        puller: ModelPuller | None = None,
        cancel_grace_s: float = 5,
        room: Room | None = None,
        *,
        log_prompts: bool = False,
    ) -> None:
        """Without a puller no weights are pulled, whatever the catalog says; without `room` no disk is looked at.

        `log_prompts`: whether the log has the prompts.
        """
        self._device = device
        records = self.records = Records(journal, images, bus)
        outlooks = self._outlooks = Outlooks(records.live, device, bus)
        parking = self._parking = Parking(device.models, puller, bus)
        intake = self._intake = Intake(
            device, parking, records, outlooks, journal, images, bus, limits, room, log_prompts=log_prompts
        )
        runner = self._runner = Runner(device, intake, parking, records, outlooks, journal, images, bus)
        self._stopping = Stopping(device, intake, runner, parking, records, outlooks, images, cancel_grace_s)

    def __repr__(self) -> str:
        state = "DRAINING" if self.draining else "OPEN"
        live, call = len(self.records.live), self._device.call
        return f"<TaskManager [{state}, Waiting: {self.queue_size}, Live: {live}, {call}]>"

    # -- accepting ----------------------------------------------------------------------------------------------------

    async def submit(self, draft: TaskDraft) -> GenerationTask:
        """Accept a task. Once this returns, it is on disk and will run. Raises ImagegenError if it is refused."""
        return await self._intake.submit(draft)

    async def submit_once(self, draft: TaskDraft, claim: Claim) -> Accepted:
        """Like `submit`, unless an earlier request with the claim's key has made a task. Also raises KeyReused."""
        return await self._intake.submit_once(draft, claim)

    async def redraft(self, task_id: str) -> TaskDraft:
        """The draft of a task that makes another one's pictures again. Raises TaskNotFound, NoReceipt, NoInputs."""
        return await self._intake.redraft(task_id)

    async def plan(self, draft: TaskDraft) -> Plan:
        """What `submit` would do; makes no task. Raises ImagegenError if the request can never run."""
        return await self._intake.plan(draft)

    # -- reads that only inform ---------------------------------------------------------------------------------------

    @property
    def queue_size(self) -> int:
        """The number of tasks that wait for the device or for weights."""
        return self._intake.waiting

    @property
    def queue_limit(self) -> int:
        """The number of tasks that may wait before others are refused."""
        return self._intake.limit

    @property
    def waiting(self) -> Mapping[tuple[int, str], int]:
        """The number of tasks in the queue, by priority and model."""
        return self._device.queue.lanes.numbers

    @property
    def parked(self) -> Mapping[tuple[int, str], int]:
        """The number of tasks that wait for the pull of their weights, by priority and model."""
        return Counter((live.record.priority, live.record.model) for live in self._parking.tasks)

    @property
    def wanted(self) -> set[str]:
        """The models of all tasks that wait or run."""
        call = self._device.call
        running = set() if call is None else {call.model}
        return self._device.queue.lanes.models | self._parking.models | running

    @property
    def running(self) -> list[str]:
        """The ids of the tasks of the running call."""
        call = self._device.call
        return [] if call is None else [live.record.id for live in call.members]

    @property
    def draining(self) -> bool:
        return self._intake.closed

    def is_running(self, model: str) -> bool:
        """Whether the running call is one of this model."""
        return self._device.call is not None and self._device.call.model == model

    def waits_for_store(self, task_id: str) -> bool:
        """Whether the task's pictures are made and cannot be uploaded yet, because the store does not answer."""
        live = self.records.live.get(task_id)
        return live is not None and isinstance(live.stage, Saving) and live.stage.waits_for_store

    def outlook(self, task: GenerationTask) -> Outlook | None:
        """When the task is expected to begin and to end; None once it has ended."""
        return self._outlooks.of(task.id)

    def publish_position(self, task_id: str) -> None:
        """Publish the task's position for a new subscriber, if it has changed since the task was enqueued."""
        self._outlooks.publish_position(task_id)

    def pull_of(self, task_id: str) -> Pull | None:
        """The pull that a task waits for; None: it waits for none."""
        return self._parking.pull_of(task_id)

    async def until_recovered(self) -> None:
        """Return once the tasks of an earlier run are in the queue."""
        await self._runner.recovered.wait()

    # -- running ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run tasks until the drain ends and all pictures are saved. After an error the service must end."""
        await self._runner.run()

    async def between_tasks(self, action: Callable[[], Awaitable[T]]) -> T:
        """Let the run loop await `action` while no task runs, before any waiting task; returns its result.

        Raises Draining.
        """
        return await self._runner.ask_between_tasks(action)

    def ask_between_tasks(self, action: Callable[[], Awaitable[T]]) -> "asyncio.Future[T]":
        """Like `between_tasks`, but returns at once, with a future of the result. Raises Draining."""
        return self._runner.ask_between_tasks(action)

    # -- stopping -----------------------------------------------------------------------------------------------------

    async def cancel(self, task_id: str) -> GenerationTask:
        """Cancel a task: at once while it waits or its model loads, between two steps while it runs.

        Raises TaskNotFound, TaskFinished.
        """
        return await self._stopping.cancel(task_id)

    async def clear(self) -> int:
        """Cancel all waiting tasks; returns their number."""
        return await self._stopping.clear()

    async def fail_late(self) -> int:
        """Fail the waiting tasks that have missed their deadline; returns their number."""
        return await self._stopping.fail_late()

    async def fail_removed(self) -> int:
        """Fail the waiting tasks whose model is no longer configured; returns their number."""
        return await self._stopping.fail_removed()

    def begin_drain(self) -> None:
        """Accept no more tasks, and end the run loop once the running task has ended."""
        self._stopping.begin_drain()

    def hurry(self) -> None:
        """During a drain: put the running tasks back into the queue. Their next attempt gives the same pictures."""
        self._stopping.hurry()
