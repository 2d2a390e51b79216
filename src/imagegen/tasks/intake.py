"""Intake: accepts tasks and enqueues them, and recovers the tasks of earlier runs of the service."""

import asyncio
import heapq
import secrets
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import structlog

from imagegen.core.errors import Draining, FailureCode, KeyReused, LimitReached, ModelQuarantined, QueueFull
from imagegen.core.events import EventBus, TaskQueued
from imagegen.core.keys import KeyLimits
from imagegen.core.task import MAX_ATTEMPTS, MAX_RANDOM_SEED, GenerationRequest, GenerationTask
from imagegen.loaders.pictures import picture_size
from imagegen.storage.budgets import Reservation
from imagegen.storage.images import ImageStore
from imagegen.storage.journal import Claim, Claimed, TaskJournal
from imagegen.storage.room import Room
from imagegen.tasks.admission import (
    Limits,
    TaskDraft,
    admit,
    check_time,
    draft_of,
    needs_input_size,
    new_task,
)
from imagegen.tasks.batching import likeness
from imagegen.tasks.device import Device
from imagegen.tasks.life import LiveTask, Saving
from imagegen.tasks.outlooks import Outlooks, Plan
from imagegen.tasks.parking import Parking
from imagegen.tasks.records import Records
from imagegen.tasks.tickets import Work

log = structlog.get_logger(__name__)

#: Seconds after which a caller that was refused during a drain should try again.
RETRY_AFTER_DRAIN_S = 10


class Accepted(NamedTuple):
    """An accepted task."""

    task: GenerationTask
    #: Whether an earlier request with the same Idempotency-Key made it.
    repeated: bool


