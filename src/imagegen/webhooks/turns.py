"""Turns: decides which delivery is tried next. Pure: the time is an argument."""

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count


@dataclass(slots=True, eq=False)
class Turn:
    """A delivery that waits for its next attempt. Times are those of the sender's clock."""

    id: str
    task_id: str
    host: str
    #: Attempts so far that count.
    attempts: int = 0
    #: Whether a restart moved the next attempt forward; that attempt does not count.
    early: bool = False
    due: float = 0
    #: Whether it is in its host's line, or its attempt runs.
    taken: bool = False


@dataclass(slots=True)
class Turns:
    """Deliveries of one task are sent in order of creation; hosts take turns, each with a few attempts at a time."""

    #: Concurrent attempts, in all and to one host: a slow receiver must not delay the others.
    most: int = 16
    most_a_host: int = 2
    _known: dict[str, Turn] = field(init=False, repr=False, default_factory=dict)
    #: By task, in order of creation; only the first of each is tried.
    _lines: dict[str, deque[Turn]] = field(init=False, repr=False, default_factory=dict)
    _due: list[tuple[float, int, Turn]] = field(init=False, repr=False, default_factory=list)
    #: The due deliveries, by host.
    _ready: dict[str, deque[Turn]] = field(init=False, repr=False, default_factory=dict)
    _under_way: Counter[str] = field(init=False, repr=False, default_factory=Counter)
    _numbers: Iterator[int] = field(init=False, repr=False, default_factory=count)

    @property
    def pending(self) -> int:
        """Deliveries that wait or are sent."""
        return len(self._known)

    def due(self, delivery_id: str) -> float | None:
        """When the delivery is tried next; None: it does not wait for a time."""
        turn = self._known.get(delivery_id)
        return turn.due if turn and not turn.taken else None

    def next_due(self) -> float | None:
        """When `take` may return something again, unless an attempt ends before."""
        return self._due[0][0] if self._due else None

    def add(self, turn: Turn, due: float) -> None:
        """Add a delivery behind the earlier ones of its task. One that waits already is left as it is."""
        if turn.id in self._known:
            return
        self._known[turn.id], turn.due = turn, due
        line = self._lines.setdefault(turn.task_id, deque())
        line.append(turn)
        if line[0] is turn:
            self._push(turn)

    def hasten(self, delivery_id: str, due: float) -> bool:
        """Move the next attempt of a waiting delivery forward and reset its attempts; False: not known."""
        turn = self._known.get(delivery_id)
        if turn is None:
            return False
        turn.attempts, turn.early = 0, False
        if not turn.taken:
            turn.due = due
            if self._lines[turn.task_id][0] is turn:
                self._push(turn)
        return True

    def take(self, now: float) -> list[Turn]:
        """Remove and return the deliveries whose attempts start now."""
        while self._due and self._due[0][0] <= now:
            due, _, turn = heapq.heappop(self._due)
            if self._known.get(turn.id) is turn and turn.due == due and not turn.taken:
                turn.taken = True
                self._ready.setdefault(turn.host, deque()).append(turn)
        return list(self._begin())

    def _begin(self) -> Iterator[Turn]:
        while self._under_way.total() < self.most and (turn := self._next_ready()) is not None:
            self._under_way[turn.host] += 1
            yield turn

    def _next_ready(self) -> Turn | None:
        """The next delivery of the first host with a free slot; that host moves to the back."""
        free = (host for host in self._ready if self._under_way[host] < self.most_a_host)
        if (host := next(free, None)) is None:
            return None
        ready = self._ready.pop(host)
        turn = ready.popleft()
        if ready:
            self._ready[host] = ready
        return turn

    def again(self, turn: Turn, due: float) -> None:
        """Its attempt failed; the next one is due at `due`."""
        self._ended(turn)
        if self._known.get(turn.id) is turn:
            turn.due, turn.taken = due, False
            self._push(turn)

    def done(self, turn: Turn) -> None:
        """It had its last attempt."""
        self._ended(turn)
        if self._known.get(turn.id) is turn:
            self._leave(turn)

    def drop(self, delivery_ids: Iterable[str]) -> None:
        """Remove deliveries. A running attempt ends by itself."""
        for delivery_id in delivery_ids:
            if (turn := self._known.get(delivery_id)) is not None:
                self._leave(turn)

    def _ended(self, turn: Turn) -> None:
        self._under_way[turn.host] -= 1
        if not self._under_way[turn.host]:
            del self._under_way[turn.host]

    def _leave(self, turn: Turn) -> None:
        del self._known[turn.id]
        line = self._lines[turn.task_id]
        was_first = line[0] is turn
        line.remove(turn)
        if not line:
            del self._lines[turn.task_id]
        elif was_first:
            self._push(line[0])

    def _push(self, turn: Turn) -> None:
        heapq.heappush(self._due, (turn.due, next(self._numbers), turn))
