"""TaskQueue, and `choose`: the pure function that decides which waiting task runs next."""

import asyncio
import heapq
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple, Protocol

from imagegen.core.task import GenerationRequest


@dataclass(frozen=True, slots=True, order=True)
class ControlTicket:
    """An action that the run loop executes between two tasks: evict, unload, apply a configuration, stop."""

    sequence: int
    action: Callable[[], Awaitable[object]] = field(compare=False)


#: Pixels of a picture, steps, whether guidance runs the model twice, whether there is a negative prompt.
Kind = tuple[int, int, bool, bool]


class Likeness(NamedTuple):
    """What tasks must have in common, beside their model, to share a call."""

    width: int
    height: int
    steps: int
    guidance_scale: float
    negative_prompt: bool

    @property
    def kind(self) -> Kind:
        """The part of it that decides how long a picture takes."""
        return self.width * self.height, self.steps, self.guidance_scale > 1, self.negative_prompt


class Work(NamedTuple):
    """What the time of a task depends on, beside its model."""

    #: Of one picture.
    pixels: int
    #: Whether it begins with a picture.
    from_picture: bool
    #: Denoising steps of all pictures. With a strength, only that share of them runs.
    steps: float

    @classmethod
    def of(cls, request: GenerationRequest) -> "Work":
        steps = request.steps * request.batch_size * (request.strength or 1)
        return cls(request.size.pixels, request.strength is not None, steps)


@dataclass(frozen=True, slots=True, order=True)
class TaskTicket:
    """A waiting task's place in the queue: by priority, then by arrival."""

    #: Lower runs first.
    priority: int
    #: Arrival order.
    sequence: int
    task_id: str = field(compare=False)
    model: str = field(compare=False)
    #: When the task was accepted, in seconds of the clock that `choose` is given.
    since: float = field(compare=False)
    #: What a companion in its call must have in common with it; None: it cannot be batched.
    likeness: Likeness | None = field(default=None, compare=False)
    #: The number of pictures that it makes.
    pictures: int = field(default=1, compare=False)
    work: Work = field(default=Work(1, False, 1), compare=False)

    @property
    def place(self) -> tuple[int, int]:
        """The key by which tickets are ordered."""
        return self.priority, self.sequence


Ticket = ControlTicket | TaskTicket


#: From a model and the resident models: those that stay resident when the model is loaded. Most recently used first.
Stays = Callable[[str, Sequence[str]], Sequence[str]]


