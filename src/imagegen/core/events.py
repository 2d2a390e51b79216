"""Events as frozen values, and the bus that publishes them to subscribers."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from heapq import merge
from itertools import count, islice
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field

from imagegen.core.errors import FailureCode
from imagegen.core.owner import Owner
from imagegen.core.stages import StageTime
from imagegen.core.task import Failure, StoredImage
from imagegen.core.value import Value

ToldT = TypeVar("ToldT", bound="Event | Observation")


class Event(Value):
    """Something that happened."""

    #: Its name in an event stream.
    name: ClassVar[str]
    #: Whether it is the last event of its task.
    final: ClassVar[bool] = False
    #: Whether the bus remembers it for late subscribers. Other task events go to the subscribers of their task only.
    lasting: ClassVar[bool] = True
    #: Whether it reports progress within a state. The bus keeps only the latest such events of a task.
    progress: ClassVar[bool] = False


class StreamEvent(Event):
    """Something that happened to the stream of one subscriber. It passes every filter."""


class Gap(StreamEvent):
    """Events between the subscriber's Last-Event-ID and the next event may be missing: they are not kept any more."""

    name = "gap"
    after: int = Field(description="The subscriber's Last-Event-ID.")
    until: int = Field(description="The highest id that may be missing.")


#: Why a stream ends before its task.
StreamEnd = Literal["too_slow", "stopping", "key_revoked", "key_expired", "key_required"]


class StreamClosed(StreamEvent):
    """The last event of a stream that ends before its task has ended. It has the id of the event before it."""

    name = "closed"
    reason: StreamEnd = Field(
        description="`too_slow`: the subscriber is too many events behind; `stopping`: the service stops; "
        "`key_revoked`: the subscriber's key was revoked, or got a new text; `key_expired`; `key_required`: there were "
        "no keys when it subscribed."
    )


class TaskEvent(Event):
    """Something that happened to one task."""

    task_id: str


class TaskQueued(TaskEvent):
    """The task was accepted and stored, or put back after its worker died."""

    name = "queued"
    position: int = Field(description="The number of tasks that run before it.")


class TaskMoved(TaskEvent):
    """The task's position changed: tasks before it ended, or tasks with a higher priority arrived."""

    name = "position"
    lasting = False
    position: int = Field(description="The number of tasks that run before it.")
    estimated_start_at: datetime | None = Field(description="Null until the times that it depends on were measured.")
    estimated_finish_at: datetime | None


class TaskStarted(TaskEvent):
    """The task has begun to run."""

    name = "started"
    attempt: int = Field(description="Attempts so far, with this one.")


class TaskLoading(TaskEvent):
    """The task waits for its model to be loaded."""

    name = "loading"
    model: str
    bytes_done: int = Field(default=0, description="Bytes read so far.")
    bytes_total: int | None = Field(default=None, description="Bytes of the model's files; null: unknown.")


class TaskLoadingProgress(TaskLoading):
    """The load progressed by a percent."""

    lasting = False


class TaskLoaded(TaskEvent):
    """The task's model is loaded."""

    name = "loaded"
    model: str
    seconds: float


class TaskDownloading(TaskEvent):
    """The task waits for the pull of its model's weights."""

    name = "downloading"
    progress = True
    model: str
    bytes_done: int = Field(description="Bytes on disk, of the files that the model needs.")
    bytes_total: int | None = Field(description="Bytes of these files; null until the hub answered.")


class TaskStep(TaskEvent):
    """One denoising step is done: `step` of `total`, counted over the whole batch."""

    name = "step"
    progress = True
    step: int
    total: int


class TaskPreview(TaskEvent):
    """A small preview of the unfinished picture."""

    name = "preview"
    lasting = False
    step: int
    total: int
    media_type: str = "image/jpeg"
    image: str = Field(description="The picture in base64.")


class TaskStoring(TaskEvent):
    """The task's pictures are finished and wait, because the store of pictures cannot be reached."""

    name = "storing"


class TaskSaved(TaskEvent):
    """The task's pictures are on disk or in the store; its record is written next."""

    name = "saved"
    images: tuple[StoredImage, ...]


class TaskCompleted(TaskEvent):
    """The task has ended with pictures."""

    name = "completed"
    final = True
    images: tuple[StoredImage, ...]


class TaskFailed(TaskEvent):
    """The task has ended without pictures."""

    name = "failed"
    final = True
    failure: Failure


