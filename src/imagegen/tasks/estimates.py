"""Estimates: how long pictures take, as measured, and when which waiting task will run. Pure but for `Paces`."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from imagegen.core.task import GenerationRequest
from imagegen.tasks.batching import calls
from imagegen.tasks.queue import Costs, Current, Fairness, Stays, TaskTicket, foremost, lanes, next_model

#: Sizes that are remembered of each model.
MAX_SIZES = 64
#: What the latest picture counts against the ones before it.
WEIGHT_OF_LATEST = 0.3


class Shape(NamedTuple):
    """What the time of a step depends on, beside the model."""

    pixels: int
    from_picture: bool


class Paces:
    """Seconds a step of each model and size, learned from finished tasks."""

    def __init__(self) -> None:
        self._step_s: dict[str, OrderedDict[Shape, float]] = {}
        self._work_s: dict[str, float] = {}

    @property
    def work_s(self) -> Mapping[str, float]:
        """By model: how long its tasks take, whatever they ask."""
        return self._work_s

    def learn(self, model: str, request: GenerationRequest, seconds: float) -> None:
        """A task took so long."""
        sizes, shape = self._step_s.setdefault(model, OrderedDict()), _shape(request)
        sizes[shape] = _smooth(sizes.pop(shape, None), seconds / _steps(request))
        if len(sizes) > MAX_SIZES:
            sizes.popitem(last=False)
        self._work_s[model] = _smooth(self._work_s.get(model), seconds)

    def learn_together(self, model: str, requests: Sequence[GenerationRequest], seconds: float) -> None:
        """Tasks took so long in one call. That says nothing of a step alone."""
        pictures = sum(request.batch_size for request in requests)
        for request in requests:
            self._work_s[model] = _smooth(self._work_s.get(model), seconds * request.batch_size / pictures)

    def expect(self, model: str, request: GenerationRequest) -> float | None:
        """How long a task will take: by its size, or in proportion to the nearest one; None for a model without any."""
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
    """When a waiting task will run if nothing else comes. Seconds from now."""

    #: Tasks before it.
    position: int
    start_s: float
    finish_s: float
    #: Whether every time that this is made of was measured.
    measured: bool


class Known(NamedTuple):
    """What a forecast is made of."""

    current: Current
    costs: Costs
    now: float
    fairness: Fairness
    #: Until the running task ends; None: nobody knows.
    busy_s: float | None
    #: How long a waiting task will take by itself; None: nobody knows.
    work_s: Callable[[TaskTicket], float | None]
    #: How many pictures its call may make.
    most: Callable[[TaskTicket], int] = lambda ticket: 1
    #: What a call of so many pictures takes, as a share of what they take one by one.
    share: Callable[[TaskTicket, int], float] = lambda ticket, pictures: 1.0
    stays: Stays = lambda model, residents: ()

    def call_s(self, call: Sequence[TaskTicket]) -> float | None:
        """How long tasks take that run together."""
        alone_s = [work_s for ticket in call if (work_s := self.work_s(ticket)) is not None]
        share = self.share(call[0], sum(ticket.pictures for ticket in call))
        return sum(alone_s) * share if len(alone_s) == len(call) else None


def forecast(ready: Iterable[TaskTicket], known: Known) -> dict[str, Forecast]:
    """By task id, for all that wait: the order in which `choose` would take them, and what that takes."""
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
    """As `choose` would take them, with waiting that raises priorities as it is now."""
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
    """Until the end of a task that makes its pictures: its share of what was expected, else by its own pace."""
    done, total = steps
    if expected_s is not None:
        return expected_s * (total - done) / total if done else max(0.0, expected_s - spent_s)
    return spent_s / done * (total - done) if done else None
