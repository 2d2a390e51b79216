"""Turns: decides which delivery is tried next. Pure: the time is an argument."""

import heapq
from collections import deque
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
    #: Whether its next attempt was requested over the API: it then precedes the other deliveries of its host.
    asked: bool = False
    #: When its attempt began.
    begun: float = 0


@dataclass(slots=True, eq=False)
class _Host:
    """A host with deliveries."""

    #: Its due deliveries.
    ready: deque[Turn] = field(default_factory=deque)
    #: Its deliveries that wait or are sent.
    known: int = 0
    running: int = 0
    #: Whether its latest attempt was slow or had no answer.
    suspect: bool = False
    #: Whether it gets no attempt for `rest_s`, because the latest one had no answer.
    resting: bool = False


@dataclass(slots=True)
class Turns:
    """Deliveries of one task are sent in order of creation; hosts take turns, each with a few attempts at a time.

    A slow host does not delay deliveries to other hosts: an attempt gives its slot back once it is slow, and a host
    whose latest attempt was slow or had no answer is a suspect. Suspects have slots of their own, one for each host.
    """

    #: Concurrent attempts that are not slow yet.
    most: int = 16
    most_a_host: int = 2
    #: Attempts that are slow or belong to suspects: while so many run, no suspect gets another one.
    most_suspect: int = 16
    #: Concurrent attempts in all: each needs a socket. 16 a second can become slow, and run until their timeout.
    most_open: int = 256
    #: Seconds after which an attempt is slow.
    slow_s: float = 1
    #: Seconds between an attempt without an answer and the host's next one. Thousands of deliveries may wait for a host
    #: that is down: at one a second, 10,000 have an attempt each within three hours.
    rest_s: float = 1
    _known: dict[str, Turn] = field(init=False, repr=False, default_factory=dict)
    #: By task, in order of creation; only the first of each is tried.
    _lines: dict[str, deque[Turn]] = field(init=False, repr=False, default_factory=dict)
    _due: list[tuple[float, int, Turn]] = field(init=False, repr=False, default_factory=list)
    _hosts: dict[str, _Host] = field(init=False, repr=False, default_factory=dict)
    #: The hosts that may have an attempt now, in the order of their turns.
    _good: dict[str, _Host] = field(init=False, repr=False, default_factory=dict)
    _suspects: dict[str, _Host] = field(init=False, repr=False, default_factory=dict)
    #: When the rests of hosts end.
    _rests: list[tuple[float, str]] = field(init=False, repr=False, default_factory=list)
    #: The running attempts, in the order of their beginnings.
    _quick: dict[Turn, None] = field(init=False, repr=False, default_factory=dict)
    #: Those that are slow or belong to a suspect.
    _slow: set[Turn] = field(init=False, repr=False, default_factory=set)
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
        times = [heap[0][0] for heap in (self._due, self._rests) if heap]
        if self._good and self._quick:  # a slot is given back once its attempt is slow
            times.append(next(iter(self._quick)).begun + self.slow_s)
        return min(times, default=None)

    def add(self, turn: Turn, due: float) -> None:
        """Add a delivery behind the earlier ones of its task. A delivery that is known already is not changed."""
        if turn.id in self._known:
            return
        self._known[turn.id], turn.due = turn, due
        self._hosts.setdefault(turn.host, _Host()).known += 1
        line = self._lines.setdefault(turn.task_id, deque())
        line.append(turn)
        if line[0] is turn:
            self._push(turn)

    def hasten(self, delivery_id: str, due: float) -> bool:
        """Move the next attempt of a delivery forward, and count its attempts from zero; False: it is not known."""
        turn = self._known.get(delivery_id)
        if turn is None:
            return False
        turn.attempts, turn.early, turn.asked = 0, False, True
        host = self._hosts[turn.host]
        if turn in host.ready:
            host.ready.remove(turn)
            turn.taken = False
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
                self._make_ready(turn)
        while self._rests and self._rests[0][0] <= now:
            _, name = heapq.heappop(self._rests)
            if (host := self._hosts.get(name)) is not None:
                host.resting = False
                self._line_up(name, host)
        while self._quick and (turn := next(iter(self._quick))).begun + self.slow_s <= now:
            del self._quick[turn]
            self._slow.add(turn)
            self._suspect(turn.host)
        return list(self._begin(now))

    def _make_ready(self, turn: Turn) -> None:
        turn.taken = True
        host = self._hosts[turn.host]
        if turn.asked:
            turn.asked = host.resting = False
            host.ready.appendleft(turn)
        else:
            host.ready.append(turn)
        self._line_up(turn.host, host)

    def _begin(self, now: float) -> Iterator[Turn]:
        while len(self._quick) + len(self._slow) < self.most_open:
            if self._good and len(self._quick) < self.most:
                hosts = self._good
            elif self._suspects and len(self._slow) < self.most_suspect:
                hosts = self._suspects
            else:
                return
            name = next(iter(hosts))
            host = hosts.pop(name)
            turn = host.ready.popleft()
            if self._known.get(turn.id) is turn:
                host.running += 1
                turn.begun = now
                if host.suspect:
                    self._slow.add(turn)
                else:
                    self._quick[turn] = None
                yield turn
            self._line_up(name, host)

    def heard(self, turn: Turn, now: float, *, answered: bool) -> None:
        """Record whether the host answered an attempt, with any status. Call `again` or `done` afterwards."""
        host = self._hosts[turn.host]
        if not answered:
            host.resting = True
            heapq.heappush(self._rests, (now + self.rest_s, turn.host))
        host.suspect = not answered or now - turn.begun >= self.slow_s
        self._line_up(turn.host, host)

    def again(self, turn: Turn, due: float) -> None:
        """Its attempt failed; the next one is due at `due`."""
        if self._known.get(turn.id) is turn:
            turn.due, turn.taken = due, False
            self._push(turn)
        self._ended(turn)

    def done(self, turn: Turn) -> None:
        """It had its last attempt."""
        if self._known.get(turn.id) is turn:
            self._leave(turn)
        self._ended(turn)

    def drop(self, delivery_ids: Iterable[str]) -> None:
        """Remove deliveries. A running attempt ends by itself."""
        for delivery_id in delivery_ids:
            if (turn := self._known.get(delivery_id)) is not None:
                self._leave(turn)
                self._forget(turn.host)

    def _ended(self, turn: Turn) -> None:
        self._quick.pop(turn, None)
        self._slow.discard(turn)
        host = self._hosts[turn.host]
        host.running -= 1
        self._line_up(turn.host, host)
        self._forget(turn.host)

    def _leave(self, turn: Turn) -> None:
        del self._known[turn.id]
        self._hosts[turn.host].known -= 1
        line = self._lines[turn.task_id]
        was_first = line[0] is turn
        line.remove(turn)
        if not line:
            del self._lines[turn.task_id]
        elif was_first:
            self._push(line[0])

    def _push(self, turn: Turn) -> None:
        heapq.heappush(self._due, (turn.due, next(self._numbers), turn))

    # -- hosts --------------------------------------------------------------------------------------------------------

    def _suspect(self, name: str) -> None:
        host = self._hosts[name]
        host.suspect = True
        self._line_up(name, host)

    def _line_up(self, name: str, host: _Host) -> None:
        """Queue the host behind the others of its kind if it may have an attempt now; else remove it from the queue."""
        line, other = (self._suspects, self._good) if host.suspect else (self._good, self._suspects)
        other.pop(name, None)
        if host.ready and not host.resting and host.running < (1 if host.suspect else self.most_a_host):
            line.setdefault(name, host)
        else:
            line.pop(name, None)

    def _forget(self, name: str) -> None:
        """Forget a host without deliveries."""
        host = self._hosts[name]
        if not host.known and not host.running:
            self._good.pop(name, None)
            self._suspects.pop(name, None)
            del self._hosts[name]
