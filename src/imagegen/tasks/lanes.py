"""Lanes: the waiting tasks by priority and model, so that no query reads all of them."""

import heapq
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from imagegen.tasks.scheduling import Fairness, Waiting
from imagegen.tasks.tickets import TaskTicket

#: The most tickets in a block. An insertion, and the sum over a part of a lane, read the tickets of one block.
BLOCK = 512

_arrival = attrgetter("sequence")
_since = attrgetter("since")


class Lane:
    """The tickets of one model and one priority in order of arrival, which is also the order of `since`.

    They are kept in blocks, each with the sum of its tickets' `since`.
    """

    def __init__(self) -> None:
        self._blocks: list[list[TaskTicket]] = []
        #: The sum of `since` of each block.
        self._sums: list[float] = []
        self.number = 0

    def __iter__(self) -> Iterator[TaskTicket]:
        for block in self._blocks:
            yield from block

    def add(self, ticket: TaskTicket) -> None:
        """Insert a ticket at its place in the order of arrival."""
        at = max(0, bisect_right(self._blocks, ticket.sequence, key=lambda block: block[0].sequence) - 1)
        if not self._blocks:
            self._blocks, self._sums = [[]], [0.0]
        block = self._blocks[at]
        insort(block, ticket, key=_arrival)
        self._sums[at] += ticket.since
        self.number += 1
        if len(block) > BLOCK:
            half = BLOCK // 2 if at < len(self._blocks) - 1 else BLOCK  # the last block grows at its end only
            self._blocks[at : at + 1] = [block[:half], block[half:]]
            self._sums[at : at + 1] = [sum(map(_since, part)) for part in (block[:half], block[half:])]

    def remove(self, ticket: TaskTicket) -> None:
        """Remove a ticket of this lane."""
        at = bisect_right(self._blocks, ticket.sequence, key=lambda block: block[0].sequence) - 1
        block = self._blocks[at]
        del block[bisect_left(block, ticket.sequence, key=_arrival)]
        self.number -= 1
        if block:
            self._sums[at] = sum(map(_since, block))  # summed anew, because subtractions would add up rounding errors
        else:
            del self._blocks[at], self._sums[at]

    def until(self, since: float) -> tuple[int, float]:
        """The number of tickets that were accepted until `since`, and the sum of their `since`."""
        at = bisect_right(self._blocks, since, key=lambda block: block[0].since) - 1
        if at < 0:
            return 0, 0.0
        block = self._blocks[at]
        within = bisect_right(block, since, key=_since)
        number = sum(map(len, self._blocks[:at])) + within
        return number, sum(self._sums[:at]) + sum(map(_since, block[:within]))


class Part(NamedTuple):
    """The first tickets of a lane."""

    lane: Lane
    number: int
    #: The sum of their `since`.
    since_s: float

    @property
    def tickets(self) -> Iterator[TaskTicket]:
        """In order of arrival."""
        return islice(self.lane, self.number)


class Group:
    """The tickets of one model from several lanes, in order of arrival. `take` leaves the lanes as they are."""

    def __init__(self, parts: Iterable[tuple[Iterator[TaskTicket], int, float]]) -> None:
        """`parts`: for each lane the tickets, their number, and the sum of their `since`."""
        parts = list(parts)
        self._tickets = heapq.merge(*(tickets for tickets, _, _ in parts), key=_arrival)
        self._number, self._since_s = sum(part[1] for part in parts), sum(part[2] for part in parts)
        self._oldest = next(self._tickets, None)

    @property
    def waiting(self) -> Waiting | None:
        """The tickets that are not taken yet; None: all are taken."""
        return None if self._oldest is None else Waiting(self._oldest, self._number, self._since_s)

    def take(self) -> TaskTicket:
        """Take the oldest ticket."""
        taken = self._oldest
        assert taken is not None
        self._oldest, self._number, self._since_s = (
            next(self._tickets, None),
            self._number - 1,
            self._since_s - taken.since,
        )
        return taken


class Lanes:
    """All waiting tasks."""

    def __init__(self, tickets: Iterable[TaskTicket] = ()) -> None:
        self._lanes: dict[int, dict[str, Lane]] = {}
        for ticket in tickets:
            self.add(ticket)

    def add(self, ticket: TaskTicket) -> None:
        """Insert a ticket."""
        self._lanes.setdefault(ticket.priority, {}).setdefault(ticket.model, Lane()).add(ticket)

    def remove(self, ticket: TaskTicket) -> None:
        """Remove a ticket that was added."""
        models = self._lanes[ticket.priority]
        models[ticket.model].remove(ticket)
        if not models[ticket.model].number:
            del models[ticket.model]
        if not models:
            del self._lanes[ticket.priority]

    @property
    def models(self) -> set[str]:
        """The models that tasks wait for."""
        return {model for models in self._lanes.values() for model in models}

    @property
    def numbers(self) -> dict[tuple[int, str], int]:
        """The number of tasks by priority and model."""
        return {
            (priority, model): lane.number for priority, models in self._lanes.items() for model, lane in models.items()
        }

    def foremost(
        self, now: float, fairness: Fairness, models: Collection[str] | None = None, priority: int | None = None
    ) -> dict[str, list[Part]]:
        """The tasks that pass rule 1 of `choose`, by model.

        `models`: ignore the tasks of all others. `priority`: consider one more task of this priority, which is not in
        a lane.
        """
        lanes = [
            (level, model, lane)
            for level, by_model in self._lanes.items()
            for model, lane in by_model.items()
            if models is None or model in models
        ]
        levels = {level for level, _, _ in lanes} | (set() if priority is None else {priority})
        best, step_s = min(levels, default=0), fairness.ageing_s or math.inf
        passing: dict[str, list[Part]] = {}
        for level, model, lane in lanes:
            number, since_s = lane.until(math.inf if level == best else now - (level - best) * step_s)
            if number:
                passing.setdefault(model, []).append(Part(lane, number, since_s))
        return passing

    def waiting(self, now: float, fairness: Fairness, models: Collection[str] | None = None) -> dict[str, Waiting]:
        """The tasks that pass rule 1 of `choose`, summed up by model. `models`: ignore the tasks of all others."""
        return {
            model: Waiting(
                min((next(part.tickets) for part in parts), key=_arrival),
                sum(part.number for part in parts),
                sum(part.since_s for part in parts),
            )
            for model, parts in self.foremost(now, fairness, models).items()
        }

    def companions(self, first: TaskTicket, now: float, fairness: Fairness) -> Iterator[TaskTicket]:
        """The tasks of the same model that pass rule 1 together with `first`, in order of arrival.

        `first` was taken out of its lane.
        """
        parts = self.foremost(now, fairness, priority=first.priority).get(first.model, [])
        return heapq.merge(*(part.tickets for part in parts), key=_arrival)

    def groups(self, now: float, fairness: Fairness) -> Iterator[dict[str, Group]]:
        """The tasks that pass rule 1, by model; then the others, one priority after the other."""
        passing, taken = self.foremost(now, fairness), dict[Lane, Part]()
        for parts in passing.values():
            taken.update({part.lane: part for part in parts})
        yield {
            model: Group((part.tickets, part.number, part.since_s) for part in parts)
            for model, parts in passing.items()
        }
        for priority in sorted(self._lanes):
            group = {}
            for model, lane in self._lanes[priority].items():
                before = taken.get(lane, Part(lane, 0, 0.0))
                if lane.number > before.number:
                    since_s = lane.until(math.inf)[1] - before.since_s
                    rest = islice(lane, before.number, None)
                    group[model] = Group([(rest, lane.number - before.number, since_s)])
            if group:
                yield group
