"""`choose`: the pure function that decides which waiting task runs next."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from imagegen.tasks.tickets import TaskTicket

#: A function of a model and the resident models. Returns the residents that a load of the model leaves in memory. Both
#: lists have the most recently used model first.
Stays = Callable[[str, Sequence[str]], Sequence[str]]


class Current(NamedTuple):
    """The resident models, as far as the order of tasks depends on them."""

    #: The most recently used model; None: no model is resident.
    model: str | None
    #: Seconds of work that the resident models have done since the latest load.
    served_s: float = 0
    #: The other resident models, most recently used first.
    others: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """All of them, most recently used first."""
        return () if self.model is None else (self.model, *self.others)

    def then(self, model: str, work_s: float, stays: Stays) -> "Current":
        """The resident models after `work_s` seconds of work by `model`, which is loaded if it is not resident."""
        if model not in self.models:
            return Current(model, work_s, tuple(stays(model, self.models)))
        others = tuple(resident for resident in self.models if resident != model)
        return Current(model, self.served_s + work_s, others)


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured seconds of loads and tasks by model, and a guess for a model that has not run yet."""

    load_s: Mapping[str, float] = field(default_factory=dict)
    work_s: Mapping[str, float] = field(default_factory=dict)

    def swap(self, model: str) -> float:
        """Seconds of a load. The guess is between a warm swap and the median load of one production trace, 22.7 s."""
        return self.load_s.get(model, 10.0)

    def work(self, model: str) -> float:
        """Seconds of a task."""
        return self.work_s.get(model, 2.6)


#: A waiting model is due once its oldest task has waited as long as this number of its loads takes.
PATIENCE_SWAPS = 50

#: A due model may interrupt the resident models once their work since the latest load has taken as long as this number
#: of its loads. With a lower number, the swaps cost more than fairness is worth.
QUANTUM_SWAPS = 45


class Fairness(NamedTuple):
    """How far tasks may be reordered to save swaps, and how waiting raises priorities. See docs/scheduling.md."""

    patience_swaps: float = PATIENCE_SWAPS
    quantum_swaps: float = QUANTUM_SWAPS
    #: Seconds of waiting that raise the priority of a task by one step; 0: waiting does not raise it.
    ageing_s: float = 300


USUAL = Fairness()


class Waiting(NamedTuple):
    """The tasks of a model that pass rule 1 of `choose`."""

    #: The task that arrived first.
    oldest: TaskTicket
    number: int
    #: The sum of their `since`.
    since_s: float

    def waited_s(self, now: float) -> float:
        """The sum of their waits, in seconds."""
        return self.number * now - self.since_s


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

    After a swap, the tasks of the new model run one after the other (rule 2). A limit on the waiting time of single
    tasks would not do that: in a long queue every task exceeds it, and each would cause a swap.
    """
    waiting = by_model(foremost(ready, now, fairness))
    return waiting[next_model(waiting, current, costs, now, fairness)].oldest


def foremost(ready: Sequence[TaskTicket], now: float, fairness: Fairness) -> list[TaskTicket]:
    """The tasks that pass rule 1. Lanes.foremost finds the same tasks without reading all of them."""
    best = min(ticket.priority for ticket in ready)
    step_s = fairness.ageing_s or math.inf
    return [t for t in ready if t.priority == best or now - t.since >= (t.priority - best) * step_s]


def by_model(tickets: Iterable[TaskTicket]) -> dict[str, Waiting]:
    """Tickets, summed up by model."""
    waiting: dict[str, Waiting] = {}
    for ticket in sorted(tickets, key=_arrival):
        oldest, number, since_s = waiting.get(ticket.model, (ticket, 0, 0.0))
        waiting[ticket.model] = Waiting(oldest, number + 1, since_s + ticket.since)
    return waiting


_arrival = attrgetter("sequence")


def next_model(waiting: Mapping[str, Waiting], current: Current, costs: Costs, now: float, fairness: Fairness) -> str:
    """The model whose oldest task is next, by rules 2 to 5."""
    others = [model for model in waiting if model not in current.models]
    due = _longest_due([waiting[model].oldest for model in others], costs, now, fairness)
    own = min((waiting[model].oldest for model in current.models if model in waiting), key=_arrival, default=None)
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
    """Whether rule 3 applies. `due`: the result of `_longest_due`; `own`: the oldest task of the resident models."""
    if due is None or due.sequence > own.sequence:
        return False
    return current.served_s >= fairness.quantum_swaps * costs.swap(due.model)


def _claim(waiting: Waiting, swap_s: float, work_s: float, now: float) -> float:
    return waiting.waited_s(now) / (swap_s + waiting.number * work_s)
