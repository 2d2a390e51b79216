"""Outlooks: the positions and expected times of tasks, and the events that report them."""

import asyncio
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import NamedTuple

from imagegen.core.events import EventBus, TaskMoved
from imagegen.core.task import GenerationRequest, TaskStatus
from imagegen.tasks.call import Call
from imagegen.tasks.device import Device
from imagegen.tasks.estimates import Forecast, Now, beyond, forecast, remaining_s
from imagegen.tasks.life import LiveTask, Queued
from imagegen.tasks.tickets import Likeness, TaskTicket, Work

#: Seconds that the forecast of the queue is valid. A change of the queue discards it at once.
FORECAST_LASTS_S = 1

#: Seconds from a change of the queue to the events about changed positions, because one start changes all positions.
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
    #: Seconds to load its model; 0: it is resident; None: not measured yet.
    load_s: float | None
    outlook: Outlook
    #: Warnings about its pictures, such as parts of the request that they would ignore.
    warnings: tuple[str, ...] = ()


class Outlooks:
    """Computes forecasts of the queue of a device and publishes changed positions. Belongs to TaskManager."""

    def __init__(self, live: Mapping[str, LiveTask], device: Device, bus: EventBus) -> None:
        """`live`: all tasks that have not ended, by id."""
        self._live = live
        self._device = device
        self._bus = bus
        #: When the forecasts were computed, and the forecasts by task id.
        self._computed: tuple[float, dict[str, Forecast]] | None = None
        #: The timer of the next events about changed positions.
        self._timer: asyncio.TimerHandle | None = None

    # -- forecasts ----------------------------------------------------------------------------------------------------

    def of(self, task_id: str) -> Outlook | None:
        """The outlook of a task; None: it has ended."""
        live = self._live.get(task_id)
        if live is None or live.ending:
            return None
        if live.record.status is TaskStatus.PROCESSING:
            call = self._device.call
            runs = call is not None and live in call.members
            busy_s = self._busy_s() if runs else 0  # after the call only its files have to be written
            return Outlook(None, live.record.started_at, _after(busy_s))
        expected = self._forecast_of(live)
        return Outlook(self._device.queue.position(live.ticket())) if expected is None else _outlook(expected)

    def plan(self, model: str, request: GenerationRequest, priority: int, alike: Likeness | None) -> Plan:
        """The plan of a request that is not enqueued."""
        return Plan(
            model=model,
            request=request,
            evicts=self._device.models.victims(model),
            load_s=0 if self._device.models.resident(model) else self._device.models.switch_seconds(model),
            outlook=_outlook(self._forecast_with(model, request, priority, alike)),
        )

    def retry_after(self) -> int:
        """Whole seconds after which a refused caller should try again: a tenth of the forecast for the whole queue."""
        last = max((each.finish_s for each in self._forecasts().values()), default=0)
        return min(MAX_RETRY_AFTER_S, max(1, ceil(last / 10)))

    def _busy_s(self) -> float | None:
        """Seconds until the running call ends; 0: none runs; None: unknown."""
        call = self._device.call
        if call is None:
            return 0
        spent_s, expected_s = self._device.clock() - call.since, self._expect(call)
        if call.began:
            return remaining_s(expected_s, call.steps, spent_s)
        load_s = self._device.models.switch_seconds(call.model)
        return None if load_s is None or expected_s is None else max(0.0, load_s - spent_s) + expected_s

    def _expect(self, call: Call) -> float | None:
        measured, first = self._device.measurements, call.first
        one_s = measured.expect(call.model, Work.of(first.record.request))
        if one_s is None or not call.together:
            return one_s
        all_s = one_s * call.pictures / first.record.request.batch_size
        return all_s * measured.share(first.ticket(), call.pictures)

    def _now(self) -> Now:
        measured, call = self._device.measurements, self._device.call
        current = measured.current()
        if call is not None:
            current = current.then(call.model, 0, measured.stays)
        return Now(current, measured.costs(), self._device.clock(), measured.fairness(), self._busy_s())

    def _forecast_of(self, live: LiveTask) -> Forecast | None:
        """The forecast of a task in the queue; None: it is not in the queue."""
        if not isinstance(live.stage, Queued):
            return None
        forecasts = self._forecasts()
        if not forecasts or live.record.id in forecasts:
            return forecasts.get(live.record.id)
        return beyond(forecasts, self._device.queue.position(live.ticket()))

    def _forecasts(self) -> dict[str, Forecast]:
        now = self._device.clock()
        if self._computed is None or now - self._computed[0] > FORECAST_LASTS_S:
            self._computed = (now, self._compute())
        return self._computed[1]

    def _forecast_with(self, model: str, request: GenerationRequest, priority: int, alike: Likeness | None) -> Forecast:
        queue, now = self._device.queue, self._device.clock()
        ticket = TaskTicket(priority, sys.maxsize, "", model, now, alike, request.batch_size, Work.of(request))
        queue.lanes.add(ticket)
        try:
            forecasts = self._compute()
        finally:
            queue.lanes.remove(ticket)
        return forecasts[""] if "" in forecasts else beyond(forecasts, queue.position(ticket))

    def _compute(self) -> dict[str, Forecast]:
        return forecast(self._device.queue.lanes, self._now(), self._device.measurements)

    # -- events about positions ---------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Discard the forecasts, because the queue or the running call has changed, and publish new positions soon."""
        self._computed = None
        if self._timer is None and self._bus.followed:
            self._timer = asyncio.get_running_loop().call_later(POSITIONS_EVERY_S, self._publish_positions)

    def _publish_positions(self) -> None:
        """Publish the changed positions of tasks that have subscribers."""
        self._timer = None
        for task_id in self._bus.followed:
            live = self._live.get(task_id)
            if live is not None and (expected := self._forecast_of(live)) and live.note_position(expected.position):
                self._bus.publish(_moved(task_id, _outlook(expected)))

    def publish_position(self, task_id: str) -> None:
        """Publish a task's position for a new subscriber, if it has changed since the task was enqueued."""
        live = self._live.get(task_id)
        stage = live.stage if live is not None else None
        if live is None or not isinstance(stage, Queued):
            return
        if (expected := self._forecast_of(live)) is not None and expected.position != stage.position:
            self._bus.publish(_moved(task_id, _outlook(expected)))


def _outlook(expected: Forecast) -> Outlook:
    start_s, finish_s = (expected.start_s, expected.finish_s) if expected.measured else (None, None)
    return Outlook(expected.position, _after(start_s), _after(finish_s))


def _after(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)


def _moved(task_id: str, outlook: Outlook) -> TaskMoved:
    return TaskMoved(
        task_id=task_id,
        position=outlook.position or 0,
        estimated_start_at=outlook.start_at,
        estimated_finish_at=outlook.finish_at,
    )