class Intake:
    """The only part that puts tasks into the queue. Belongs to TaskManager, which documents the public methods."""

    def __init__(
        self,
        device: Device,
        parking: Parking,
        records: Records,
        outlooks: Outlooks,
        journal: TaskJournal,
        images: ImageStore,
        bus: EventBus,
        limits: Limits,
        room: Room | None,
        *,
        log_prompts: bool,
    ) -> None:
        self._queue = device.queue
        self._models = device.models
        self._measurements = device.measurements
        self._clock = device.clock
        self._parking = parking
        self._records = records
        self._outlooks = outlooks
        self._journal = journal
        self._images = images
        self._bus = bus
        self._limits = limits
        self._room = room
        self._log_prompts = log_prompts
        #: Ids of tasks that are being written to the journal, and are enqueued afterwards.
        self._arriving: set[str] = set()
        self._closed = False
        #: A heap of the deadlines of enqueued tasks with their ids. Tasks that have begun meanwhile are ignored.
        self._deadlines: list[tuple[float, str]] = []

    @property
    def closed(self) -> bool:
        """Whether new tasks are refused."""
        return self._closed

    def close(self) -> None:
        """Accept no more tasks. Tasks that are put back are still enqueued."""
        self._closed = True

    @property
    def waiting(self) -> int:
        """The number of tasks that are in the queue, wait for weights, or are being written to the journal."""
        return self._queue.waiting + len(self._arriving) + len(self._parking)

    @property
    def limit(self) -> int:
        """The number of tasks that may wait before others are refused."""
        return self._models.catalog.settings.max_queue or self._limits.max_queue

    # -- new tasks ----------------------------------------------------------------------------------------------------

    async def submit(self, draft: TaskDraft) -> GenerationTask:
        stored = await self._submit(draft, None)
        assert isinstance(stored, GenerationTask)  # Claimed is the answer to a claim only
        return stored

    async def submit_once(self, draft: TaskDraft, claim: Claim) -> Accepted:
        # The key is looked up first, so that a full queue does not refuse a request whose task is already in it.
        stored = await self._journal.claimed(claim.key, claim.owner) or await self._submit(draft, claim)
        if isinstance(stored, GenerationTask):
            return Accepted(stored, repeated=False)
        if stored.digest != claim.digest:
            raise KeyReused
        return Accepted(await self._records.get(stored.task_id), repeated=True)

    async def redraft(self, task_id: str) -> TaskDraft:
        task = await self._records.get(task_id)
        return draft_of(task, await self._journal.pictures(task_id))

    async def plan(self, draft: TaskDraft) -> Plan:
        model, request = await self._admit(draft)
        if self._models.quarantined(model):
            raise ModelQuarantined
        warnings = await self._models.prompt_warnings(model, request.prompt)
        plan = self._outlooks.plan(model, request, draft.priority, likeness(draft.type, request, draft.previews))
        return plan._replace(warnings=tuple(warnings))

    async def _submit(self, draft: TaskDraft, claim: Claim | None) -> GenerationTask | Claimed:
        model, request = await self._admit(draft)
        # In a thread if there are input pictures, because megabytes are hashed.
        hashing = draft.pictures.init_image is not None
        task = await asyncio.to_thread(new_task, draft, model, request) if hashing else new_task(draft, model, request)
        if self._closed:
            raise Draining(retry_after=RETRY_AFTER_DRAIN_S)
        if self._room is not None:
            self._room.check()
        if self.waiting >= self.limit:
            raise QueueFull(retry_after=self._outlooks.retry_after())
        if self._models.quarantined(model):
            raise ModelQuarantined
        self._arriving.add(task.id)
        # Shielded, so that the caller's disconnection cannot leave a task in the journal that is not in the queue.
        return await asyncio.shield(self._accept(task, draft, claim))

    async def _admit(self, draft: TaskDraft) -> tuple[str, GenerationRequest]:
        """The model and the complete request. Raises ImagegenError if the request can never run."""
        picture, size = draft.pictures.init_image, draft.input_size
        if picture is not None and size is None and needs_input_size(draft):
            size = await asyncio.to_thread(picture_size, picture)
        longest = await self._models.longest_side(draft.model or self._models.catalog.default_model)
        new_seed = partial(secrets.randbelow, MAX_RANDOM_SEED + 1)
        model, request = admit(
            draft, self._models.catalog, self._limits, new_seed, longest_side=longest, input_size=size
        )
        self._models.find_loras(request)
        await self._models.check_fits(model, request.size.pixels)
        least_s = self._measurements.at_least(model, Work.of(request))
        check_time(model, request, self._models.catalog, self._limits, least_s)
        return model, request

    async def _accept(self, task: GenerationTask, draft: TaskDraft, claim: Claim | None) -> GenerationTask | Claimed:
        since = self._clock()
        expected_s = self._measurements.expect(task.model, Work.of(task.request)) or 0
        wanted = Reservation(draft.budget, expected_s) if draft.budget != KeyLimits() else None
        try:
            stored = await self._journal.insert(task, draft.pictures, claim, wanted)
        except LimitReached as error:
            if error.retry_after is not None:
                raise
            raise LimitReached(limit=error.limit, retry_after=self._outlooks.retry_after()) from None
        finally:
            self._arriving.discard(task.id)
        if isinstance(stored, GenerationTask):
            asked = {"prompt": task.request.prompt, "negative_prompt": task.request.negative_prompt}
            known = {"type": task.type, "priority": task.priority, "key": task.owner or None}
            log.info("task_accepted", **task.ids, **known, **(asked if self._log_prompts else {}))
            deadline = None if task.deadline_s is None else since + task.deadline_s
            self.enqueue(LiveTask(stored, self._clock(), deadline))
        return stored

    def enqueue(self, live: LiveTask) -> None:
        """Put a task into the queue. One that was there before gets its old place."""
        ticket = live.ticket()
        position = self._queue.position(ticket)
        live.enqueue(position)
        self._records.live[live.record.id] = live
        if live.deadline is not None and not live.record.attempt:
            heapq.heappush(self._deadlines, (live.deadline, live.record.id))
        self._queue.put_nowait(ticket)
        self._bus.publish(TaskQueued(task_id=live.record.id, position=position))
        self._outlooks.changed()

    def late(self) -> list[LiveTask]:
        """The tasks whose deadline has passed since the last call of this method, and that have not begun."""
        now, ids = self._clock(), list[str]()
        while self._deadlines and self._deadlines[0][0] <= now:
            ids.append(heapq.heappop(self._deadlines)[1])
        return [live for task_id in ids if (live := self._records.live.get(task_id)) is not None and live.is_late(now)]

    # -- recovery -----------------------------------------------------------------------------------------------------

    async def recover(self) -> list[LiveTask]:
        """Enqueue the tasks that had not ended when the service did; fail those without an attempt left.

        Returns the tasks whose pictures are in the spool, which only have to be uploaded.
        """
        unfinished, made = await self._journal.unfinished(), []
        self._images.tidy([image for task in unfinished for image in task.storing])
        for task in unfinished:
            if task.id in self._records.live or task.id in self._arriving:
                continue  # it was submitted while the journal was read
            spooled = bool(task.storing) and await self._images.spooled(task.storing)
            live = LiveTask.recovered(task, self._clock(), self._deadline_of(task), spooled=spooled)
            self._records.live[task.id] = live
            log.info("task_recovered", **task.ids, attempt=live.record.attempt, pictures=len(live.record.storing))
            if isinstance(live.stage, Saving):
                made.append(live)
            elif live.record.attempt >= MAX_ATTEMPTS:
                message = "The service ended twice while it ran this task."
                await self._records.fail(live, FailureCode.INTERRUPTED, message)
            else:
                if live.record != task:
                    await self._records.write(live.record)
                self.enqueue(live)
        return made

    def _deadline_of(self, task: GenerationTask) -> float | None:
        """The deadline, counted from `created_at`. At most `deadline_s` from now: the clock may have been set back."""
        if task.deadline_s is None:
            return None
        waited_s = (datetime.now(UTC) - task.created_at).total_seconds()
        return self._clock() + min(task.deadline_s, max(0.0, task.deadline_s - waited_s))