class TaskCancelled(TaskEvent):
    """The task was cancelled and has ended."""

    name = "cancelled"
    final = True


class ModelLoading(Event):
    """A load began, or progressed by a percent."""

    name = "model_loading"
    model: str
    bytes_done: int = Field(default=0, description="Bytes read so far.")
    bytes_total: int | None = Field(default=None, description="Bytes of the model's files; null: unknown.")


class ModelLoaded(Event):
    """The model is in device memory."""

    name = "model_loaded"
    model: str
    seconds: float
    device_bytes: int = Field(description="Bytes of its weights that are in device memory at most.")
    warm: bool = Field(default=False, description="Whether it came from host memory.")


class ModelFailed(Event):
    """The model could not be loaded, or was quarantined."""

    name = "model_failed"
    model: str
    failure: Failure


class ModelUnloading(Event):
    """The model leaves the device."""

    name = "model_unloading"
    model: str
    reason: str = Field(description="As in `model_unloaded`.")


class ModelUnloaded(Event):
    """The model left the device."""

    name = "model_unloaded"
    model: str
    reason: str = Field(
        description="`switch`, `idle`, `asked`, `config`, `worker_died`, or `room`: a picture of another model needed "
        "the memory."
    )
    warm: bool = Field(default=False, description="Whether it stays in host memory.")


class ModelCooled(Event):
    """A warm model left host memory."""

    name = "model_cooled"
    model: str
    reason: str = Field(
        description="`idle`, `asked`, `config`, `worker_died`, `load_failed`, or `room`: another model needed the "
        "memory."
    )


class ModelPulling(Event):
    """A pull of weights began, progressed by a percent, or ended."""

    name = "model_pulling"
    model: str
    state: str = Field(description="`waiting`, `downloading`, `ready`, `failed`, `cancelled`.")
    bytes_done: int = Field(description="Bytes on disk, of the files that the model needs.")
    bytes_total: int | None = Field(description="Bytes of these files; null until the hub answered.")
    failure: Failure | None = Field(description="Why it failed.")


class ConfigChanged(Event):
    """A new configuration is in force."""

    name = "config_changed"
    source: str = Field(description="`start`, `file`, `signal`, `rest`, `rollback`.")
    etag: str
    added: tuple[str, ...] = Field(description="Models that are new.")
    changed: tuple[str, ...] = Field(description="Models whose entry differs.")
    removed: tuple[str, ...] = Field(description="Models that are gone.")
    settings: tuple[str, ...] = Field(description="Fields of `global` that differ.")
    aliases: tuple[str, ...] = Field(default=(), description="Aliases that differ.")


class ConfigRejected(Event):
    """The configuration file is invalid; the configuration before it stays in force."""

    name = "config_rejected"
    source: str
    errors: tuple[str, ...] = Field(description="`file:line:column: what, and the fix`.")


class Observation(Value):
    """A measurement, for taps only: it has no id, no subscriber gets it, and it is not remembered."""


class CallEnded(Observation):
    """A call of a model has ended: with the pictures of these tasks, with a failure, or because it was stopped."""

    model: str
    task_ids: tuple[str, ...]
    #: Seconds that the call took, with the way to the worker and back.
    seconds: float
    #: Denoising steps of the call.
    steps: int = 0
    #: The stages of its pictures, measured in the worker; empty: it has none, or the model does not tell them.
    stages: tuple[StageTime, ...] = ()
    #: Whether it made the pictures.
    made: bool = True
    #: Why it failed; None: it has not.
    code: FailureCode | None = None


#: Why a worker process is replaced: it died; it hung; an import in it failed half-way; it was killed, to end a load
#: that nobody wants any more; it held memory without models.
WorkerEnd = Literal["crashed", "hung", "spoiled", "abandoned", "recycled"]


class WorkerReplaced(Observation):
    """A worker process has ended, and another one takes its place."""

    reason: WorkerEnd


#: The memory of a TaskStep with its encoding, in bytes, measured.
STEP_BYTES = 900

#: The memory of any other event, in bytes, besides twice the length of its JSON.
EVENT_BYTES = 1000


