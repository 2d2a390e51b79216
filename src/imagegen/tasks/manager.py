"""TaskManager: accepts, orders, runs and stops tasks; one call at a time is on the GPU."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import count
from typing import NamedTuple, TypeVar

import structlog

from imagegen.core.errors import (
    DeviceFault,
    Draining,
    FailureCode,
    KeyReused,
    ModelQuarantined,
    QueueFull,
    TaskFinished,
)
from imagegen.core.events import (
    EventBus,
    TaskLoaded,
    TaskLoading,
    TaskLoadingProgress,
    TaskQueued,
    TaskStarted,
)
from imagegen.core.task import (
    MAX_ATTEMPTS,
    MAX_SEED,
    Failure,
    GenerationRequest,
    GenerationTask,
    InputPictures,
    TaskStatus,
    TaskType,
)
from imagegen.gpu.protocol import Failed, Generated, Stopped
from imagegen.hub.puller import ModelPuller, Pull
from imagegen.models.manager import DynamicModelManager, LoadProgress
from imagegen.storage.images import ImageStore
from imagegen.storage.tasks import Claim, Claimed, TaskJournal
from imagegen.tasks.active import Active
from imagegen.tasks.admission import Limits, TaskDraft, admit, draft_of, new_task
from imagegen.tasks.batching import companions, likeness
from imagegen.tasks.call import Call
from imagegen.tasks.outlooks import Outlook, Outlooks, Plan
from imagegen.tasks.parking import Parking
from imagegen.tasks.queue import ControlTicket, TaskQueue
from imagegen.tasks.records import Records
from imagegen.tasks.saving import Saving

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Once(NamedTuple):
    """What a request came to that may have been made before."""

    task: GenerationTask
    #: Whether an earlier one made the task.
    repeated: bool


class TaskManager:
    """Owns the queue, and what becomes of each task; `records` are what is known of them."""

    def __init__(
        self,
        models: DynamicModelManager,
        journal: TaskJournal,
        images: ImageStore,
        bus: EventBus,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        puller: ModelPuller | None = None,
        cancel_grace_s: float = 5,
    ) -> None:
        """Without a puller nothing is fetched, whatever the catalog says."""
        self._models = models
        self._journal = journal
        self._images = images
        self._bus = bus
        self._limits = limits
        self._clock = clock
        self._cancel_grace_s = cancel_grace_s
        self.records = Records(journal, images, bus)
        self._active = self.records.active
        self._saving = Saving(images, self.records, bus, self._release_soon)
        self._outlooks = Outlooks(self._active, lambda: self._running, lambda: self._queue, models, bus, clock)
        self._queue = TaskQueue(self._outlooks.current, self._outlooks.costs, clock, self._outlooks.fairness)
        self._control_numbers = count()
        self._parking = Parking(models, puller, bus, self._go_on)
        #: Tasks that are being written to the journal and will then be queued.
        self._arriving = 0
        self._running: Call | None = None
        self._draining = False
        self._stopped = False

    # -- accepting ----------------------------------------------------------------------------------------------------

    async def submit(self, draft: TaskDraft) -> GenerationTask:
        """Accept a task: once this returns it is on disk and will run. Raises ImagegenError with the reason why not."""
        stored = await self._submit(draft, None)
        assert isinstance(stored, GenerationTask)  # nothing was claimed
        return stored

    async def submit_once(self, draft: TaskDraft, claim: Claim) -> Once:
        """As `submit`, unless the claim has made a task before. Raises KeyReused as well."""
        # Asked first: a full queue is no reason to refuse what is in it.
        stored = await self._journal.claimed(claim.key) or await self._submit(draft, claim)
        if isinstance(stored, GenerationTask):
            return Once(stored, repeated=False)
        if stored.digest != claim.digest:
            raise KeyReused
        return Once(await self.records.get(stored.task_id), repeated=True)

    async def replay(self, task_id: str) -> GenerationTask:
        """Accept a task that makes another one's pictures once more. Raises TaskNotFound, NoReceipt; as `submit`."""
        task = await self.records.get(task_id)
        return await self.submit(draft_of(task, await self._journal.pictures(task_id)))

    async def _submit(self, draft: TaskDraft, claim: Claim | None) -> GenerationTask | Claimed:
        model, request = await self._admit(draft)
        # Pictures are hashed: megabytes, and not on the loop.
        hashing = draft.pictures.init_image is not None
        task = await asyncio.to_thread(new_task, draft, model, request) if hashing else new_task(draft, model, request)
        if self._draining:
            raise Draining(retry_after=10)
        if self.queue_size >= (self._models.catalog.settings.max_queue or self._limits.max_queue):
            raise QueueFull(retry_after=self._outlooks.retry_after())
        if self._models.quarantined(model):
            raise ModelQuarantined
        self._arriving += 1
        # Shielded: a caller that goes away must not leave a stored task outside the queue.
        return await asyncio.shield(self._accept(task, draft.pictures, claim))

    async def _admit(self, draft: TaskDraft) -> tuple[str, GenerationRequest]:
        model, request = admit(draft, self._models.catalog, self._limits, _new_seed)
        self._models.find_loras(request)
        await self._models.check_fits(model, request.size.pixels)
        return model, request

    async def _accept(
        self, task: GenerationTask, pictures: InputPictures, claim: Claim | None
    ) -> GenerationTask | Claimed:
        since = self._clock()
        try:
            stored = await self._journal.insert(task, pictures, claim)
        finally:
            self._arriving -= 1
        if isinstance(stored, GenerationTask):
            log.info("task_accepted", task_id=task.id, model=task.model, type=task.type, priority=task.priority)
            deadline = None if task.deadline_s is None else since + task.deadline_s
            self._enqueue(Active(stored, self._clock(), deadline))
        return stored

    def _enqueue(self, active: Active) -> None:
        ticket = active.ticket()
        self._active[active.task.id] = active
        active.told = active.queued_at = self._queue.position(ticket)
        self._queue.put_nowait(ticket)
        self._bus.publish(TaskQueued(task_id=active.task.id, position=active.queued_at))
        self._outlooks.changed()

    async def plan(self, draft: TaskDraft) -> Plan:
        """What would become of a request. Raises ImagegenError with the reason why nothing ever could."""
        model, request = await self._admit(draft)
        if self._models.quarantined(model):
            raise ModelQuarantined
        return self._outlooks.plan(model, request, draft.priority, likeness(draft.type, request, draft.previews))

    # -- telling ------------------------------------------------------------------------------------------------------

    @property
    def queue_size(self) -> int:
        """Tasks that wait, for the GPU or for weights."""
        return self._queue.waiting + self._arriving + len(self._parking)

    @property
    def wanted(self) -> set[str]:
        """Models of the tasks that wait or run; not of those whose pictures only wait for their store."""
        return {active.task.model for active in self._active.values() if not active.task.storing}

    def is_running(self, model: str) -> bool:
        """Whether what runs is of this model."""
        return self._running is not None and self._running.model == model

    @property
    def draining(self) -> bool:
        return self._draining

    def waits_for_store(self, task_id: str) -> bool:
        """Whether its pictures are made and the store of pictures cannot be reached."""
        return task_id in self._active and self._active[task_id].waits_for_store

    def outlook(self, task: GenerationTask) -> Outlook | None:
        """What it can expect; None once it has ended."""
        return self._outlooks.of(task.id)

    def positions(self) -> dict[str, int]:
        """How many tasks are to run before each of those that wait, by id."""
        outlooks = {task_id: self._outlooks.of(task_id) for task_id in self._active}
        return {
            task_id: outlook.position
            for task_id, outlook in outlooks.items()
            if outlook is not None and outlook.position is not None
        }

    def tell_position(self, task_id: str) -> None:
        """To a listener that has just come, if the task has moved since it was queued."""
        self._outlooks.tell(task_id)

    def download(self, task_id: str) -> Pull | None:
        """The download that a waiting task waits for."""
        return self._parking.download(task_id)

    # -- stopping -----------------------------------------------------------------------------------------------------

    async def cancel(self, task_id: str) -> GenerationTask:
        """End a task: at once if it waits, between two steps if it runs. Raises TaskNotFound, TaskFinished."""
        if self._take_out(task_id):
            return await self.records.cancel(self._active[task_id])
        task = await self.records.get(task_id)
        if task.status.finished and task.status is not TaskStatus.CANCELLED:
            raise TaskFinished(f"The task has already {task.status}.")
        active = self._active.get(task_id)
        if active is None or active.ending:
            return task
        active.stop.set()
        active.let_go.set()
        if self._running is None or active not in self._running.members:
            return task
        if not active.began:
            return await self._cancel_load(active)
        # The others want their pictures: the call goes on, and this one's are thrown away.
        return await self.records.cancel(active) if len(self._running.members) > 1 else task

    async def _cancel_load(self, active: Active) -> GenerationTask:
        """It ends at once; a load that nobody else wants is given some time to end by itself."""
        asyncio.get_running_loop().call_later(self._cancel_grace_s, self._abandon_load, active)
        return await self.records.cancel(active)

    def _abandon_load(self, active: Active) -> None:
        model = active.task.model
        running = self._running is not None and self._running.first is active
        if running and all(it is active or it.task.model != model for it in self._active.values()):
            self._models.abandon_load(model)

    def _take_out(self, task_id: str) -> bool:
        """Out of where it waits; False if it does not."""
        waited = self._queue.remove(task_id) or self._parking.remove(task_id)
        self._outlooks.changed()
        return waited

    async def clear(self) -> int:
        """Cancel everything that waits; how many that were."""
        ids = self._queue.remove_all() + self._parking.remove_all()
        self._outlooks.changed()
        await asyncio.gather(*(self.records.cancel(self._active[task_id]) for task_id in ids))
        return len(ids)

    async def fail_late(self) -> int:
        """End what waits and should have begun by now; how many tasks that were."""
        late = [active for active in self._active.values() if active.is_late(self._clock())]
        taken = [active for active in late if self._take_out(active.task.id)]
        await asyncio.gather(*(self._too_late(active) for active in taken))
        return len(taken)

    async def _too_late(self, active: Active) -> None:
        message = f"It could not begin within the {active.task.deadline_s:g} s that it was given."
        await self.records.fail(active, FailureCode.DEADLINE_EXCEEDED, message)

    async def fail_removed(self) -> int:
        """Fail what waits for a model that is no longer configured; how many tasks that were."""
        known = self._models.catalog.models
        removed = [active for active in self._active.values() if active.task.model not in known]
        waiting = [it for it in removed if self._take_out(it.task.id)]
        failures = (
            self.records.fail(it, FailureCode.MODEL_REMOVED, "The model is no longer configured.") for it in waiting
        )
        await asyncio.gather(*failures)
        self._outlooks.changed()
        return len(waiting)

    # -- running ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take tickets until the drain ends, then wait for the last files. If it raises, the service must end."""
        async with asyncio.TaskGroup() as beside:
            left = await self._journal.unfinished()
            self._images.tidy([image for task in left for image in task.storing])
            for task in left:
                await self._recover(task, beside)
            await self._models.warm_up()
            while not self._stopped:
                ticket = await self._queue.get()
                if isinstance(ticket, ControlTicket):
                    await ticket.action()
                else:
                    await self._take(self._active[ticket.task_id], beside)

    async def between_tasks(self, action: Callable[[], Awaitable[T]]) -> T:
        """Have the run loop do something while no task runs, ahead of all waiting tasks."""
        if self._draining:
            raise Draining
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def act() -> None:
            value = await action()
            if not result.done():  # its caller may have gone
                result.set_result(value)

        self._queue.put_nowait(ControlTicket(next(self._control_numbers), act))
        return await result

    async def _recover(self, task: GenerationTask, beside: asyncio.TaskGroup) -> None:
        """Queue again what an earlier run left, with its seed; give up on what has used its attempts."""
        if task.id in self._active:
            return  # it arrived while the journal was being read
        if task.storing:
            if await self._images.spooled(task.storing):
                return self._go_on_storing(task, beside)
            # That attempt did no harm; what it made is lost all the same.
            task = task.evolve(storing=(), attempt=task.attempt - 1)
        active = Active(task.evolve(status=TaskStatus.PENDING), self._clock(), self._deadline_of(task))
        if task.status is TaskStatus.PROCESSING and task.attempt >= MAX_ATTEMPTS:
            self._active[task.id] = active
            await self.records.fail(active, FailureCode.INTERRUPTED, "The service ended twice while it ran this task.")
        else:
            log.info("task_recovered", task_id=task.id, attempt=task.attempt)
            if task.status is not active.task.status:
                await self.records.write(active.task)
            self._enqueue(active)

    def _go_on_storing(self, task: GenerationTask, beside: asyncio.TaskGroup) -> None:
        log.info("task_recovered", task_id=task.id, attempt=task.attempt, pictures=len(task.storing))
        active = self._active[task.id] = Active(task, self._clock())
        self._saving.resume(active, beside)
        self._queue.held = self._saving.crowded

    def _deadline_of(self, task: GenerationTask) -> float | None:
        """Of one that an earlier run left: the wall clock may have been set, so no more than it was given."""
        if task.deadline_s is None:
            return None
        waited_s = (datetime.now(UTC) - task.created_at).total_seconds()
        return self._clock() + min(task.deadline_s, max(0.0, task.deadline_s - waited_s))

    async def _take(self, active: Active, beside: asyncio.TaskGroup) -> None:
        """Run a task, or put it aside while its model's weights are fetched: the others go on."""
        self._outlooks.changed()
        if active.is_late(self._clock()):
            await self._too_late(active)
        elif self._parking.lacks_weights(active):
            self._parking.park(active, beside)
        else:
            await self._execute(active, beside)

    async def _go_on(self, active: Active, failure: Failure | None) -> None:
        """Its weights are here, or will not come."""
        if failure is None:
            self._enqueue(active)
        else:
            await self.records.fail(active, failure.code, failure.message)

    async def _execute(self, active: Active, beside: asyncio.TaskGroup) -> None:
        """One attempt at one task, and at those that go along."""
        self._running = call = Call(active, self._bus)
        try:
            self._start(active)
            outcome = await self._generate(call)
        finally:
            self._running = None
        if isinstance(outcome, Generated):
            for member, _ in call.deal(outcome.images):
                member.task = member.task.evolve(provenance=outcome.provenance)
            self._saving.take(call.deal(outcome.images), beside)
            self._queue.held = self._saving.crowded
            return
        for member in call.members:
            if not member.ending:  # else it was cancelled meanwhile
                await self._attempt_ended(member, outcome, together=call.together)

    async def _attempt_ended(self, active: Active, outcome: Stopped | Failed, *, together: bool) -> None:
        if isinstance(outcome, Failed):
            await self._attempt_failed(active, outcome, together=together)
        elif active.put_back:
            await self._put_back(active, active.task.attempt - active.began)
        else:
            await self.records.cancel(active)

    # -- one attempt --------------------------------------------------------------------------------------------------

    def _start(self, active: Active) -> None:
        task = active.task
        active.began, active.steps, active.stage_since = False, (0, 0), self._clock()
        active.task = task.evolve(status=TaskStatus.PROCESSING, started_at=datetime.now(UTC))
        self._bus.publish(TaskStarted(task_id=task.id, attempt=task.attempt + 1))

    async def _begin(self, *members: Active) -> None:
        """Count the attempt: from here on a task itself may be what brings the worker or the service down."""
        for active in members:
            active.began, active.stage_since = True, self._clock()
            active.task = active.task.evolve(attempt=active.task.attempt + 1)
        await self.records.write(*(active.task for active in members), started=True)

    async def _generate(self, call: Call) -> Generated | Stopped | Failed:
        task = call.first.task
        failed = None if call.is_set() else await self._load_for(call.first)
        if failed is not None:
            return failed
        if call.is_set():
            return Stopped()
        self._gather(call)
        await self._begin(*call.members)
        image2image = task.type is TaskType.IMAGE2IMAGE
        pictures = await self._journal.pictures(task.id) if image2image else InputPictures()
        began, (request, *others) = self._clock(), call.requests
        outcome = await self._models.generate(
            task.model, request, pictures, call, call.on_step, task.previews, others, together=call.together
        )
        if isinstance(outcome, Generated):
            self._outlooks.learn(call, self._clock() - began)
        elif isinstance(outcome, Failed):
            self._outlooks.failed(call, outcome.code)
        return outcome

    def _gather(self, call: Call) -> None:
        """Who waits and is like the first one goes along, as many as are known to pay; nobody is waited for."""
        now, first = self._clock(), call.first.ticket()
        most = self._outlooks.most(first)
        waiting = [] if self._draining else [t for t in self._queue.tickets if not self._active[t.task_id].is_late(now)]
        for ticket in companions(first, waiting, most, now, self._outlooks.fairness()):
            self._queue.remove(ticket.task_id)
            call.members.append(self._active[ticket.task_id])
            self._start(call.members[-1])
        call.together = 1 < call.pictures <= most
        self._outlooks.changed()

    async def _load_for(self, active: Active) -> Failed | None:
        """Make its model the resident one, and tell so."""
        task, resident = active.task, self._models.current
        if resident is not None and resident.model == task.model:
            return None
        await self.records.write(task)  # otherwise `_begin` does so in a moment
        if active.stop.is_set():
            return None
        self._bus.publish(TaskLoading(task_id=task.id, model=task.model))
        began = self._clock()

        def tell(progress: LoadProgress) -> None:
            if not active.ending:
                self._bus.publish(TaskLoadingProgress(task_id=task.id, model=task.model, **progress._asdict()))

        failed = await self._models.ensure(task.model, tell)
        if failed is None and not active.ending:
            self._bus.publish(TaskLoaded(task_id=task.id, model=task.model, seconds=self._clock() - began))
        return failed

    async def _attempt_failed(self, active: Active, failed: Failed, *, together: bool) -> None:
        if not active.began:
            await self._begin(active)  # a load that kills the worker must not be tried for ever
        if failed.code is FailureCode.DEVICE_FAULT:
            # Only in thread mode: this process is done for. The journal still says `processing`, and brings it back.
            raise DeviceFault
        if active.put_back:
            await self._put_back(active, active.task.attempt - 1)
        elif active.stop.is_set():
            await self.records.cancel(active)
        elif failed.worker_died and active.task.attempt < MAX_ATTEMPTS:
            await self._put_back(active, active.task.attempt)
        elif together:  # it comes again, alone or with fewer: only the guilty one fails
            active.alone = failed.code is not FailureCode.OUT_OF_MEMORY
            await self._put_back(active, active.task.attempt - 1)
        else:
            await self.records.fail(active, failed.code, failed.message)

    async def _put_back(self, active: Active, attempt: int) -> None:
        """Wait again, at its old place."""
        active.task = active.task.evolve(status=TaskStatus.PENDING, attempt=attempt, started_at=None)
        await self.records.write(active.task)
        self._enqueue(active)

    def _release_soon(self) -> None:
        """The GPU may go on: pictures have been stored that it waited for."""
        self._queue.put_nowait(ControlTicket(next(self._control_numbers), self._release))

    async def _release(self) -> None:
        self._queue.held = self._saving.crowded

    # -- leaving ------------------------------------------------------------------------------------------------------

    def begin_drain(self) -> None:
        """Accept nothing more, and end the run loop once the running task has ended."""
        if self._draining:
            return
        self._draining = True
        if not self._images.reachable:
            self._let_go()
        self._queue.put_nowait(ControlTicket(next(self._control_numbers), self._stop_running))

    async def _stop_running(self) -> None:
        self._stopped = True

    def hurry(self) -> None:
        """Put what runs back into the queue instead of waiting for it; its next run gives the same picture."""
        self._let_go()
        for active in self._running.members if self._running is not None else ():
            active.put_back = True
            active.stop.set()

    def _let_go(self) -> None:
        """Wait for no store: what is spooled goes there in the next run."""
        for active in self._active.values():
            active.let_go.set()


def _new_seed() -> int:
    return secrets.randbelow(MAX_SEED + 1)
