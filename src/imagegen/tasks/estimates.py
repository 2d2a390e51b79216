"""Estimates: measured times of pictures, and forecasts of when waiting tasks run. Pure, except for `Paces`."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from imagegen.core.task import GenerationRequest
from imagegen.tasks.batching import calls
from imagegen.tasks.queue import Costs, Current, Fairness, Stays, TaskTicket, foremost, lanes, next_model

#: Remembered sizes of each model.
MAX_SIZES = 64
#: The weight of the latest picture in the moving average, from 0 to 1.
WEIGHT_OF_LATEST = 0.3


class Shape(NamedTuple):
    """What the time of a step depends on, in addition to the model."""

    pixels: int
    from_picture: bool


class Paces:
    """Learns from calls how many seconds a step takes, by model and size, and a task, by model."""

    def __init__(self) -> None:
        self._step_s: dict[str, OrderedDict[Shape, float]] = {}
        self._work_s: dict[str, float] = {}

    @property
    def work_s(self) -> Mapping[str, float]:
        """Seconds that a task takes, by model: a moving average of all its tasks."""
        return self._work_s

    def learn(self, model: str, request: GenerationRequest, seconds: float) -> None:
        """Record the seconds of a call with one task."""
        sizes, shape = self._step_s.setdefault(model, OrderedDict()), _shape(request)
        sizes[shape] = _smooth(sizes.pop(shape, None), seconds / _steps(request))
        if len(sizes) > MAX_SIZES:
            sizes.popitem(last=False)
        self._work_s[model] = _smooth(self._work_s.get(model), seconds)

    def learn_together(self, model: str, requests: Sequence[GenerationRequest], seconds: float) -> None:
        """Record the seconds of a call that several tasks shared. The time of a step does not follow from it."""
        pictures = sum(request.batch_size for request in requests)
        for request in requests:
            self._work_s[model] = _smooth(self._work_s.get(model), seconds * request.batch_size / pictures)

    def expect(self, model: str, request: GenerationRequest) -> float | None:
        """Seconds that a task will take, in proportion to the nearest measured size; None: no size was measured."""
        sizes, shape = self._step_s.get(model), _shape(request)
        if not sizes:
            return None
        nearest = min(sizes, key=lambda known: (known.from_picture != shape.from_picture, _apart(known, shape)))
        return sizes[nearest] * shape.pixels / nearest.pixels * _steps(request)


def _shape(request: GenerationRequest) -> Shape:
    return Shape(request.size.pixels, request.strength is not None)


def _steps(request: GenerationRequest) -> float:
    return request.steps * request.batch_size * (request.strength or 1)


def _smooth(before: float | None, latest: float) -> float:
    return latest if before is None else before + WEIGHT_OF_LATEST * (latest - before)


def _apart(one: Shape, other: Shape) -> float:
    return max(one.pixels, other.pixels) / min(one.pixels, other.pixels)


class Forecast(NamedTuple):
    """When a waiting task will run if no further task arrives. In seconds from now."""

    #: Tasks before it.
    position: int
    start_s: float
    finish_s: float
    #: Whether all times that this forecast is computed from were measured.
    measured: bool


class Known(NamedTuple):
    """What a forecast is computed from."""

    current: Current
    costs: Costs
    now: float
    fairness: Fairness
    #: Seconds until the running call ends; None: unknown.
    busy_s: float | None
    #: Seconds that a waiting task takes in a call of its own; None: unknown.
    work_s: Callable[[TaskTicket], float | None]
    #: The most pictures of a call that starts with this ticket.
    most: Callable[[TaskTicket], int] = lambda ticket: 1
    #: The time of a call with so many pictures, as a share of the time of as many single calls.
    share: Callable[[TaskTicket, int], float] = lambda ticket, pictures: 1.0
    stays: Stays = lambda model, residents: ()

    def call_s(self, call: Sequence[TaskTicket]) -> float | None:
        """Seconds of a call that these tasks share; None: unknown."""
        alone_s = [work_s for ticket in call if (work_s := self.work_s(ticket)) is not None]
        share = self.share(call[0], sum(ticket.pictures for ticket in call))
        return sum(alone_s) * share if len(alone_s) == len(call) else None


def forecast(ready: Iterable[TaskTicket], known: Known) -> dict[str, Forecast]:
    """The forecasts of all waiting tasks, by task id, in the order in which `choose` would take them."""
    told: dict[str, Forecast] = {}
    clock, measured, current = known.busy_s or 0.0, known.busy_s is not None, known.current
    for call in calls(order(ready, known), known.most):
        ticket, work_s = call[0], known.call_s(call)
        if ticket.model not in current.models:
            clock += known.costs.swap(ticket.model)
            measured = measured and ticket.model in known.costs.load_s
        current = current.then(ticket.model, 0, known.stays)
        start_s, started = clock, measured
        clock += known.costs.work(ticket.model) * len(call) if work_s is None else work_s
        measured = measured and work_s is not None
        for ticket in call:
            told[ticket.task_id] = Forecast(len(told), start_s, clock, started and measured)
    return told


def order(ready: Iterable[TaskTicket], known: Known) -> Iterator[TaskTicket]:
    """Tickets in the order in which `choose` would take them. Priorities are raised by the waiting until now only."""
    left, current, now = sorted(ready), known.current, known.now + (known.busy_s or 0)
    first = foremost(left, now, known.fairness) if left else []
    taken = {ticket.task_id for ticket in first}
    others = (ticket for ticket in left if ticket.task_id not in taken)
    for group in (first, *(list(tickets) for _, tickets in groupby(others, key=lambda ticket: ticket.priority))):
        waiting = lanes(group)
        while waiting:
            model = next_model(waiting, current, known.costs, now, known.fairness)
            ticket = waiting[model].popleft()
            if not waiting[model]:
                del waiting[model]
            yield ticket
            now += known.costs.work(model) + (0 if model in current.models else known.costs.swap(model))
            current = current.then(model, known.costs.work(model), known.stays)


def remaining_s(expected_s: float | None, steps: tuple[int, int], spent_s: float) -> float | None:
    """Seconds until a running call ends; None: unknown.

    In proportion to the steps that are left of the expected seconds, or by its own pace if nothing was expected.
    """
    done, total = steps
    if expected_s is not None:
        return expected_s * (total - done) / total if done else max(0.0, expected_s - spent_s)
    return spent_s / done * (total - done) if done else None
