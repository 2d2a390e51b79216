"""TaskManager: the single writer of task records. Accepts, runs and ends tasks; one at a time is on the GPU."""

import asyncio
import secrets
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from math import ceil
from typing import TypeVar

import structlog

from imagegen.core.errors import (
    DeviceFault,
    Draining,
    FailureCode,
    ModelQuarantined,
    QueueFull,
    StorageFailed,
    StorageFull,
    TaskFinished,
    TaskNotFound,
    WeightsHere,
)
from imagegen.core.events import (
    EventBus,
    TaskCancelled,
    TaskCompleted,
    TaskDownloading,
    TaskFailed,
    TaskLoading,
    TaskQueued,
    TaskStarted,
    TaskStep,
)
from imagegen.core.task import (
    MAX_ATTEMPTS,
    MAX_SEED,
    Failure,
    GenerationTask,
    InputPictures,
    Pixels,
    TaskStatus,
    TaskType,
)
from imagegen.gpu.protocol import Failed, Generated, Stopped
from imagegen.hub.puller import ModelPuller, Pull, PullState
from imagegen.models.manager import DynamicModelManager
from imagegen.storage.images import ImageStore
from imagegen.storage.tasks import Page, TaskJournal
from imagegen.tasks.admission import Limits, TaskDraft, admit
from imagegen.tasks.queue import ControlTicket, Costs, Current, TaskQueue, TaskTicket

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Finished pictures that may be in encoding while the GPU goes on; more would pile up in memory.
MAX_SAVING = 2


@dataclass(slots=True)
class _Active:
    """A task that has not ended: its record, and how to stop it."""

    task: GenerationTask
    #: Accepted at, on the manager's clock.
    since: float
    stop: threading.Event = field(default_factory=threading.Event)
    #: Whether a stop means "back to the queue" (the service is leaving) and not "cancelled".
    put_back: bool = False
    #: Whether the present attempt has got as far as making pictures; only then does it count.
    began: bool = False
    #: Whether its model's weights were fetched while it waited; if the loader still misses some, it says so.
    fetched: bool = False

    def ticket(self) -> TaskTicket:
        task = self.task
        return TaskTicket(task.priority, task.sequence, task.id, task.model, self.since)