@dataclass(slots=True)
class Published:
    """An event and its id. Ids grow in the order of all events, also over restarts."""

    id: int
    event: Event
    #: The memory that it takes, in bytes, estimated; 0 if it is not kept.
    size: int = 0
    #: Its encodings, by the function that made them.
    _encodings: dict[Callable[[int, Event], bytes], bytes] | None = field(default=None, compare=False, repr=False)

    def encoded(self, encode: Callable[[int, Event], bytes]) -> bytes:
        """The event encoded by `encode`. All subscribers that pass the same function share one encoding."""
        if self._encodings is None:
            self._encodings = {}
        if encode not in self._encodings:
            self._encodings[encode] = encode(self.id, self.event)
        return self._encodings[encode]


def _size_of(event: Event) -> int:
    return STEP_BYTES if isinstance(event, TaskStep) else EVENT_BYTES + 2 * len(event.model_dump_json())


class Subscription:
    """The events of one subscriber, oldest first. If its iteration ends, the last event is StreamClosed."""

    def __init__(self, backlog: list[Published], limit: int, last_id: int, caller: Owner | None = None) -> None:
        """`last_id`: the id of the latest event that was published."""
        self.caller = caller
        self._limit = limit + len(backlog)
        self._waiting: asyncio.Queue[Published | None] = asyncio.Queue()
        self._last_id = last_id
        self._ended = False
        for published in backlog:
            self._waiting.put_nowait(published)

    async def __aiter__(self) -> AsyncIterator[Published]:
        while (published := await self.next()) is not None:
            yield published

    async def next(self) -> Published | None:
        """The next event; None at the end."""
        return await self._waiting.get()

    async def with_silence(self, seconds: float | None) -> AsyncIterator[Published | None]:
        """The events, and a None after each `seconds` without one."""
        while True:
            try:
                async with asyncio.timeout(seconds):
                    published = await self.next()
            except TimeoutError:
                yield None
                continue
            if published is None:
                return
            yield published

    def offer(self, published: Published) -> None:
        """Deliver an event. A subscriber that is `limit` events behind is ended instead; it can reconnect."""
        self.offer_all([published])

    def offer_all(self, batch: Sequence[Published]) -> None:
        """Deliver several events like `offer`. Only events before the batch count against `limit`."""
        if self._ended:
            return
        if self._waiting.qsize() >= self._limit:
            self.end("too_slow")
            return
        for published in batch:
            if published.id > self._last_id:  # published after the subscription began, and not delivered yet
                self._waiting.put_nowait(published)
                self._last_id = published.id

    def take_delivered(self) -> list[Published]:
        """The events that have been delivered and not been read. They count as read from now on."""
        taken = []
        while not self._waiting.empty():
            published = self._waiting.get_nowait()
            if published is None:
                self._waiting.put_nowait(None)
                break
            taken.append(published)
        return taken

    def end(self, reason: StreamEnd) -> None:
        if not self._ended:
            self._ended = True
            self._waiting.put_nowait(Published(self._last_id, StreamClosed(reason=reason)))
            self._waiting.put_nowait(None)


class _Kept:
    """Events that are kept, oldest first, and the bytes that they take."""

    def __init__(self) -> None:
        self.events: deque[Published] = deque()
        self.size = 0
        #: The highest id that was dropped.
        self.dropped = 0

    def append(self, published: Published) -> None:
        self.events.append(published)
        self.size += published.size

    def drop_oldest(self) -> None:
        published = self.events.popleft()
        self.size -= published.size
        self.dropped = published.id

    def drop_all(self) -> None:
        if self.events:
            self.dropped = self.events[-1].id
        self.events.clear()
        self.size = 0


class _History:
    """The remembered events of one task. Progress is kept apart, so that many steps do not displace the states."""

    def __init__(self) -> None:
        self.states = _Kept()
        self.progress = _Kept()

    @property
    def size(self) -> int:
        return self.states.size + self.progress.size

    @property
    def dropped(self) -> int:
        return max(self.states.dropped, self.progress.dropped)

    def events(self) -> Iterator[Published]:
        return merge(self.states.events, self.progress.events, key=lambda published: published.id)


#: Up to this number of subscribers of everything, each event is delivered at once. For more, see the next two numbers.
FEW = 16

#: With more subscribers, events are delivered in batches, which leaves most of the event loop to requests. The pause
#: before a batch is this many seconds for each subscriber; a delivery to one takes 60 us, measured.
_PAUSE_FOR_EACH_S = 0.0005

#: Subscribers that a batch is delivered to in one turn of the event loop.
_IN_A_TURN = 32

#: If more events than this wait for a delivery, all subscribers of everything are ended as too slow.
_MOST_UNDELIVERED = 10_000


