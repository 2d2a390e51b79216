"""TaskQueue: the waiting tasks, and the actions between two tasks."""

import asyncio
import heapq
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from imagegen.tasks.lanes import Lanes
from imagegen.tasks.scheduling import Costs, Current, Fairness, Waiting, next_model
from imagegen.tasks.tickets import TaskTicket


@dataclass(frozen=True, slots=True, order=True)
class ControlTicket:
    """An action that the run loop executes between two tasks: evict, unload, apply a configuration, stop."""

    sequence: int
    action: Callable[[], Awaitable[object]] = field(compare=False)


Ticket = ControlTicket | TaskTicket


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
        self._lanes = Lanes()
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
            self._lanes.add(item)
            insort(self._places, item.place)

    def _get(self) -> Ticket:
        if self._control:
            return heapq.heappop(self._control)
        waiting = self._lanes.waiting(self._clock(), self._situation.fairness())
        return self._pop(waiting[self._next_model(waiting, self._situation.current())].oldest.task_id)

    def _next_model(self, waiting: Mapping[str, Waiting], current: Current) -> str:
        it = self._situation
        return next_model(waiting, current, it.costs(), self._clock(), it.fairness())

    def _pop(self, task_id: str) -> TaskTicket:
        ticket = self._tasks.pop(task_id)
        self._lanes.remove(ticket)
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
    def lanes(self) -> Lanes:
        """Tasks in the queue. Only to be read."""
        return self._lanes

    def companions(self, first: TaskTicket) -> Iterator[TaskTicket]:
        """The waiting tasks of the model of `first` that pass rule 1 of `choose` with it, in order of arrival."""
        return self._lanes.companions(first, self._clock(), self._situation.fairness())

    def first_load(self, cold: Callable[[str], bool]) -> str | None:
        """The model that is loaded next, of those that `cold` is true of; None: no task waits for one of them."""
        models = {model for model in self._lanes.models if cold(model)}
        waiting = self._lanes.waiting(self._clock(), self._situation.fairness(), models)
        return self._next_model(waiting, Current(None)) if waiting else None

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
        self._lanes = Lanes()
        return [ticket.task_id for ticket in tickets]
