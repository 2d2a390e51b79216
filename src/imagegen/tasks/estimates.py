"""Measured times of steps and tasks (`Paces`), and pure functions that forecast when waiting tasks run."""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from imagegen.core.task import GenerationRequest
from imagegen.tasks.batching import calls
from imagegen.tasks.lanes import Lanes
from imagegen.tasks.scheduling import Costs, Current, Fairness, next_model
from imagegen.tasks.tickets import TaskTicket, Work

#: The number of tasks whose order a forecast computes. Each takes 0.02 to 0.04 ms of the event loop, measured by
#: bench/long_queue. The times of later tasks are extrapolated.
HORIZON = 100

#: The number of sizes that are remembered for each model.
MAX_SIZES = 64

#: The weight of the latest call in the moving averages, from 0 to 1.
WEIGHT_OF_LATEST = 0.3


class Shape(NamedTuple):
    """What the time of a step depends on, in addition to the model."""

    pixels: int
    from_picture: bool


class _StepTimes(NamedTuple):
    """Seconds of a step."""

    #: The moving average.
    usual: float
    #: The shortest.
    best: float


class Paces:
    """Learns from calls how many seconds a step takes, by model and size, and how many a task takes, by model."""

    def __init__(self) -> None:
        self._step_s: dict[str, OrderedDict[Shape, _StepTimes]] = {}
        self._work_s: dict[str, float] = {}
        #: Measured calls with one task, by model.
        self._calls: Counter[str] = Counter()

    @property
    def work_s(self) -> Mapping[str, float]:
        """Seconds that a task takes, by model: a moving average of all its tasks."""
        return self._work_s

    def learn(self, model: str, request: GenerationRequest, seconds: float) -> None:
        """Record the seconds of a call with one task."""
        work = Work.of(request)
        sizes, shape = self._step_s.setdefault(model, OrderedDict()), _shape(work)
        step_s, before = seconds / work.steps, sizes.pop(shape, None)
        best = step_s if before is None else min(step_s, before.best)
        sizes[shape] = _StepTimes(_smooth(before and before.usual, step_s), best)
        self._calls[model] += 1
        if len(sizes) > MAX_SIZES:
            sizes.popitem(last=False)
        self._work_s[model] = _smooth(self._work_s.get(model), seconds)

    def learn_together(self, model: str, requests: Sequence[GenerationRequest], seconds: float) -> None:
        """Record the seconds of a call that several tasks shared. It does not tell the time of a step."""
        pictures = sum(request.batch_size for request in requests)
        for request in requests:
            self._work_s[model] = _smooth(self._work_s.get(model), seconds * request.batch_size / pictures)

    def expect(self, model: str, work: Work) -> float | None:
        """Seconds that the work will take, computed from the nearest measured size; None: no size was measured."""
        times = self._times(model, work)
        return times and times.usual

    def at_least(self, model: str, work: Work) -> float | None:
        """Seconds that the work takes at the best pace so far; None: fewer than two calls were measured.

        A call may be slower than the others by far, above all the first one, which may compile the model.
        """
        times = self._times(model, work) if self._calls[model] > 1 else None
        return times and times.best

    def _times(self, model: str, work: Work) -> _StepTimes | None:
        """The times of all steps of the work, computed from the nearest measured size."""
        sizes, shape = self._step_s.get(model), _shape(work)
        if not sizes:
            return None
        nearest = min(sizes, key=lambda known: (known.from_picture != shape.from_picture, _apart(known, shape)))
        factor, times = shape.pixels / nearest.pixels * work.steps, sizes[nearest]
        return _StepTimes(times.usual * factor, times.best * factor)


def _shape(work: Work) -> Shape:
    return Shape(work.pixels, work.from_picture)


def _smooth(before: float | None, latest: float) -> float:
    return latest if before is None else before + WEIGHT_OF_LATEST * (latest - before)


def _apart(one: Shape, other: Shape) -> float:
    return max(one.pixels, other.pixels) / min(one.pixels, other.pixels)


