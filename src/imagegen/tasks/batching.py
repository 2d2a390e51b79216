"""Batching: which waiting tasks go along in one call of their model, and how many pictures of a call have paid."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from imagegen.core.task import GenerationRequest, TaskType
from imagegen.tasks.queue import Fairness, Kind, Likeness, TaskTicket, foremost

#: What a size must gain over the next smaller one: less is not worth the longer wait for the first picture.
MARGIN = 0.05
#: Runs of one picture a call before more are tried: the first may have had the device to warm up.
ENOUGH_ALONE = 2
#: Runs after which a size is declined.
ENOUGH_RUNS = 3
#: The latest runs of a size, of which the fastest counts: what else a machine does makes runs slower, never faster.
LATEST = 5
#: Calls after which a size is tried again that did not pay or failed, and one that the memory did not hold.
TRY_AGAIN, TRY_AGAIN_IN_MEMORY = 200, 1000
#: Kinds of work that are remembered of each model.
MAX_KINDS = 64


def likeness(wanted: TaskType, request: GenerationRequest, previews: int) -> Likeness | None:
    """None: it goes with nobody."""
    if wanted is not TaskType.TEXT2IMAGE or request.loras or previews:
        return None
    negative = request.negative_prompt is not None
    return Likeness(request.width, request.height, request.steps, request.guidance_scale, negative)


def companions(
    first: TaskTicket, waiting: Sequence[TaskTicket], most: int, now: float, fairness: Fairness
) -> list[TaskTicket]:
    """Who goes along with `first`, in order of arrival: whole tasks of the same rank, within `most` pictures."""
    room, along = most - first.pictures, list[TaskTicket]()
    if room < 1 or first.likeness is None:
        return along
    for ticket in sorted(foremost([first, *waiting], now, fairness), key=lambda ticket: ticket.sequence):
        if ticket is not first and _alike(ticket, first) and ticket.pictures <= room:
            along.append(ticket)
            room -= ticket.pictures
    return along


def _alike(one: TaskTicket, other: TaskTicket) -> bool:
    return (one.model, one.likeness) == (other.model, other.likeness)


def calls(tickets: Iterable[TaskTicket], most: Callable[[TaskTicket], int]) -> Iterator[list[TaskTicket]]:
    """How tickets, in the order in which they would be taken, will share calls: for forecasts, in linear time."""
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
    """Calls of so many pictures, up to twice as many."""

    #: Seconds a picture, latest last.
    paces: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))
    #: Calls until it is tried again; 0: it may be used.
    barred: int = 0
    #: Whether it was the memory that barred it.
    too_large: bool = False

    @property
    def runs(self) -> int:
        """As far as they are remembered."""
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
    """Seconds a picture in calls of one, two, four ... pictures, learned from real runs, and what follows from them."""

    def __init__(self) -> None:
        self._kinds: dict[str, OrderedDict[Kind, Sizes]] = {}
        self._loaded_at: dict[str, datetime] = {}

    def most(self, model: str, kind: Kind, max_batch: int, pictures: int = 1) -> int:
        """Pictures that the next call may make: twice as many as have paid so far, or as the first task has."""
        most, sizes = 1, self._known_sizes(model, kind)
        best = _known(sizes, 1)
        if best.runs < ENOUGH_ALONE:
            return 1
        while 2 * most <= max_batch and not (size := _known(sizes, 2 * most)).barred:
            most *= 2
            if not size.runs and most < pictures:
                continue  # a task is not cut up to try it
            if not size.runs or not size.pays(best):  # in the second case it is not yet judged
                return most
            best = size
        return most if _known(sizes, 2 * most).barred else max_batch

    def learn(self, model: str, kind: Kind, pictures: int, pace: float) -> None:
        """A call of so many pictures took `pace` seconds for each."""
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
        for each in sizes.values():  # it did pay: perhaps everything has become slower, so all is measured anew
            each.paces.clear()

    def failed(self, model: str, kind: Kind, pictures: int, *, too_large: bool) -> None:
        """A call of so many pictures failed: for want of memory, or as none of one might. Smaller ones come next."""
        sizes, step = self._sizes(model, kind), _step(pictures)
        held = pictures > step and _known(sizes, step).runs > 0
        sizes.setdefault(2 * step if held else step, _Size()).bar(
            TRY_AGAIN_IN_MEMORY if too_large else TRY_AGAIN, too_large=too_large
        )

    def loaded(self, model: str, at: datetime) -> None:
        """It is resident since then: after another load, what did not pay is tried again."""
        if self._loaded_at.get(model) == at:
            return
        self._loaded_at[model] = at
        for sizes in self._kinds.get(model, {}).values():
            for size in sizes.values():
                size.barred = size.barred if size.too_large else 0

    def share(self, model: str, kind: Kind, pictures: int) -> float:
        """What a call of so many pictures takes, as a share of the time that they take one by one; 1: nobody knows."""
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
    """Of those that were measured."""
    return sizes[max(smaller for smaller in sizes if smaller < step and (smaller == 1 or sizes[smaller].runs))]


def _step(pictures: int) -> int:
    """The power of two that it counts as."""
    return 1 << (pictures.bit_length() - 1)
