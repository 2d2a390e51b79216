"""Turns: whose turn it is. Pure: it is told the time, and does nothing but decide."""

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count


@dataclass(slots=True, eq=False)
class Turn:
    """A delivery that waits for its next attempt. Times are on the sender's clock."""

    id: str
    task_id: str
    host: str
    #: Attempts that count, so far.
    attempts: int = 0
    #: Whether a restart has brought the next attempt forward; then that one does not count.
    early: bool = False
    due: float = 0
    #: Whether it is in a host's line or under way.
    taken: bool = False


@dataclass(slots=True)
class Turns:
    """Deliveries of one task go in the order of their birth; hosts take turns, each with a few attempts at a time."""

    #: Attempts that may be under way, and those to one host: a slow receiver must not hold up the others.
    most: int = 16
    most_a_host: int = 2
    _known: dict[str, Turn] = field(init=False, repr=False, default_factory=dict)
    #: By task, in order of birth; only the first of each is tried.
    _lines: dict[str, deque[Turn]] = field(init=False, repr=False, default_factory=dict)
    _due: list[tuple[float, int, Turn]] = field(init=False, repr=False, default_factory=list)
    #: By host, those that are due.
    _ready: dict[str, deque[Turn]] = field(init=False, repr=False, default_factory=dict)
    _under_way: Counter[str] = field(init=False, repr=False, default_factory=Counter)
    _numbers: Iterator[int] = field(init=False, repr=False, default_factory=count)

    def due(self, delivery_id: str) -> float | None:
        """When it is to be tried, unless something is in its way; None: it does not wait, or not for its time."""
        turn = self._known.get(delivery_id)
        return turn.due if turn and not turn.taken else None

    def next_due(self) -> float | None:
        """When `take` may have something again, if no attempt ends before."""
        return self._due[0][0] if self._due else None

    def add(self, turn: Turn, due: float) -> None:
        """It waits from now on, behind the earlier ones of its task. One that waits already changes nothing."""
        if turn.id in self._known:
            return
        self._known[turn.id], turn.due = turn, due
        line = self._lines.setdefault(turn.task_id, deque())
        line.append(turn)
        if line[0] is turn:
            self._push(turn)

    def hasten(self, delivery_id: str, due: float) -> bool:
        """Have one that waits tried sooner, its attempts counted anew; False if it is not known."""
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
        """Those whose attempt begins now."""
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
        """Of the first host that may have one more; that host then goes behind the others."""
        free = (host for host in self._ready if self._under_way[host] < self.most_a_host)
        if (host := next(free, None)) is None:
            return None
        ready = self._ready.pop(host)
        turn = ready.popleft()
        if ready:
            self._ready[host] = ready
        return turn

    def again(self, turn: Turn, due: float) -> None:
        """Its attempt failed; the next one is due then."""
        self._ended(turn)
        if self._known.get(turn.id) is turn:
            turn.due, turn.taken = due, False
            self._push(turn)

    def done(self, turn: Turn) -> None:
        """Its attempt was its last one."""
        self._ended(turn)
        if self._known.get(turn.id) is turn:
            self._leave(turn)

    def drop(self, delivery_ids: Iterable[str]) -> None:
        """These are not to be tried any more; what is under way ends by itself."""
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
