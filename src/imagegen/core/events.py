"""Events as frozen values, and the bus that publishes them to subscribers."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import ClassVar

from imagegen.core.task import Failure, StoredImage
from imagegen.core.value import Value


class Event(Value):
    """Something that happened."""

    #: Its name in an event stream.
    name: ClassVar[str]
    #: Whether it is the last event of its task.
    final: ClassVar[bool] = False
    #: Whether late subscribers get it. Events that are not remembered go to the subscribers of their task only.
    lasting: ClassVar[bool] = True


class TaskEvent(Event):
    """Something that happened to one task."""

    task_id: str


class TaskQueued(TaskEvent):
    """The task was accepted and stored, or put back after its worker died."""

    name = "queued"
    #: Tasks that are to run before it.
    position: int


class TaskMoved(TaskEvent):
    """The task's position changed: tasks before it ended, or tasks with a higher priority arrived."""

    name = "position"
    lasting = False
    #: Tasks that are to run before it.
    position: int
    #: None while the times that it depends on have not been measured.
    estimated_start_at: datetime | None
    estimated_finish_at: datetime | None


class TaskStarted(TaskEvent):
    name = "started"
    attempt: int


class TaskLoading(TaskEvent):
    """The task waits for its model to be loaded. Bytes; the total is None until it is known."""

    name = "loading"
    model: str
    bytes_done: int = 0
    bytes_total: int | None = None


class TaskLoadingProgress(TaskLoading):
    """The load went on by a percent."""

    lasting = False


class TaskLoaded(TaskEvent):
    """The task's model is loaded."""

    name = "loaded"
    model: str
    seconds: float


class TaskDownloading(TaskEvent):
    """The task waits for the weights of its model. In bytes; `total` is None until the hub has said."""

    name = "downloading"
    model: str
    bytes_done: int
    bytes_total: int | None


class TaskStep(TaskEvent):
    """One denoising step is done: `step` of `total`, counted over the whole batch."""

    name = "step"
    step: int
    total: int


class TaskPreview(TaskEvent):
    """A small preview of the unfinished picture."""

    name = "preview"
    lasting = False
    step: int
    total: int
    media_type: str = "image/jpeg"
    #: JPEG, in base64.
    image: str


class TaskStoring(TaskEvent):
    """The task's pictures are finished and wait, because the store of pictures cannot be reached."""

    name = "storing"


class TaskSaved(TaskEvent):
    """The task's pictures are on disk or in the store; its record is written next."""

    name = "saved"
    images: tuple[StoredImage, ...]


class TaskCompleted(TaskEvent):
    name = "completed"
    final = True
    images: tuple[StoredImage, ...]


class TaskFailed(TaskEvent):
    name = "failed"
    final = True
    failure: Failure


class TaskCancelled(TaskEvent):
    name = "cancelled"
    final = True


class ModelLoading(Event):
    """A load began, or went on by a percent. Bytes read, of the bytes of the model's files; None: unknown."""

    name = "model_loading"
    model: str
    bytes_done: int = 0
    bytes_total: int | None = None


class ModelLoaded(Event):
    name = "model_loaded"
    model: str
    seconds: float
    device_bytes: int


class ModelFailed(Event):
    """The model could not be loaded, or was quarantined."""

    name = "model_failed"
    model: str
    failure: Failure


class ModelUnloading(Event):
    name = "model_unloading"
    model: str
    #: As in ModelUnloaded.
    reason: str


class ModelUnloaded(Event):
    """The model left the device."""

    name = "model_unloaded"
    model: str
    #: `switch`, `idle`, `asked`, `config`, `worker_died`, or `room`: for another one's picture.
    reason: str
    #: Whether it stays in host memory.
    warm: bool = False


class ModelCooled(Event):
    """A warm model left host memory."""

    name = "model_cooled"
    model: str
    #: `idle`, `asked`, `config`, `worker_died`, `load_failed`, or `room`: to make room for another model.
    reason: str


class ModelPulling(Event):
    """A pull of weights began, progressed by a percent, or ended."""

    name = "model_pulling"
    model: str
    #: `waiting`, `downloading`, `ready`, `failed`, `cancelled`.
    state: str
    bytes_done: int
    bytes_total: int | None
    #: Why it failed.
    failure: Failure | None


class ConfigChanged(Event):
    """A new configuration is in force."""

    name = "config_changed"
    #: `start`, `file`, `signal`, `rest`, `rollback`.
    source: str
    etag: str
    added: tuple[str, ...]
    #: Models whose entry differs.
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    #: Fields of `global` that differ.
    settings: tuple[str, ...]


class ConfigRejected(Event):
    """The configuration file is invalid; the configuration before it stays in force."""

    name = "config_rejected"
    source: str
    #: `file:line:column: what, and the fix`.
    errors: tuple[str, ...]


