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
    """What the scheduler needs besides the tickets and the time."""

    def current(self) -> Current: ...

    def costs(self) -> Costs: ...

    def fairness(self) -> Fairness: ...


class TaskQueue(asyncio.PriorityQueue[Ticket]):
    """`get` returns control tickets first, then the task that `choose` picks. Intake limits the number of tasks."""

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
        #: Whether tasks must stay in the queue. To be set by a control ticket: only a new ticket wakes a waiting `get`.
        self.held = False
        self._tasks: dict[str, TaskTicket] = {}
        #: The sorted places of the same tickets, because positions are computed often.
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
        """The number of tickets that `get` may return now."""
        return len(self._control) + (0 if self.held else len(self._tasks))

    def empty(self) -> bool:
        return self.qsize() == 0

    @property
    def waiting(self) -> int:
        """The number of tasks in the queue."""
        return len(self._tasks)

    @property
    def lanes(self) -> Lanes:
        """The tasks in the queue, to be read. Outlooks alone adds a ticket, which it removes at once."""
        return self._lanes

    def companions(self, first: TaskTicket) -> Iterator[TaskTicket]:
        """The waiting tasks of the same model that pass rule 1 of `choose` with `first`, in order of arrival."""
        return self._lanes.companions(first, self._clock(), self._situation.fairness())

    def first_load(self, is_cold: Callable[[str], bool]) -> str | None:
        """The cold model that is expected to be loaded first; None: no task waits for a cold model."""
        models = {model for model in self._lanes.models if is_cold(model)}
        waiting = self._lanes.waiting(self._clock(), self._situation.fairness(), models)
        return self._next_model(waiting, Current(None)) if waiting else None

    def position(self, ticket: TaskTicket) -> int:
        """The number of tasks before it by priority and arrival. `choose` may pick them in another order."""
        return bisect_left(self._places, ticket.place)

    def remove(self, task_id: str) -> bool:
        """Remove a waiting task; False if it does not wait."""
        if task_id not in self._tasks:
            return False
        self._pop(task_id)
        return True

    def remove_all(self) -> list[str]:
        """Remove all waiting tasks; returns their ids in order of arrival."""
        tickets = sorted(self._tasks.values(), key=lambda ticket: ticket.sequence)
        self._tasks.clear()
        self._places.clear()
        self._lanes = Lanes()
        return [ticket.task_id for ticket in tickets]