class EventBus:
    """Publishes each event to every subscriber, and remembers the latest ones. Event loop only.

    For each of the latest `kept_tasks` tasks it remembers the latest `kept_events` states, and as many events of
    progress. All of them take at most `kept_bytes`: the progress of the oldest tasks is forgotten first. For
    subscribers of everything it also remembers the latest events of all kinds, up to `recent_bytes`.
    """

    def __init__(
        self,
        first_id: int = 1,
        *,
        kept_tasks: int = 1000,
        kept_events: int = 256,
        kept_bytes: int = 32 * 2**20,
        recent_bytes: int = 4 * 2**20,
        backlog: int = 256,
    ) -> None:
        """`first_id`: as in `begin`. 32 MiB hold the states of 1,000 tasks and 30,000 steps; 4 MiB, 5,000 events."""
        self._kept_tasks = kept_tasks
        self._kept_events = kept_events
        self._kept_bytes = kept_bytes
        self._recent_bytes = recent_bytes
        self._backlog = backlog
        self._history: OrderedDict[str, _History] = OrderedDict()
        #: The tasks whose progress is kept, the oldest first.
        self._progressed: OrderedDict[str, _History] = OrderedDict()
        self._size = 0
        self._recent = _Kept()
        #: By task id; None: subscribers of everything.
        self._subscribers: dict[str | None, dict[Subscription, None]] = {}
        #: Events for the subscribers of everything: of the batch that is being delivered, and of the next one.
        self._batch: list[Published] = []
        self._undelivered: list[Published] = []
        self._delivering = False
        self._closed = False
        self._taps: dict[type[Value], list[Callable[[Any], object]]] = {}
        self.begin(first_id)

    def __repr__(self) -> str:
        state = "CLOSED" if self._closed else "OPEN"
        tasks, last_id = len(self._history), self._last_id
        return f"<EventBus [{state}, Subscribers: {self.subscribers}, Tasks: {tasks}, Last ID: {last_id}]>"

    @property
    def last_id(self) -> int:
        return self._last_id

    @property
    def size(self) -> int:
        """The memory of the remembered events, in bytes, estimated. An event that is remembered twice counts twice."""
        return self._size + self._recent.size

    @property
    def subscribers(self) -> int:
        return sum(map(len, self._subscribers.values()))

    @property
    def followed(self) -> list[str]:
        """The ids of the tasks that have subscribers."""
        return [task_id for task_id in self._subscribers if task_id is not None]

    @property
    def callers(self) -> list[Owner]:
        """Whose streams are open. Each API key is there once."""
        streams = (it for subscriptions in self._subscribers.values() for it in subscriptions)
        return list({it.caller.key_sha256: it.caller for it in streams if it.caller is not None}.values())

    def begin(self, first_id: int) -> None:
        """Give the first event this id. To be called before any event is published."""
        self._ids, self._first_id, self._last_id = count(first_id), first_id, first_id - 1

    def tap(self, kind: type[ToldT], call: Callable[[ToldT], object]) -> None:
        """Call `call` for each event or observation of exactly this class, before `publish` or `observe` returns.

        A tap misses nothing and cannot be ended. It must be quick, and must not raise.
        """
        self._taps.setdefault(kind, []).append(call)

    def observe(self, observation: Observation) -> None:
        """Tell the taps of a measurement."""
        for call in self._taps.get(type(observation), ()):
            call(observation)

    def publish(self, event: Event) -> None:
        for call in self._taps.get(type(event), ()):
            call(event)
        self._last_id = next(self._ids)
        published = Published(self._last_id, event, _size_of(event) if event.lasting else 0)
        task_id = event.task_id if isinstance(event, TaskEvent) else None
        if event.lasting:
            self._recent.append(published)
            while self._recent.size > self._recent_bytes:
                self._recent.drop_oldest()
            if task_id is not None:
                self._remember(task_id, published)
        for subscription in self._subscribers.get(task_id, ()) if task_id is not None else ():
            subscription.offer(published)
        if event.lasting or task_id is None:
            self._publish_to_all(published)

    def _publish_to_all(self, published: Published) -> None:
        everyone = self._subscribers.get(None, {})
        if not self._delivering and len(everyone) <= FEW:
            for subscription in everyone:
                subscription.offer(published)
            return
        self._undelivered.append(published)
        if len(self._undelivered) > _MOST_UNDELIVERED:
            self._undelivered.clear()
            for subscription in everyone:
                subscription.end("too_slow")
        if not self._delivering:
            self._delivering = True
            self._deliver_later()

    def _deliver_later(self) -> None:
        pause = len(self._subscribers.get(None, ())) * _PAUSE_FOR_EACH_S
        asyncio.get_running_loop().call_later(pause, self._deliver)

    def _deliver(self) -> None:
        self._batch, self._undelivered = self._undelivered, []
        self._deliver_to(iter(list(self._subscribers.get(None, ()))))

    def _deliver_to(self, remaining: Iterator[Subscription]) -> None:
        """Deliver the batch to some subscribers, and to the others after other callbacks of the event loop have run."""
        turn = list(islice(remaining, _IN_A_TURN))
        for subscription in turn:
            subscription.offer_all(self._batch)
        if turn:
            asyncio.get_running_loop().call_soon(self._deliver_to, remaining)
            return
        self._batch = []
        if self._undelivered:
            self._deliver_later()
        else:
            self._delivering = False

    def _remember(self, task_id: str, published: Published) -> None:
        history = self._history.get(task_id)
        if history is None:
            history = self._history[task_id] = _History()
            if len(self._history) > self._kept_tasks:
                self._forget_oldest()
        if published.event.progress:
            kept = history.progress
            self._progressed[task_id] = history
        else:
            kept = history.states
        before = kept.size
        kept.append(published)
        if len(kept.events) > self._kept_events:
            kept.drop_oldest()
        self._size += kept.size - before
        while self._size > self._kept_bytes:
            self._drop_oldest_progress()

    def _drop_oldest_progress(self) -> None:
        """Drop the progress of one task; if no progress is left, forget a whole task."""
        if not self._progressed:
            self._forget_oldest()
            return
        _, history = self._progressed.popitem(last=False)
        self._size -= history.progress.size
        history.progress.drop_all()

    def _forget_oldest(self) -> None:
        self.forget(next(iter(self._history)))

    def history(self, task_id: str, after: int = 0) -> list[Published]:
        """The remembered events of a task with an id above `after`."""
        history = self._history.get(task_id)
        return [published for published in history.events() if published.id > after] if history else []

    def gap(self, after: int, task_id: str | None = None) -> Published | None:
        """A Gap if events after the id `after`, of a task or of everything, may be forgotten. None if `after` is 0."""
        kept = self._recent if task_id is None else self._history.get(task_id)
        until = self._last_id if kept is None or after > self._last_id else max(kept.dropped, self._first_id - 1)
        missed = after > 0 and (after < until or after > self._last_id)
        return Published(until, Gap(after=after, until=until)) if missed else None

    def forget(self, task_id: str) -> None:
        """Drop the remembered events of a task."""
        self._progressed.pop(task_id, None)
        history = self._history.pop(task_id, None)
        self._size -= history.size if history else 0

    @contextmanager
    def subscribe(
        self, task_id: str | None = None, *, after: int = 0, caller: Owner | None = None
    ) -> Iterator[Subscription]:
        """Subscribe to one task, or to everything (None).

        The events of a task begin with the remembered ones with an id above `after`. The events of everything do so
        too if `after` is above 0; otherwise they begin with the next one that is published. `caller`: whose stream it
        is, for `callers` and `end`; None: it is part of a request, or no change of keys ends it.
        """
        if task_id is not None:
            backlog = self.history(task_id, after)
        else:
            backlog = [published for published in self._recent.events if 0 < after < published.id]
        subscription = Subscription(backlog, self._backlog, self._last_id, caller)
        self._subscribers.setdefault(task_id, {})[subscription] = None
        if self._closed:
            subscription.end("stopping")
        try:
            yield subscription
        finally:
            self._subscribers[task_id].pop(subscription)
            if not self._subscribers[task_id]:
                del self._subscribers[task_id]

    def end(self, caller: Owner, reason: StreamEnd) -> None:
        """End the streams of everyone with the same API key."""
        for subscriptions in self._subscribers.values():
            for it in subscriptions:
                if it.caller is not None and it.caller.key_sha256 == caller.key_sha256:
                    it.end(reason)

    def close(self) -> None:
        """End every subscription after its last event; later subscriptions end at once. `publish` stays allowed."""
        self._closed = True
        undelivered, self._undelivered = [*self._batch, *self._undelivered], []
        for subscription in self._subscribers.get(None, ()):
            subscription.offer_all(undelivered)
        for subscriptions in self._subscribers.values():
            for subscription in subscriptions:
                subscription.end("stopping")
