"""TaskQueue, and the pure function that decides which waiting task is next."""

import asyncio
import heapq
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple


@dataclass(frozen=True, slots=True, order=True)
class ControlTicket:
    """Something the run loop is asked to do between two tasks: evict, unload, expire, stop."""

    sequence: int
    action: Callable[[], Awaitable[object]] = field(compare=False)


@dataclass(frozen=True, slots=True, order=True)
class TaskTicket:
    """A waiting task's place in the queue: by priority, then by arrival."""

    #: Lower runs first.
    priority: int
    #: Arrival order.
    sequence: int
    task_id: str = field(compare=False)
    model: str = field(compare=False)
    #: When it was accepted, in seconds on the clock that `choose` is given.
    since: float = field(compare=False)

    @property
    def place(self) -> tuple[int, int]:
        """What orders it."""
        return self.priority, self.sequence


Ticket = ControlTicket | TaskTicket


class Current(NamedTuple):
    """The resident model, as far as ordering cares."""

    model: str | None
    #: Seconds of work it has done since it was loaded.
    served_s: float = 0


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured prices, in seconds, with guesses for what has not run yet."""

    load_s: Mapping[str, float] = field(default_factory=dict)
    work_s: Mapping[str, float] = field(default_factory=dict)

    def swap(self, model: str) -> float:
        # 10 s: between a warm swap and the 22.7 s median load of one production trace.
        return self.load_s.get(model, 10.0)

    def work(self, model: str) -> float:
        return self.work_s.get(model, 2.6)


#: A waiting model is due once its oldest task has waited this many of its swaps ...
PATIENCE_SWAPS = 50
#: ... and may interrupt the resident one once that has had this many swaps' worth of work: below that, fairness costs
#: more than it gives.
QUANTUM_SWAPS = 45


def choose(ready: Sequence[TaskTicket], current: Current, costs: Costs, now: float) -> TaskTicket:
    """The task to run next. Pure: no clock, no I/O; the simulator in bench/ runs this very function.

    1. Only the lowest priority number counts.
    2. Its tasks of the resident model come first, in order of arrival,
    3. unless the resident model has had its quantum and another model is due, with a task that came before all of them.
    4. Where the model changes, the one that is due longest is next;
    5. if none is, the one with the largest claim: the sum of its tasks' waits over the price of serving them.

    A swap opens a run of that model's work (2), never a single task: in a burst every task is old, and an age bound
    for single tasks swaps at each one.
    """
    best = min(ticket.priority for ticket in ready)
    by_model: dict[str, list[TaskTicket]] = {}
    for ticket in sorted((t for t in ready if t.priority == best), key=_arrival):
        by_model.setdefault(ticket.model, []).append(ticket)
    own = by_model.pop(current.model, []) if current.model else []
    due = _longest_due([tickets[0] for tickets in by_model.values()], costs, now)
    if own and not (due and due < own[0] and current.served_s >= QUANTUM_SWAPS * costs.swap(due.model)):
        return own[0]
    if due:
        return due
    model = max(by_model, key=lambda m: _claim(by_model[m], costs.swap(m), costs.work(m), now))
    return by_model[model][0]


_arrival = attrgetter("sequence")


def _longest_due(oldest: Sequence[TaskTicket], costs: Costs, now: float) -> TaskTicket | None:
    """Of the oldest task of each model: the first to arrive of those that have waited long enough."""
    due = (ticket for ticket in oldest if now - ticket.since >= PATIENCE_SWAPS * costs.swap(ticket.model))
    return min(due, key=_arrival, default=None)


def _claim(tickets: Sequence[TaskTicket], swap_s: float, work_s: float, now: float) -> float:
    waited = sum(now - ticket.since for ticket in tickets)
    return waited / (swap_s + len(tickets) * work_s)


class TaskQueue(asyncio.PriorityQueue[Ticket]):
    """Control tickets first, then what `choose` says. Bounded by its owner, so that control always gets in."""

    def __init__(self, current: Callable[[], Current], costs: Callable[[], Costs], clock: Callable[[], float]) -> None:
        super().__init__()
        self._current = current
        self._costs = costs
        self._clock = clock

    def _init(self, maxsize: int) -> None:
        self._control: list[ControlTicket] = []
        self._tasks: dict[str, TaskTicket] = {}
        #: The same tickets' places, sorted: each task that comes and each that is looked at asks for its position.
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
        ticket = choose(list(self._tasks.values()), self._current(), self._costs(), self._clock())
        return self._pop(ticket.task_id)

    def _pop(self, task_id: str) -> TaskTicket:
        ticket = self._tasks.pop(task_id)
        del self._places[bisect_left(self._places, ticket.place)]
        return ticket

    def qsize(self) -> int:
        return len(self._control) + len(self._tasks)

    def empty(self) -> bool:
        return self.qsize() == 0

    @property
    def waiting(self) -> int:
        """Tasks in the queue."""
        return len(self._tasks)

    def position(self, ticket: TaskTicket) -> int:
        """How many tasks stand before it by priority and arrival; affinity may change that."""
        return bisect_left(self._places, ticket.place)

    def positions(self) -> dict[str, int]:
        """`position` of every waiting task, by id."""
        return {ticket.task_id: place for place, ticket in enumerate(sorted(self._tasks.values()))}

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