class Forecast(NamedTuple):
    """When a waiting task will run if no further task arrives, in seconds from now."""

    #: The number of tasks that run before it.
    position: int
    start_s: float
    finish_s: float
    #: Whether all times that this forecast is computed from were measured.
    measured: bool


class Now(NamedTuple):
    """The state from which a forecast begins."""

    current: Current
    costs: Costs
    now: float
    fairness: Fairness
    #: Seconds until the running call ends; None: unknown.
    busy_s: float | None


class Expectations(Protocol):
    """What a forecast expects of tasks and models."""

    def work_s(self, ticket: TaskTicket) -> float | None:
        """Seconds that a waiting task takes in a call of its own; None: unknown."""
        ...

    def most(self, ticket: TaskTicket) -> int:
        """The most pictures of a call that starts with this ticket."""
        ...

    def share(self, ticket: TaskTicket, pictures: int) -> float:
        """The time of one call with this number of pictures, divided by that of as many single calls."""
        ...

    def stays(self, model: str, residents: Sequence[str]) -> Sequence[str]:
        """The models of `residents` that a load of `model` leaves in memory."""
        ...


def forecast(lanes: Lanes, at: Now, expected: Expectations) -> dict[str, Forecast]:
    """The forecasts of the next HORIZON waiting tasks, by task id, in the order in which `choose` would take them."""
    forecasts: dict[str, Forecast] = {}
    clock, measured, current = at.busy_s or 0.0, at.busy_s is not None, at.current
    for call in calls(islice(order(lanes, at, expected), HORIZON), expected.most):
        ticket, work_s = call[0], _call_s(call, expected)
        if ticket.model not in current.models:
            clock += at.costs.swap(ticket.model)
            measured = measured and ticket.model in at.costs.load_s
        current = current.then(ticket.model, 0, expected.stays)
        start_s, started = clock, measured
        clock += at.costs.work(ticket.model) * len(call) if work_s is None else work_s
        measured = measured and work_s is not None
        for ticket in call:
            forecasts[ticket.task_id] = Forecast(len(forecasts), start_s, clock, started and measured)
    return forecasts


def beyond(forecasts: dict[str, Forecast], position: int) -> Forecast:
    """The forecast of a task behind the HORIZON, extrapolated from `forecasts`, the result of `forecast`.

    `position`: the number of tasks before it by priority and arrival.
    """
    last = next(reversed(forecasts.values()))
    position = max(position, len(forecasts))
    each_s = last.finish_s / len(forecasts)
    start_s = last.finish_s + (position - len(forecasts)) * each_s
    return Forecast(position, start_s, start_s + each_s, last.measured)


def _call_s(call: Sequence[TaskTicket], expected: Expectations) -> float | None:
    """The seconds of a call that these tasks share; None: unknown."""
    alone_s = [work_s for ticket in call if (work_s := expected.work_s(ticket)) is not None]
    share = expected.share(call[0], sum(ticket.pictures for ticket in call))
    return sum(alone_s) * share if len(alone_s) == len(call) else None


def order(lanes: Lanes, at: Now, expected: Expectations) -> Iterator[TaskTicket]:
    """The tickets in the order in which `choose` would take them. Further waiting does not raise priorities here."""
    current, now = at.current, at.now + (at.busy_s or 0)
    for group in lanes.groups(now, at.fairness):
        waiting = {model: each for model, tickets in group.items() if (each := tickets.waiting) is not None}
        while waiting:
            model = next_model(waiting, current, at.costs, now, at.fairness)
            yield group[model].take()
            if (rest := group[model].waiting) is not None:
                waiting[model] = rest
            else:
                del waiting[model]
            now += at.costs.work(model) + (0 if model in current.models else at.costs.swap(model))
            current = current.then(model, at.costs.work(model), expected.stays)


def remaining_s(expected_s: float | None, steps: tuple[int, int], spent_s: float) -> float | None:
    """Seconds until a running call ends; None: unknown.

    They are the share of `expected_s` for the steps that remain or, if that is None, extrapolated from the steps that
    are done.
    """
    done, total = steps
    if expected_s is not None:
        return expected_s * (total - done) / total if done else max(0.0, expected_s - spent_s)
    return spent_s / done * (total - done) if done else None
