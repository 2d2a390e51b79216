"""Runner: the run loop. It takes the next task, runs it, and decides what happens to a task whose attempt failed."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import count
from typing import TypeVar

import structlog
from structlog.contextvars import bound_contextvars, get_contextvars

from imagegen.core.errors import DeviceFault, Draining, FailureCode
from imagegen.core.events import CallEnded, EventBus, TaskLoaded, TaskLoading, TaskLoadingProgress, TaskStarted
from imagegen.core.task import MAX_ATTEMPTS, InputPictures, TaskType
from imagegen.gpu.protocol import Failed, Generated, Stopped
from imagegen.models.residency import ModelState
from imagegen.models.status import LoadProgress
from imagegen.storage.images import ImageStore
from imagegen.storage.journal import TaskJournal
from imagegen.tasks.batching import companions
from imagegen.tasks.call import Call
from imagegen.tasks.device import Device
from imagegen.tasks.intake import Intake
from imagegen.tasks.life import LiveTask, Loading, StopRequest
from imagegen.tasks.outlooks import Outlooks
from imagegen.tasks.parking import Parking
from imagegen.tasks.queue import ControlTicket
from imagegen.tasks.records import Records
from imagegen.tasks.saving import Saver

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Runner:
    """Runs the calls of one device, one at a time. Belongs to TaskManager, which documents the public methods."""

    def __init__(
        self,
        device: Device,
        intake: Intake,
        parking: Parking,
        records: Records,
        outlooks: Outlooks,
        journal: TaskJournal,
        images: ImageStore,
        bus: EventBus,
    ) -> None:
        self._device = device
        self._queue = device.queue
        self._models = device.models
        self._measurements = device.measurements
        self._clock = device.clock
        self._intake = intake
        self._parking = parking
        self._records = records
        self._outlooks = outlooks
        self._journal = journal
        self._bus = bus
        self._saving = Saver(images, records, bus, self._on_room)
        self._control_numbers = count()
        self._stopped = False
        #: Set once the tasks of earlier runs are in the queue.
        self.recovered = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Runner [{'STOPPED' if self._stopped else 'OPEN'}, {self._device.call}]>"

    # -- the run loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        async with asyncio.TaskGroup() as background:
            for live in await self._intake.recover():
                self._saving.resume(live, background)
            self._queue.held = self._saving.crowded
            self.recovered.set()
            await self._models.warm_up()
            while not self._stopped:
                ticket = await self._queue.get()
                if isinstance(ticket, ControlTicket):
                    await ticket.action()
                    if self._models.broken:  # by a load or an unload in this action
                        raise DeviceFault
                    continue
                self._outlooks.changed()
                live = self._records.live[ticket.task_id]
                if live.is_late(self._clock()):
                    await self._records.fail_late(live)
                elif not self._parking.lacks_weights(live):
                    await self._attempt(live, background)
                elif self._parking.park(live):
                    background.create_task(self._pull(live.record.model))

    def ask_between_tasks(self, action: Callable[[], Awaitable[T]]) -> asyncio.Future[T]:
        if self._intake.closed:
            raise Draining
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        ids = get_contextvars()  # of the caller, for the log lines of the action

        async def act() -> None:
            with bound_contextvars(**ids):
                value = await action()
            if not result.done():  # the caller may have been cancelled
                result.set_result(value)

        self._control(act)
        return result

    def stop(self) -> None:
        """End the run loop once the running task has ended."""
        self._control(self._stop)

    async def _stop(self) -> None:
        self._stopped = True

    def _on_room(self) -> None:
        self._control(self._hold_or_release)

    async def _hold_or_release(self) -> None:
        self._queue.held = self._saving.crowded

    def _control(self, action: Callable[[], Awaitable[object]]) -> None:
        self._queue.put_nowait(ControlTicket(next(self._control_numbers), action))

    async def _pull(self, model: str) -> None:
        """Pull the weights, then enqueue the model's parked tasks; if the pull fails, fail them."""
        pull = await self._parking.pull(model)
        if pull is None:
            return
        parked, failure = self._parking.release(model), pull.failure
        if failure is not None:
            await asyncio.gather(*(self._records.fail(live, failure.code, failure.message) for live in parked))
            return
        for live in parked:
            live.unpark()
            self._intake.enqueue(live)

    # -- one attempt --------------------------------------------------------------------------------------------------

    async def _attempt(self, first: LiveTask, background: asyncio.TaskGroup) -> None:
        """Run a task, together with similar waiting tasks; then save the pictures, or apply the rules of `_failed`."""
        self._device.call = call = Call(first, self._bus, self._clock())
        try:
            self._start(first)
            with bound_contextvars(**first.record.ids):
                outcome = await self._generate(call)
        finally:
            self._device.call = None
        if isinstance(outcome, Generated):
            for live, warnings, tokens in call.split_remarks(outcome.warnings, outcome.tokens):
                live.save(outcome.provenance, warnings, tokens)
            self._saving.take(call.split_pictures(outcome.images), background)
            self._queue.held = self._saving.crowded
            return
        for live in call.members:
            if live.ending:
                continue  # a member that was cancelled has ended already
            with bound_contextvars(**live.record.ids):
                await self._failed(live, outcome, together=call.together)

    def _start(self, live: LiveTask) -> None:
        live.start(datetime.now(UTC))
        waited_s = round(self._clock() - live.since, 3)
        log.info("task_started", **live.record.ids, attempt=live.record.attempt + 1, waited_s=waited_s)
        self._bus.publish(TaskStarted(task_id=live.record.id, attempt=live.record.attempt + 1))

    async def _begin(self, *members: LiveTask) -> None:
        for live in members:
            live.begin()
        await self._records.write(*(live.record for live in members), started=True)

    async def _generate(self, call: Call) -> Generated | Stopped | Failed:
        """Load the model, let similar tasks join, and make the pictures."""
        first, model = call.first, call.model
        if not call.is_set() and (failed := await self._load_for(first)) is not None:
            return failed
        if call.is_set():
            return Stopped()
        self._let_others_join(call)
        call.begin(self._clock())
        await self._begin(*call.members)
        task, (request, *others) = first.record, call.requests
        image2image = task.type is TaskType.IMAGE2IMAGE
        pictures = await self._journal.pictures(task.id) if image2image else InputPictures()
        began = self._clock()
        shared = {"companions": " ".join(it.record.id for it in call.members[1:])} if others else {}
        with self._models.reading_ahead(self._queue.first_load(self._is_cold)), bound_contextvars(**shared):
            outcome = await self._models.generate(
                model, request, pictures, call, call.on_step, task.previews, others, together=call.together
            )
        for live in call.members:
            live.charge((self._clock() - began) * live.record.request.batch_size / call.pictures)
        if isinstance(outcome, Generated):
            self._measurements.learn(call, self._clock() - began)
        elif isinstance(outcome, Failed):
            self._measurements.failed(call, outcome.code)
        self._bus.observe(
            CallEnded(
                model=model,
                task_ids=tuple(live.record.id for live in call.members),
                seconds=self._clock() - began,
                steps=call.steps[0],
                stages=outcome.stages if isinstance(outcome, Generated) else (),
                made=isinstance(outcome, Generated),
                code=outcome.code if isinstance(outcome, Failed) else None,
            )
        )
        return outcome

    def _is_cold(self, model: str) -> bool:
        return self._models.status(model).state is ModelState.COLD

    async def _load_for(self, live: LiveTask) -> Failed | None:
        """Make the model of a task resident. Returns the failure, or None."""
        model = live.record.model
        if self._models.resident(model) is not None:
            return None
        await self._records.write(live.record)  # only before a load, because otherwise `_begin` writes it soon
        if live.told_to_stop:
            return None
        self._bus.publish(TaskLoading(task_id=live.record.id, model=model))
        began = self._clock()

        def on_progress(progress: LoadProgress) -> None:
            if not live.ending:
                event = TaskLoadingProgress(task_id=live.record.id, model=model, **progress._asdict())
                self._bus.publish(event)

        failed = await self._models.ensure(model, on_progress)
        if failed is None and not live.ending:
            self._bus.publish(TaskLoaded(task_id=live.record.id, model=model, seconds=self._clock() - began))
        return failed

    def _let_others_join(self, call: Call) -> None:
        """Add waiting tasks that are similar to the first one, up to the number of pictures that pays.

        The call does not wait for further tasks to arrive.
        """
        now, first = self._clock(), call.first.ticket()
        most = self._measurements.most(first)
        live = self._records.live
        # During a drain no further task starts.
        waiting = () if self._intake.closed else self._queue.companions(first)
        for ticket in companions(first, (it for it in waiting if not live[it.task_id].is_late(now)), most):
            self._queue.remove(ticket.task_id)
            call.members.append(live[ticket.task_id])
            self._start(live[ticket.task_id])
        call.together = 1 < call.pictures <= most
        self._outlooks.changed()

    # -- an attempt without pictures ----------------------------------------------------------------------------------

    async def _failed(self, live: LiveTask, outcome: Stopped | Failed, *, together: bool) -> None:
        """Decide what happens to a task whose call failed or was stopped, by the first of these rules that applies.

        A failed load counts as an attempt, because a load that kills the worker must not be repeated for ever.

        1. The device is broken, which happens only without a worker process: this process ends. The task is
           `processing` in the journal, so the next run of the service repeats it.
        2. The task was cancelled: it ends as cancelled.
        3. The service is ending: the task returns to the queue, and the attempt does not count.
        4. The worker died and the task has an attempt left: it returns to the queue, and the attempt counts.
        5. The task shared the call: it returns to the queue, and the attempt does not count. After `out_of_memory` the
           next call is smaller. After any other failure the task runs alone, so that only the task that causes the
           failure fails.
        6. Otherwise the task fails.
        """
        # A load that is refused, because the model is quarantined, does not count.
        refused = isinstance(outcome, Failed) and outcome.code is FailureCode.MODEL_QUARANTINED
        if isinstance(outcome, Failed) and isinstance(live.stage, Loading) and not refused:
            await self._begin(live)
        if isinstance(outcome, Failed) and outcome.code is FailureCode.DEVICE_FAULT:
            raise DeviceFault
        if live.stop_request is StopRequest.CANCEL:
            await self._records.cancel(live)
        elif live.stop_request is StopRequest.PUT_BACK or isinstance(outcome, Stopped):
            await self._put_back(live, None, counts=False)
        elif outcome.worker_died and live.record.attempt < MAX_ATTEMPTS:
            await self._put_back(live, outcome.code, counts=True)
        elif together:
            alone = outcome.code is not FailureCode.OUT_OF_MEMORY
            await self._put_back(live, outcome.code, counts=False, alone=alone)
        else:
            await self._records.fail(live, outcome.code, outcome.message)

    async def _put_back(self, live: LiveTask, code: FailureCode | None, *, counts: bool, alone: bool = False) -> None:
        """`code`: why; None: the service is ending."""
        live.put_back(counts=counts, alone=alone)
        log.info("task_put_back", **live.record.ids, attempt=live.record.attempt, code=code)
        # Enqueued before the write, because a cancel finds a task only in the queue or in a call.
        self._intake.enqueue(live)
        await self._records.write(live.record)
