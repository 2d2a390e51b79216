"""Outlooks: the positions and expected times of tasks, and the events that report them."""

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

#: Seconds after which the forecast of the queue is computed again. A change of the queue discards it at once.
FORECAST_LASTS_S = 1

#: Seconds from a change of the queue to the events about changed positions: one start changes the position of all.
POSITIONS_EVERY_S = 0.25

#: The largest `Retry-After`, in seconds, when the queue is full.
MAX_RETRY_AFTER_S = 120


class Outlook(NamedTuple):
    """The position and the expected times of a task. A time is None while it depends on one that was not measured."""

    #: The number of tasks that run before it; None: it runs.
    position: int | None
    start_at: datetime | None = None
    finish_at: datetime | None = None


class Plan(NamedTuple):
    """What would happen to a request."""

    model: str
    request: GenerationRequest
    #: The models that would be unloaded for it.
    evicts: list[str]
    #: Seconds to bring its model to the device; 0: it is there; None: not measured yet.
    load_s: float | None
    outlook: Outlook


class Outlooks:
    """Owns the measured times of calls, and reads everything else. Belongs to TaskManager."""

    def __init__(
        self,
        active: Mapping[str, LiveTask],
        running: Callable[[], Call | None],
        queue: Callable[[], TaskQueue],
        models: DynamicModelManager,
        bus: EventBus,
        clock: Callable[[], float],
    ) -> None:
        """`active`: all tasks that have not ended, by id."""
        self._active = active
        self._running = running
        self._queue = queue
        self._models = models
        self._bus = bus
        self._clock = clock
        self._paces = Paces()
        self._payoffs = Payoffs()
        #: When the forecast was computed, and the forecasts by task id.
        self._forecast: tuple[float, dict[str, Forecast]] | None = None
        #: The timer of the next events about changed positions.
        self._look: asyncio.TimerHandle | None = None

    # -- measured times -----------------------------------------------------------------------------------------------

    def learn(self, call: Call, seconds: float) -> None:
        """Record the seconds of a call that succeeded."""
        model, first, pictures = call.model, call.first.record.request, call.pictures
        if call.together:
            self._paces.learn_together(model, call.requests, seconds)
        else:
            self._paces.learn(model, first, seconds)
        if call.likeness is not None:
            in_call = pictures if call.together else 1
            self._payoffs.learn(model, call.likeness.kind, in_call, seconds / pictures)

    def failed(self, call: Call, code: FailureCode) -> None:
        """Record that a call failed. If it made several pictures, the next calls are smaller."""
        if call.likeness is not None and call.together:
            too_large = code is FailureCode.OUT_OF_MEMORY
            self._payoffs.failed(call.model, call.likeness.kind, call.pictures, too_large=too_large)

    def most(self, ticket: TaskTicket) -> int:
        """The most pictures of a call that starts with this ticket, by what has paid so far."""
        model, alike = ticket.model, ticket.likeness
        models = self._models.catalog.models
        if alike is None or model not in models or models[model].max_batch == 1:
            return 1
        if (resident := self._models.resident(model)) is not None:
            self._payoffs.loaded(model, resident.loaded_at)
        return self._payoffs.most(model, alike.kind, models[model].max_batch, ticket.pictures)

    def _share(self, ticket: TaskTicket, pictures: int) -> float:
        return self._payoffs.share(ticket.model, ticket.likeness.kind, pictures) if ticket.likeness else 1

    # -- what `choose` is given ---------------------------------------------------------------------------------------

    def current(self) -> Current:
        models = [resident.model for resident in self._models.residents]
        return Current(models[0], self._models.served_s, tuple(models[1:])) if models else Current(None)

    def costs(self) -> Costs:
        loads = {model: self._models.switch_seconds(model) for model in self._models.catalog.models}
        return Costs({model: s for model, s in loads.items() if s is not None}, dict(self._paces.work_s))

    def fairness(self) -> Fairness:
        settings = self._models.catalog.settings
        return Fairness(settings.patience_swaps, settings.quantum_swaps, settings.ageing_minutes * 60)

    # -- forecasts ----------------------------------------------------------------------------------------------------

    def of(self, task_id: str) -> Outlook | None:
        """The outlook of a task; None: it has ended."""
        active = self._active.get(task_id)
        if active is None or active.ending:
            return None
        if active.record.status is TaskStatus.PROCESSING:
            call = self._running()
            runs = call is not None and active in call.members
            busy_s = self._busy_s() if runs else 0  # outside the call only its files remain to be written
            return Outlook(None, active.record.started_at, _after(busy_s))
        if (told := self._forecasts().get(task_id)) is not None:
            return _outlook(told)
        return Outlook(self._queue().position(active.ticket()))

    def plan(self, model: str, request: GenerationRequest, priority: int, alike: Likeness | None) -> Plan:
        """The plan of a request that is not enqueued."""
        return Plan(
            model=model,
            request=request,
            evicts=self._models.victims(model),
            load_s=0 if self._models.resident(model) else self._models.switch_seconds(model),
            outlook=_outlook(self._forecast_with(model, request, priority, alike)),
        )

    def retry_after(self) -> int:
        """Whole seconds after which a refused caller should try again: the forecast for a tenth of the queue."""
        last = max((each.finish_s for each in self._forecasts().values()), default=0)
        return min(MAX_RETRY_AFTER_S, max(1, ceil(last / 10)))

    def _busy_s(self) -> float | None:
        """Seconds until the running call ends; 0: none runs; None: unknown."""
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

    # -- events about positions ---------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Discard the forecast, because the queue or the running call has changed, and report new positions soon."""
        self._forecast = None
        if self._look is None and self._bus.followed:
            self._look = asyncio.get_running_loop().call_later(POSITIONS_EVERY_S, self._tell_moved)

    def _tell_moved(self) -> None:
        """Publish the positions that have changed, of tasks that have subscribers."""
        self._look = None
        told = self._forecasts()
        for task_id in self._bus.followed:
            if task_id in told and self._active[task_id].tell_position(told[task_id].position):
                self._bus.publish(_moved(task_id, _outlook(told[task_id])))

    def tell(self, task_id: str) -> None:
        """Publish a task's position for a new subscriber, if it has changed since the task was enqueued."""
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
