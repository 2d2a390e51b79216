"""Batching: which waiting tasks share a call of their model, and how many pictures a call may have."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from imagegen.core.task import GenerationRequest, TaskType
from imagegen.tasks.tickets import Kind, Likeness, TaskTicket

#: A size pays if its pace is better than that of the next smaller size by this share. A smaller gain is not worth the
#: longer wait for the first picture.
MARGIN = 0.05

#: The number of calls of one picture before larger calls are tried. The first one may be slow: the device warms up.
ENOUGH_ALONE = 2

#: The number of calls after which a size that does not pay is barred.
ENOUGH_RUNS = 3

#: The number of calls of a size that are remembered. The fastest one counts, because other work on the machine can only
#: make calls slower.
LATEST = 5

#: The number of calls after which a barred size is tried again: one that did not pay or failed, and one that was out of
#: memory.
TRY_AGAIN, TRY_AGAIN_IN_MEMORY = 200, 1000

#: The number of waiting tasks that are considered for a call.
MAX_READ = 1000

#: The number of kinds of work that are remembered for each model.
MAX_KINDS = 64


def likeness(wanted: TaskType, request: GenerationRequest, previews: int) -> Likeness | None:
    """What other tasks must have in common with this one to share its call; None: it cannot be batched."""
    if wanted is not TaskType.TEXT2IMAGE or request.loras or previews:
        return None
    negative = request.negative_prompt is not None
    return Likeness(request.width, request.height, request.steps, request.guidance_scale, negative)


def companions(first: TaskTicket, waiting: Iterable[TaskTicket], most: int) -> list[TaskTicket]:
    """The similar waiting tasks that join the call of `first`. A task joins with all of its pictures, or not at all.

    `waiting`: tasks that may run now, in order of arrival; the first MAX_READ are considered. `most`: the most pictures
    that the call may have.
    """
    room, joined = most - first.pictures, list[TaskTicket]()
    if room < 1 or first.likeness is None:
        return joined
    for ticket in islice(waiting, MAX_READ):
        alike = (ticket.model, ticket.likeness) == (first.model, first.likeness)
        if alike and ticket.pictures <= room:
            joined.append(ticket)
            room -= ticket.pictures
            if room < 1:
                break
    return joined


def calls(tickets: Iterable[TaskTicket], most: Callable[[TaskTicket], int]) -> Iterator[list[TaskTicket]]:
    """The calls that tickets will share. `tickets` are in the order in which they are taken. Takes linear time."""
    ordered = list(tickets)
    lanes: dict[Hashable, list[TaskTicket]] = {}
    for ticket in reversed(ordered):
        lanes.setdefault((ticket.model, ticket.priority, ticket.likeness), []).append(ticket)
    taken = set[str]()
    for ticket in ordered:
        if ticket.task_id in taken:
            continue
        call, room = [ticket], most(ticket) - ticket.pictures
        lane = lanes[ticket.model, ticket.priority, ticket.likeness]
        lane.pop()
        while ticket.likeness is not None and lane and lane[-1].pictures <= room:
            call.append(lane.pop())
            room -= call[-1].pictures
        taken.update(it.task_id for it in call)
        yield call


@dataclass(slots=True)
class _Size:
    """What is known of calls of one size: those of n to 2n - 1 pictures, for a power of two n."""

    #: Seconds for each picture, of the remembered calls, the latest one last.
    paces: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))
    #: The number of calls until the size is tried again; 0: it is not barred.
    barred: int = 0
    #: Whether it is barred because a call was out of memory.
    too_large: bool = False

    @property
    def runs(self) -> int:
        """The number of remembered calls."""
        return len(self.paces)

    @property
    def pace(self) -> float:
        return min(self.paces, default=0)

    def pays(self, smaller: "_Size") -> bool:
        return self.pace <= smaller.pace * (1 - MARGIN)

    def bar(self, calls: int, *, too_large: bool = False) -> None:
        self.paces.clear()
        self.barred, self.too_large = calls, too_large


Sizes = dict[int, _Size]


class Payoffs:
    """Learns from real calls whether larger calls take less time for each picture, and limits the next call."""

    def __init__(self) -> None:
        self._kinds: dict[str, OrderedDict[Kind, Sizes]] = {}
        self._loaded_at: dict[str, datetime] = {}

    def most(self, model: str, kind: Kind, max_batch: int, pictures: int = 1) -> int:
        """The most pictures that the next call may have: twice as many as have paid so far, at most `max_batch`.

        `pictures`: the number of pictures of the first task, which is not split to try a new size.
        """
        most, sizes = 1, self._known_sizes(model, kind)
        best = _known(sizes, 1)
        if best.runs < ENOUGH_ALONE:
            return 1
        while 2 * most <= max_batch and not (size := _known(sizes, 2 * most)).barred:
            most *= 2
            if not size.runs and most < pictures:
                continue  # the task is not split to try this size
            if not size.runs or not size.pays(best):  # it needs more calls: ENOUGH_RUNS of them would have barred it
                return most
            best = size
        return most if _known(sizes, 2 * most).barred else max_batch

    def learn(self, model: str, kind: Kind, pictures: int, pace: float) -> None:
        """Record a call: its number of pictures, and its seconds for each picture."""
        sizes, step = self._sizes(model, kind), _step(pictures)
        for each in sizes.values():
            each.barred = max(0, each.barred - 1)
        size = sizes.setdefault(step, _Size())
        size.paces.append(pace)
        if step == 1 or size.runs < ENOUGH_RUNS or size.pays(_next_smaller(sizes, step)):
            return
        if size.runs == ENOUGH_RUNS:
            size.bar(TRY_AGAIN)
            return
        for each in sizes.values():  # it has paid before, so perhaps all sizes are slower now: measure all again
            each.paces.clear()

    def failed(self, model: str, kind: Kind, pictures: int, *, too_large: bool) -> None:
        """Bar the size of a call that failed, so that the next calls are smaller. `too_large`: out of memory."""
        sizes, step = self._sizes(model, kind), _step(pictures)
        if pictures > step and _known(sizes, step).runs:  # smaller calls of this size work: bar only the next size
            step *= 2
        sizes.setdefault(step, _Size()).bar(TRY_AGAIN_IN_MEMORY if too_large else TRY_AGAIN, too_large=too_large)

    def loaded(self, model: str, at: datetime) -> None:
        """Note when the model was loaded. After a new load, sizes that did not pay are tried again."""
        if self._loaded_at.get(model) == at:
            return
        self._loaded_at[model] = at
        for sizes in self._kinds.get(model, {}).values():
            for size in sizes.values():
                size.barred = size.barred if size.too_large else 0

    def share(self, model: str, kind: Kind, pictures: int) -> float:
        """The time of one call with this number of pictures, divided by that of as many single calls; 1: unknown."""
        sizes = self._known_sizes(model, kind)
        one, many = _known(sizes, 1).pace, _known(sizes, _step(pictures)).pace
        return many / one if one and many else 1.0

    def _known_sizes(self, model: str, kind: Kind) -> Sizes:
        return self._kinds[model].get(kind, {}) if model in self._kinds else {}

    def _sizes(self, model: str, kind: Kind) -> Sizes:
        kinds = self._kinds.setdefault(model, OrderedDict())
        kinds[kind] = sizes = kinds.pop(kind, None) or {1: _Size()}
        if len(kinds) > MAX_KINDS:
            kinds.popitem(last=False)
        return sizes


def _known(sizes: Sizes, step: int) -> _Size:
    return sizes.get(step, _Size())


def _next_smaller(sizes: Sizes, step: int) -> _Size:
    """The largest smaller size that was measured."""
    return sizes[max(smaller for smaller in sizes if smaller < step and (smaller == 1 or sizes[smaller].runs))]


def _step(pictures: int) -> int:
    """The size of a call: the largest power of two that is not above its number of pictures."""
    return 1 << (pictures.bit_length() - 1)