class TaskManager:
    """Owns `_active` (every task that has not ended) and the queue; the journal is its memory."""

    def __init__(
        self,
        models: DynamicModelManager,
        journal: TaskJournal,
        images: ImageStore,
        bus: EventBus,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        puller: ModelPuller | None = None,
    ) -> None:
        """Without a puller nothing is fetched, whatever the catalog says."""
        self._models = models
        self._journal = journal
        self._images = images
        self._bus = bus
        self._limits = limits
        self._clock = clock
        self._puller = puller
        self._active: dict[str, _Active] = {}
        self._queue = TaskQueue(self._current, self._costs, clock)
        self._control_numbers = count()
        #: Tasks that wait for weights, by model and id; each model has one `_await_weights`.
        self._parked: dict[str, dict[str, _Active]] = {}
        #: Tasks that are being written to the journal and will then be queued.
        self._arriving = 0
        self._running: _Active | None = None
        #: Ended tasks whose end the disk has refused so far; it is true all the same.
        self._unrecorded: dict[str, GenerationTask] = {}
        #: Finished pictures on their way to disk.
        self._saving: set[asyncio.Task[None]] = set()
        self._work_seconds: dict[str, float] = {}
        self._draining = False
        self._stopped = False

    # -- accepting ----------------------------------------------------------------------------------------------------

    async def submit(self, draft: TaskDraft) -> GenerationTask:
        """Accept a task: once this returns it is on disk and will run. Raises ImagegenError with the reason why not."""
        model, request = admit(draft, self._models.catalog, self._limits, _new_seed)
        self._models.find_loras(request)
        await self._models.check_fits(model, request.size.pixels)
        if self._draining:
            raise Draining(retry_after=10)
        if self.queue_size >= self._limits.max_queue:
            raise QueueFull(retry_after=self._retry_after())
        if self._models.quarantined(model):
            raise ModelQuarantined
        task = GenerationTask(
            id=str(uuid.uuid4()),
            type=draft.type,
            model=model,
            request=request,
            priority=draft.priority,
            created_at=datetime.now(UTC),
        )
        self._arriving += 1
        # Shielded: a caller that goes away must not leave a stored task outside the queue.
        return await asyncio.shield(self._accept(task, draft.pictures))

    async def _accept(self, task: GenerationTask, pictures: InputPictures) -> GenerationTask:
        try:
            task = await self._journal.insert(task, pictures)
        finally:
            self._arriving -= 1
        log.info("task_accepted", task_id=task.id, model=task.model, type=task.type, priority=task.priority)
        self._enqueue(_Active(task, self._clock()))
        return task

    def _enqueue(self, active: _Active) -> None:
        ticket = active.ticket()
        self._active[active.task.id] = active
        position = self._queue.position(ticket)
        self._queue.put_nowait(ticket)
        self._bus.publish(TaskQueued(task_id=active.task.id, position=position))

    def _retry_after(self) -> int:
        """Whole seconds in which, at the measured pace, a place gets free."""
        pace = sum(self._work_seconds.values()) / len(self._work_seconds) if self._work_seconds else 5.0
        return min(120, max(1, ceil(pace)))

    # -- telling ------------------------------------------------------------------------------------------------------

    @property
    def queue_size(self) -> int:
        """Tasks that wait, for the GPU or for weights."""
        return self._queue.waiting + self._arriving + sum(map(len, self._parked.values()))

    @property
    def wanted(self) -> set[str]:
        """Models of the tasks that wait or run."""
        return {active.task.model for active in self._active.values()}

    def is_running(self, model: str) -> bool:
        """Whether the running task is one of this model's."""
        return self._running is not None and self._running.task.model == model

    @property
    def draining(self) -> bool:
        return self._draining

    async def get(self, task_id: str) -> GenerationTask:
        """A task's record now. Raises TaskNotFound."""
        active = self._active.get(task_id)
        task = active.task if active else self._unrecorded.get(task_id) or await self._journal.get(task_id)
        if task is None:
            raise TaskNotFound
        return task

    def position(self, task: GenerationTask) -> int | None:
        """How many tasks are to run before this one; None if it does not wait."""
        active = self._active.get(task.id)
        if active is None or active.task.status is not TaskStatus.PENDING:
            return None
        return self._queue.position(active.ticket())

    def positions(self) -> dict[str, int]:
        """`position` of every waiting task, by id."""
        parked = [active.ticket() for waiting in self._parked.values() for active in waiting.values()]
        return self._queue.positions() | {ticket.task_id: self._queue.position(ticket) for ticket in parked}

    def download(self, task_id: str) -> Pull | None:
        """The download that a waiting task waits for."""
        return next((self._pull_of(model) for model, waiting in self._parked.items() if task_id in waiting), None)

    async def page(self, status: TaskStatus | None, limit: int) -> Page:
        """The newest tasks."""
        return await self._journal.page(status, limit)

    async def count(self) -> int:
        """Tasks in the history, ended or not."""
        return await self._journal.count()

    # -- stopping -----------------------------------------------------------------------------------------------------

    async def cancel(self, task_id: str) -> GenerationTask:
        """End a task: at once if it waits, between two steps if it runs. Raises TaskNotFound, TaskFinished."""
        if self._queue.remove(task_id) or self._unpark(task_id):
            return await self._cancelled(self._active[task_id])
        task = await self.get(task_id)
        if task.status.finished and task.status is not TaskStatus.CANCELLED:
            raise TaskFinished(f"The task has already {task.status}.")
        if task_id in self._active:
            self._active[task_id].stop.set()
        return task

    async def clear(self) -> int:
        """Cancel everything that waits; how many that were."""
        ids = self._queue.remove_all()
        for waiting in self._parked.values():
            ids += waiting
            waiting.clear()
        await asyncio.gather(*(self._cancelled(self._active[task_id]) for task_id in ids))
        return len(ids)

    # -- running ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take tickets until the drain ends, then wait for the last files. If it raises, the service must end."""
        async with asyncio.TaskGroup() as beside:
            for task in await self._journal.unfinished():
                await self._recover(task)
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

    async def _recover(self, task: GenerationTask) -> None:
        """Queue again what an earlier run left, with its seed; give up on what has used its attempts."""
        if task.id in self._active:
            return  # it arrived while the journal was being read
        active = _Active(task.evolve(status=TaskStatus.PENDING), self._clock())
        if task.status is TaskStatus.PROCESSING and task.attempt >= MAX_ATTEMPTS:
            self._active[task.id] = active
            await self._failed(active, FailureCode.INTERRUPTED, "The service ended twice while it ran this task.")
        else:
            log.info("task_recovered", task_id=task.id, attempt=task.attempt)
            if task.status is not active.task.status:
                await self._record(active.task)
            self._enqueue(active)

    async def _take(self, active: _Active, beside: asyncio.TaskGroup) -> None:
        """Run a task, or put it aside while its model's weights are fetched: the others go on."""
        if self._lacks_weights(active):
            self._park(active, beside)
        else:
            await self._execute(active, beside)

    async def _execute(self, active: _Active, beside: asyncio.TaskGroup) -> None:
        """One attempt at one task."""
        self._running = active
        try:
            self._start(active)
            outcome = await self._generate(active)
        finally:
            self._running = None
        match outcome:
            case Generated():
                await self._save_beside(active, outcome.images, beside)
            case Stopped() if active.put_back:
                await self._put_back(active, active.task.attempt - active.began)
            case Stopped():
                await self._cancelled(active)
            case Failed():
                await self._attempt_failed(active, outcome)

    # -- waiting for weights ------------------------------------------------------------------------------------------

    def _lacks_weights(self, active: _Active) -> bool:
        """Whether its model is to be fetched first."""
        model, catalog, resident = active.task.model, self._models.catalog, self._models.current
        if self._puller is None or active.fetched or not catalog.settings.auto_download:
            return False
        if model not in catalog.models or (resident is not None and resident.model == model):
            return False
        return bool(catalog.model(model).hub_files()) and not self._puller.is_here(model)

    def _park(self, active: _Active, beside: asyncio.TaskGroup) -> None:
        """It stays `pending`, in the journal as well: after a restart it comes here again."""
        model = active.task.model
        if model not in self._parked:
            self._parked[model] = {}
            beside.create_task(self._await_weights(model))
        self._parked[model][active.task.id] = active
        self._tell(active, self._pull_of(model))

    def _pull_of(self, model: str) -> Pull:
        """The download that its parked tasks wait for; an earlier one, which has ended, is none of theirs."""
        pull = self._puller.pull(model) if self._puller else None
        return pull if pull is not None and not pull.ended else Pull(model=model)

    async def _await_weights(self, model: str) -> None:
        """Have the weights fetched, tell every percent, and let the model's tasks go on when that has ended."""
        assert self._puller is not None
        try:
            self._puller.start(model)
        except WeightsHere:  # somebody else brought them
            await self._release(model, Pull(model=model, state=PullState.READY))
            return
        except Draining:  # the next start of the service goes on
            return
        told = None
        async for pull in self._puller.follow(model):
            if pull.ended:
                await self._release(model, pull)
                return
            if pull.percent != told:
                told = pull.percent
                for active in self._parked[model].values():
                    self._tell(active, pull)

    def _tell(self, active: _Active, pull: Pull) -> None:
        event = TaskDownloading(
            task_id=active.task.id, model=pull.model, bytes_done=pull.bytes_done, bytes_total=pull.bytes_total
        )
        self._bus.publish(event)

    async def _release(self, model: str, pull: Pull) -> None:
        """Back to their old places; or they end as the download did."""
        for active in self._parked.pop(model).values():
            if pull.state is PullState.READY:
                active.fetched = True
                self._enqueue(active)
            else:
                assert pull.failure is not None
                await self._failed(active, pull.failure.code, pull.failure.message)

    def _unpark(self, task_id: str) -> bool:
        """Take a task out that waits for weights; False if it does not."""
        return any(waiting.pop(task_id, None) is not None for waiting in self._parked.values())

    # -- one attempt --------------------------------------------------------------------------------------------------

    def _start(self, active: _Active) -> None:
        task = active.task
        active.began = False
        active.task = task.evolve(status=TaskStatus.PROCESSING, started_at=datetime.now(UTC))
        self._bus.publish(TaskStarted(task_id=task.id, attempt=task.attempt + 1))

    async def _begin(self, active: _Active) -> None:
        """Count the attempt: from here on the task itself may be what brings the worker or the service down."""
        active.began = True
        active.task = active.task.evolve(attempt=active.task.attempt + 1)
        await self._record(active.task)

    async def _generate(self, active: _Active) -> Generated | Stopped | Failed:
        task = active.task
        resident = self._models.current
        if resident is None or resident.model != task.model:
            await self._record(task)  # otherwise `_begin` does so in a moment
            self._bus.publish(TaskLoading(task_id=task.id, model=task.model))
            failed = await self._models.ensure(task.model)
            if failed is not None:
                return failed
        if active.stop.is_set():
            return Stopped()
        await self._begin(active)
        image2image = task.type is TaskType.IMAGE2IMAGE
        pictures = await self._journal.pictures(task.id) if image2image else InputPictures()
        began = self._clock()

        def on_step(step: int, total: int) -> None:
            self._bus.publish(TaskStep(task_id=task.id, step=step, total=total))

        outcome = await self._models.generate(task.model, task.request, pictures, active.stop, on_step)
        if isinstance(outcome, Generated):
            self._work_seconds[task.model] = self._clock() - began
        return outcome

    async def _attempt_failed(self, active: _Active, failed: Failed) -> None:
        if not active.began:
            await self._begin(active)  # a load that kills the worker must not be tried for ever
        if failed.code is FailureCode.DEVICE_FAULT:
            # Only in thread mode: this process is done for. The journal still says `processing`, and brings it back.
            raise DeviceFault
        if active.put_back:
            await self._put_back(active, active.task.attempt - 1)
        elif active.stop.is_set():
            await self._cancelled(active)
        elif failed.worker_died and active.task.attempt < MAX_ATTEMPTS:
            await self._put_back(active, active.task.attempt)
        else:
            await self._failed(active, failed.code, failed.message)

    async def _put_back(self, active: _Active, attempt: int) -> None:
        """Wait again, at its old place."""
        active.task = active.task.evolve(status=TaskStatus.PENDING, attempt=attempt, started_at=None)
        await self._record(active.task)
        self._enqueue(active)

    async def _save_beside(self, active: _Active, images: tuple[Pixels, ...], beside: asyncio.TaskGroup) -> None:
        """Encode and store while the GPU takes the next task."""
        saving = beside.create_task(self._save(active, images))
        self._saving.add(saving)
        saving.add_done_callback(self._saving.discard)
        while len(self._saving) > MAX_SAVING:
            await asyncio.wait(self._saving, return_when=asyncio.FIRST_COMPLETED)

    async def _save(self, active: _Active, images: tuple[Pixels, ...]) -> None:
        try:
            stored = await self._images.save(active.task.id, images)
        except StorageFull:
            await self._failed(active, FailureCode.STORAGE_FULL, "The disk is full: the pictures could not be stored.")
        except StorageFailed:
            await self._failed(active, FailureCode.STORAGE_FAILED, "The disk refused to store the pictures.")
        else:
            await self._end(active, TaskStatus.COMPLETED, images=stored)
            self._bus.publish(TaskCompleted(task_id=active.task.id, images=stored))

    # -- ending -------------------------------------------------------------------------------------------------------

    async def _failed(self, active: _Active, code: FailureCode, message: str) -> None:
        failure = Failure(code=code, message=message)
        await self._end(active, TaskStatus.FAILED, failure=failure)
        self._bus.publish(TaskFailed(task_id=active.task.id, failure=failure))

    async def _cancelled(self, active: _Active) -> GenerationTask:
        await self._end(active, TaskStatus.CANCELLED)
        self._bus.publish(TaskCancelled(task_id=active.task.id))
        return active.task

    async def _end(self, active: _Active, status: TaskStatus, **changes: object) -> None:
        ended = active.task.evolve(status=status, completed_at=datetime.now(UTC), **changes)
        # On disk before anyone is told: after a kill -9 it must not come back to life.
        recorded = await self._record(ended)
        active.task = ended
        if not recorded:
            self._unrecorded[ended.id] = ended
        del self._active[active.task.id]
        log.info("task_ended", task_id=active.task.id, status=status, attempt=active.task.attempt)

    async def _record(self, task: GenerationTask) -> bool:
        """Store a new state. If the disk refuses, the older state stays there and a restart repeats the task."""
        try:
            await self._journal.update(task)
        except (StorageFull, StorageFailed) as error:
            log.error("journal_failed", task_id=task.id, status=task.status, code=error.code)
            return False
        return True

    # -- housekeeping -------------------------------------------------------------------------------------------------

    async def record_ends(self) -> None:
        """Store the ends that the disk refused when they came. Raises StorageFull or StorageFailed if it still does."""
        ended = list(self._unrecorded.values())
        if ended:
            await self._journal.update(*ended)
        for task in ended:
            del self._unrecorded[task.id]

    async def expire(self, retention_days: float) -> int:
        """Delete what ended longer ago, files first; how many tasks that were."""
        deleted = 0
        cutoff = datetime.now(UTC) - timedelta(days=retention_days)
        while expired := await self._journal.finished_before(cutoff):
            await self._images.delete(image for task in expired for image in task.images)
            await self._journal.delete([task.id for task in expired])
            deleted += len(expired)
        return deleted

    # -- leaving ------------------------------------------------------------------------------------------------------

    def begin_drain(self) -> None:
        """Accept nothing more, and end the run loop once the running task has ended."""
        if self._draining:
            return
        self._draining = True
        self._queue.put_nowait(ControlTicket(next(self._control_numbers), self._stop_running))

    async def _stop_running(self) -> None:
        self._stopped = True

    def hurry(self) -> None:
        """Put the running task back into the queue instead of waiting for it; its next run gives the same pixels."""
        if self._running is not None:
            self._running.put_back = True
            self._running.stop.set()

    # -- what ordering is decided by ----------------------------------------------------------------------------------

    def _current(self) -> Current:
        resident = self._models.current
        return Current(resident.model, resident.served_s) if resident else Current(None)

    def _costs(self) -> Costs:
        loads = {model: self._models.switch_seconds(model) for model in self._models.catalog.models}
        return Costs({model: s for model, s in loads.items() if s is not None}, dict(self._work_seconds))


def _new_seed() -> int:
    return secrets.randbelow(MAX_SEED + 1)