class Current(NamedTuple):
    """The resident models, as far as the order of tasks depends on them."""

    #: The most recently used one.
    model: str | None
    #: Seconds of work that the resident models have done since the latest load.
    served_s: float = 0
    #: The others, most recently used first.
    beside: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """All of them, most recently used first."""
        return () if self.model is None else (self.model, *self.beside)

    def then(self, model: str, work_s: float, stays: Stays) -> "Current":
        """The resident models after `work_s` seconds of work by `model`, which is loaded if it is not resident."""
        if model not in self.models:
            return Current(model, work_s, tuple(stays(model, self.models)))
        others = tuple(resident for resident in self.models if resident != model)
        return Current(model, self.served_s + work_s, others)


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured seconds of loads and tasks by model, with a guess for a model that has not run yet."""

    load_s: Mapping[str, float] = field(default_factory=dict)
    work_s: Mapping[str, float] = field(default_factory=dict)

    def swap(self, model: str) -> float:
        # 10 s: between a warm swap and the 22.7 s median load of one production trace.
        return self.load_s.get(model, 10.0)

    def work(self, model: str) -> float:
        return self.work_s.get(model, 2.6)


#: A waiting model is due once its oldest task has waited this many of its swaps ...
PATIENCE_SWAPS = 50
#: ... and may interrupt the resident ones once they have had this many swaps' worth of work since the latest load:
#: below that, fairness costs more than it gives.
QUANTUM_SWAPS = 45


class Fairness(NamedTuple):
    """How far tasks may be reordered to save swaps, and how waiting raises priorities. See docs/scheduling.md."""

    patience_swaps: float = PATIENCE_SWAPS
    quantum_swaps: float = QUANTUM_SWAPS
    #: Seconds of waiting that raise a task by one step of priority; 0: waiting raises none.
    ageing_s: float = 300


USUAL = Fairness()

Lanes = dict[str, deque[TaskTicket]]


def choose(
    ready: Sequence[TaskTicket], current: Current, costs: Costs, now: float, fairness: Fairness = USUAL
) -> TaskTicket:
    """The task to run next. Pure: no clock, no I/O. The simulator in bench/ runs this function, too.

    1. Only tasks with the lowest priority number are considered, and tasks that have waited long enough to be raised
       to it.
    2. Of these, the tasks of the resident models come first, in order of arrival.
    3. Another model interrupts them if the resident models have used their quantum, the other model is due, and one of
       its tasks arrived before all of theirs.
    4. When a model must be loaded, it is the due model whose oldest task arrived first.
    5. If no model is due, it is the one with the largest claim: the sum of its tasks' waits, divided by the seconds
       that its load and its tasks take.

    After a swap the tasks of that model follow each other (rule 2). A bound on the age of single tasks would swap at
    each task of a burst, where every task is old.
    """
    waiting = lanes(foremost(ready, now, fairness))
    return waiting[next_model(waiting, current, costs, now, fairness)][0]


def foremost(ready: Sequence[TaskTicket], now: float, fairness: Fairness) -> list[TaskTicket]:
    """The tasks that rule 1 leaves."""
    best = min(ticket.priority for ticket in ready)
    step_s = fairness.ageing_s or math.inf
    return [t for t in ready if t.priority == best or now - t.since >= (t.priority - best) * step_s]


def lanes(tickets: Iterable[TaskTicket]) -> Lanes:
    """Tickets by model, in order of arrival."""
    by_model: Lanes = {}
    for ticket in sorted(tickets, key=_arrival):
        by_model.setdefault(ticket.model, deque()).append(ticket)
    return by_model


_arrival = attrgetter("sequence")


def next_model(waiting: Lanes, current: Current, costs: Costs, now: float, fairness: Fairness) -> str:
    """The model whose oldest task is next, by rules 2 to 5."""
    others = [model for model in waiting if model not in current.models]
    due = _longest_due([waiting[model][0] for model in others], costs, now, fairness)
    own = min((waiting[model][0] for model in current.models if model in waiting), key=_arrival, default=None)
    if own is not None and not _interrupts(due, own, current, costs, fairness):
        return own.model
    if due is not None:
        return due.model
    return max(others, key=lambda model: _claim(waiting[model], costs.swap(model), costs.work(model), now))


def _longest_due(oldest: Iterable[TaskTicket], costs: Costs, now: float, fairness: Fairness) -> TaskTicket | None:
    """The task that arrived first among those whose model is due. `oldest`: the oldest task of each model."""
    due = (t for t in oldest if now - t.since >= fairness.patience_swaps * costs.swap(t.model))
    return min(due, key=_arrival, default=None)


def _interrupts(due: TaskTicket | None, own: TaskTicket, current: Current, costs: Costs, fairness: Fairness) -> bool:
    """Whether rule 3 applies. `own`: the oldest task of the resident models."""
    if due is None or due.sequence > own.sequence:
        return False
    return current.served_s >= fairness.quantum_swaps * costs.swap(due.model)


def _claim(tickets: Sequence[TaskTicket], swap_s: float, work_s: float, now: float) -> float:
    waited = sum(now - ticket.since for ticket in tickets)
    return waited / (swap_s + len(tickets) * work_s)


class Situation(Protocol):
    """What `choose` is given beside the tickets and the time."""

    def current(self) -> Current: ...

    def costs(self) -> Costs: ...

    def fairness(self) -> Fairness: ...


class TaskQueue(asyncio.PriorityQueue[Ticket]):
    """Returns control tickets first, then the task that `choose` returns. Intake bounds the number of tasks."""

    def __init__(self, situation: Situation, clock: Callable[[], float]) -> None:
        super().__init__()
        self._situation = situation
        self._clock = clock

    def __repr__(self) -> str:
        state = "HELD" if self.held else "OPEN"
        return f"<TaskQueue [{state}, Waiting: {self.waiting}, Control: {len(self._control)}]>"

    def _init(self, maxsize: int) -> None:
        self._control: list[ControlTicket] = []
        #: Whether no task may be taken. Set it in a control ticket: only a new ticket wakes a waiting `get`.
        self.held = False
        self._tasks: dict[str, TaskTicket] = {}
        #: The places of the same tickets, sorted, because positions are computed often.
        self._places: list[tuple[int, int]] = []

    def _put(self, item: Ticket) -> None:
        if isinstance(item, ControlTicket):
            heapq.heappush(self._control, item)
        else:
            self._tasks[item.task_id] = item
            insort(self._places, item.place)

    def _get(self) -> Ticket:
        if self._control:
            return heapq.heappop(self._control)
        ready = list(self._tasks.values())
        it = self._situation
        ticket = choose(ready, it.current(), it.costs(), self._clock(), it.fairness())
        return self._pop(ticket.task_id)

    def _pop(self, task_id: str) -> TaskTicket:
        ticket = self._tasks.pop(task_id)
        del self._places[bisect_left(self._places, ticket.place)]
        return ticket

    def qsize(self) -> int:
        """Tickets that may be taken."""
        return len(self._control) + (0 if self.held else len(self._tasks))

    def empty(self) -> bool:
        return self.qsize() == 0

    @property
    def waiting(self) -> int:
        """Tasks in the queue."""
        return len(self._tasks)

    @property
    def tickets(self) -> Collection[TaskTicket]:
        """Tasks in the queue, in no order."""
        return self._tasks.values()

    def first_load(self, cold: Callable[[str], bool]) -> str | None:
        """The model that is loaded next, of those that `cold` is true of; None: no task waits for one of them."""
        waiting = [ticket for ticket in self._tasks.values() if cold(ticket.model)]
        if not waiting:
            return None
        it = self._situation
        return choose(waiting, Current(None), it.costs(), self._clock(), it.fairness()).model

    def position(self, ticket: TaskTicket) -> int:
        """The number of tasks before it by priority and arrival. `choose` may take others first."""
        return bisect_left(self._places, ticket.place)

    def remove(self, task_id: str) -> bool:
        """Take a waiting task out; False if it is not waiting."""
        if task_id not in self._tasks:
            return False
        self._pop(task_id)
        return True

    def remove_all(self) -> list[str]:
        """Take all waiting tasks out; their ids in order of arrival."""
        tickets = sorted(self._tasks.values(), key=lambda ticket: ticket.sequence)
        self._tasks.clear()
        self._places.clear()
        return [ticket.task_id for ticket in tickets]