@dataclass(slots=True)
class Published:
    """An event with its place in the order of all events; ids also grow over restarts."""

    id: int
    event: Event
    #: By the function that made them.
    _encodings: dict[Callable[[int, Event], bytes], bytes] = field(default_factory=dict, compare=False, repr=False)

    def encoded(self, encode: Callable[[int, Event], bytes]) -> bytes:
        """The event encoded by `encode`. All subscribers that pass the same function share one encoding."""
        if encode not in self._encodings:
            self._encodings[encode] = encode(self.id, self.event)
        return self._encodings[encode]


class Subscription:
    """The events of one subscriber, oldest first. Iteration ends when the bus closes or the subscriber is too slow."""

    def __init__(self, backlog: list[Published], limit: int) -> None:
        self._waiting: asyncio.Queue[Published | None] = asyncio.Queue(limit + len(backlog) + 1)
        self._limit = limit + len(backlog)
        for published in backlog:
            self._waiting.put_nowait(published)

    def __aiter__(self) -> AsyncIterator[Published]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Published]:
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
        """Deliver an event, or end a subscriber that is `limit` events behind; it reconnects with Last-Event-ID."""
        if self._waiting.qsize() < self._limit:
            self._waiting.put_nowait(published)
        else:
            self.end()

    def end(self) -> None:
        if not self._waiting.full():
            self._waiting.put_nowait(None)


class EventBus:
    """Publishes each event to every subscriber, and remembers the events of the latest tasks. Event loop only."""

    def __init__(
        self, first_id: int = 1, *, kept_tasks: int = 1000, kept_events: int = 256, backlog: int = 256
    ) -> None:
        """`first_id`: as in `begin`."""
        self._ids = count(first_id)
        self._last_id = first_id - 1
        self._kept_tasks = kept_tasks
        self._kept_events = kept_events
        self._backlog = backlog
        self._history: OrderedDict[str, deque[Published]] = OrderedDict()
        #: By task; None: subscribers of everything.
        self._subscribers: dict[str | None, dict[Subscription, None]] = {}
        self._closed = False

    def __repr__(self) -> str:
        state = "CLOSED" if self._closed else "OPEN"
        tasks, last_id = len(self._history), self._last_id
        return f"<EventBus [{state}, Subscribers: {self.subscribers}, Tasks: {tasks}, Last ID: {last_id}]>"

    @property
    def last_id(self) -> int:
        return self._last_id

    @property
    def subscribers(self) -> int:
        return sum(map(len, self._subscribers.values()))

    @property
    def followed(self) -> list[str]:
        """Tasks that have subscribers."""
        return [task_id for task_id in self._subscribers if task_id is not None]

    def begin(self, first_id: int) -> None:
        """Number the events from here on. Before the first event."""
        self._ids, self._last_id = count(first_id), first_id - 1

    def publish(self, event: Event) -> None:
        self._last_id = next(self._ids)
        published = Published(self._last_id, event)
        task_id = event.task_id if isinstance(event, TaskEvent) else None
        if task_id is not None and event.lasting:
            self._remember(task_id, published)
        for topic in {task_id, None} if event.lasting else {task_id}:
            for subscription in self._subscribers.get(topic, ()):
                subscription.offer(published)

    def _remember(self, task_id: str, published: Published) -> None:
        if task_id not in self._history:
            self._history[task_id] = deque(maxlen=self._kept_events)
            if len(self._history) > self._kept_tasks:
                self._history.popitem(last=False)
        self._history[task_id].append(published)

    def history(self, task_id: str, after: int = 0) -> list[Published]:
        """The remembered events of a task with an id above `after`."""
        return [published for published in self._history.get(task_id, ()) if published.id > after]

    def forget(self, task_id: str) -> None:
        """Drop the remembered events of a task."""
        self._history.pop(task_id, None)

    @contextmanager
    def subscribe(self, task_id: str | None = None, *, after: int = 0) -> Iterator[Subscription]:
        """The events of one task, remembered ones first; without a task, all events from now on."""
        backlog = self.history(task_id, after) if task_id is not None else []
        subscription = Subscription(backlog, self._backlog)
        self._subscribers.setdefault(task_id, {})[subscription] = None
        if self._closed:
            subscription.end()
        try:
            yield subscription
        finally:
            self._subscribers[task_id].pop(subscription)
            if not self._subscribers[task_id]:
                del self._subscribers[task_id]

    def close(self) -> None:
        """End every subscription, now and in future. Publishing stays allowed and does nothing."""
        self._closed = True
        for subscriptions in self._subscribers.values():
            for subscription in subscriptions:
                subscription.end()
