"""Outlooks: what tasks that have not ended can expect, and telling it to those who listen."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import NamedTuple

from imagegen.core.errors import FailureCode
from imagegen.core.events import EventBus, TaskMoved
from imagegen.core.task import GenerationRequest, TaskStatus
from imagegen.models.manager import DynamicModelManager
from imagegen.tasks.batching import Payoffs
from imagegen.tasks.call import Call
from imagegen.tasks.estimates import Forecast, Known, Paces, forecast, remaining_s
from imagegen.tasks.life import LiveTask, Queued
from imagegen.tasks.queue import Costs, Current, Fairness, Likeness, TaskQueue, TaskTicket

#: A forecast of the queue is made anew when it is older, in seconds, or the queue has changed.
FORECAST_LASTS_S = 1

#: Seconds between two looks at whose position has changed: a start moves everyone.
POSITIONS_EVERY_S = 0.25

#: What a caller is told at most, in seconds, when the queue is full.
MAX_RETRY_AFTER_S = 120


class Outlook(NamedTuple):
    """What a task that has not ended can expect. A time is None while what it depends on was not measured yet."""

    #: Tasks that are to run before it; None: it runs.
    position: int | None
    start_at: datetime | None = None
    finish_at: datetime | None = None


class Plan(NamedTuple):
    """What would become of a request."""

    model: str
    request: GenerationRequest
    #: Who would have to leave the device for it.
    evicts: list[str]
    #: What bringing its model there would take; 0: it is there; None: not measured yet.
    load_s: float | None
    outlook: Outlook


class Outlooks:
    """Owns what was measured of finished tasks. All else it reads: it belongs to TaskManager."""

    def __init__(
        self,
        active: Mapping[str, LiveTask],
        running: Callable[[], Call | None],
        queue: Callable[[], TaskQueue],
        models: DynamicModelManager,
        bus: EventBus,
        clock: Callable[[], float],
    ) -> None:
        """`active` are all tasks that have not ended; most of them are in the queue."""
        self._active = active
        self._running = running
        self._queue = queue
        self._models = models
        self._bus = bus
        self._clock = clock
        self._paces = Paces()
        self._payoffs = Payoffs()
        #: When it was made, and by task.
        self._forecast: tuple[float, dict[str, Forecast]] | None = None
        #: The look at positions that is due.
        self._look: asyncio.TimerHandle | None = None

    # -- what was measured --------------------------------------------------------------------------------------------

    def learn(self, call: Call, seconds: float) -> None:
        """A call took so long."""
        model, first, pictures = call.model, call.first.record.request, call.pictures
        if call.together:
            self._paces.learn_together(model, call.requests, seconds)
        else:
            self._paces.learn(model, first, seconds)
        if call.likeness is not None:
            in_call = pictures if call.together else 1
            self._payoffs.learn(model, call.likeness.kind, in_call, seconds / pictures)

    def failed(self, call: Call, code: FailureCode) -> None:
        """A call failed; of several pictures, that may be why."""
        if call.likeness is not None and call.together:
            too_large = code is FailureCode.OUT_OF_MEMORY
            self._payoffs.failed(call.model, call.likeness.kind, call.pictures, too_large=too_large)

    def most(self, ticket: TaskTicket) -> int:
        """How many pictures a call may make that this one is the first of, by what has paid so far."""
        model, alike = ticket.model, ticket.likeness
        models = self._models.catalog.models
        if alike is None or model not in models or models[model].max_batch == 1:
            return 1
        if (resident := self._models.resident(model)) is not None:
            self._payoffs.loaded(model, resident.loaded_at)
        return self._payoffs.most(model, alike.kind, models[model].max_batch, ticket.pictures)

    def _share(self, ticket: TaskTicket, pictures: int) -> float:
        return self._payoffs.share(ticket.model, ticket.likeness.kind, pictures) if ticket.likeness else 1

    # -- what ordering is decided by ----------------------------------------------------------------------------------

    def current(self) -> Current:
        models = [resident.model for resident in self._models.residents]
        return Current(models[0], self._models.served_s, tuple(models[1:])) if models else Current(None)

    def costs(self) -> Costs:
        loads = {model: self._models.switch_seconds(model) for model in self._models.catalog.models}
        return Costs({model: s for model, s in loads.items() if s is not None}, dict(self._paces.work_s))

    def fairness(self) -> Fairness:
        settings = self._models.catalog.settings
        return Fairness(settings.patience_swaps, settings.quantum_swaps, settings.ageing_minutes * 60)

    # -- what follows from it -----------------------------------------------------------------------------------------

    def of(self, task_id: str) -> Outlook | None:
        """None for a task that has ended."""
        active = self._active.get(task_id)
        if active is None or active.ending:
            return None
        if active.record.status is TaskStatus.PROCESSING:
            call = self._running()
            runs = call is not None and active in call.members
            busy_s = self._busy_s() if runs else 0  # only its files are left to be written
            return Outlook(None, active.record.started_at, _after(busy_s))
        if (told := self._forecasts().get(task_id)) is not None:
            return _outlook(told)
        return Outlook(self._queue().position(active.ticket()))

    def plan(self, model: str, request: GenerationRequest, priority: int, alike: Likeness | None) -> Plan:
        """Of a request that nobody made."""
        return Plan(
            model=model,
            request=request,
            evicts=self._models.victims(model),
            load_s=0 if self._models.resident(model) else self._models.switch_seconds(model),
            outlook=_outlook(self._forecast_with(model, request, priority, alike)),
        )

    def retry_after(self) -> int:
        """Whole seconds in which, at the measured pace, a tenth of the queue is done: many come back."""
        last = max((each.finish_s for each in self._forecasts().values()), default=0)
        return min(MAX_RETRY_AFTER_S, max(1, ceil(last / 10)))

    def _busy_s(self) -> float | None:
        """Seconds until the running call ends; None: nobody knows."""
        call = self._running()
        if call is None:
            return 0
        spent_s, expected_s = self._clock() - call.since, self._expect(call)
        if call.began:
            return remaining_s(expected_s, call.steps, spent_s)
        load_s = self._models.switch_seconds(call.model)
        return None if load_s is None or expected_s is None else max(0.0, load_s - spent_s) + expected_s

    def _expect(self, call: Call) -> float | None:
        model, alike = call.model, call.likeness
        one_s = self._paces.expect(model, call.first.record.request)
        if one_s is None or not call.together or alike is None:
            return one_s
        pictures = call.pictures
        all_s = one_s * pictures / call.first.record.request.batch_size
        return all_s * self._payoffs.share(model, alike.kind, pictures)

    def _known(self) -> Known:
        running, current = self._running(), self.current()
        if running is not None:
            current = current.then(running.model, 0, self._models.stays)

        def work_s(ticket: TaskTicket) -> float | None:
            return self._paces.expect(ticket.model, self._active[ticket.task_id].record.request)

        known = Known(current, self.costs(), self._clock(), self.fairness(), self._busy_s(), work_s)
        return known._replace(most=self.most, share=self._share, stays=self._models.stays)

    def _forecasts(self) -> dict[str, Forecast]:
        now = self._clock()
        if self._forecast is None or now - self._forecast[0] > FORECAST_LASTS_S:
            self._forecast = (now, forecast(self._queue().tickets, self._known()))
        return self._forecast[1]

    def _forecast_with(self, model: str, request: GenerationRequest, priority: int, alike: Likeness | None) -> Forecast:
        known, own_s = self._known(), self._paces.expect(model, request)
        last = max((ticket.sequence for ticket in self._queue().tickets), default=0) + 1
        ticket = TaskTicket(priority, last, "", model, known.now, alike, request.batch_size)

        def work_s(other: TaskTicket) -> float | None:
            return own_s if other is ticket else known.work_s(other)

        return forecast([*self._queue().tickets, ticket], known._replace(work_s=work_s))[""]

    # -- whose position has changed -----------------------------------------------------------------------------------

    def changed(self) -> None:
        """Who waits, or what runs, is not what it was."""
        self._forecast = None
        if self._look is None and self._bus.followed:
            self._look = asyncio.get_running_loop().call_later(POSITIONS_EVERY_S, self._tell_moved)

    def _tell_moved(self) -> None:
        """Only to who listens: a start moves every task that waits."""
        self._look = None
        told = self._forecasts()
        for task_id in self._bus.followed:
            if task_id in told and self._active[task_id].tell_position(told[task_id].position):
                self._bus.publish(_moved(task_id, _outlook(told[task_id])))

    def tell(self, task_id: str) -> None:
        """To a listener that has just come, if the task has moved since it was queued."""
        active, told = self._active.get(task_id), self._forecasts().get(task_id)
        stage = active.stage if active is not None else None
        if isinstance(stage, Queued) and told is not None and told.position != stage.position:
            self._bus.publish(_moved(task_id, _outlook(told)))


def _outlook(told: Forecast) -> Outlook:
    start_s, finish_s = (told.start_s, told.finish_s) if told.measured else (None, None)
    return Outlook(told.position, _after(start_s), _after(finish_s))


def _after(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)


def _moved(task_id: str, outlook: Outlook) -> TaskMoved:
    return TaskMoved(
        task_id=task_id,
        position=outlook.position or 0,
        estimated_start_at=outlook.start_at,
        estimated_finish_at=outlook.finish_at,
    )
