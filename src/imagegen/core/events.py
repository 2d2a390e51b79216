"""What happens, as frozen events, and the one bus that tells it to whoever listens."""

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

    #: The word on the wire.
    name: ClassVar[str]
    #: Whether nothing follows it for its task.
    final: ClassVar[bool] = False
    #: Whether it is remembered for late listeners. What is not, only a task's own listeners hear, as it happens.
    lasting: ClassVar[bool] = True


class TaskEvent(Event):
    """Something that happened to one task."""

    task_id: str


class TaskQueued(TaskEvent):
    """Accepted and stored, or put back after its worker died."""

    name = "queued"
    #: Tasks that are to run before it.
    position: int


class TaskMoved(TaskEvent):
    """Other tasks went, or came before it."""

    name = "position"
    lasting = False
    #: Tasks that are to run before it.
    position: int
    #: Null while the times that it depends on are unknown.
    estimated_start_at: datetime | None
    estimated_finish_at: datetime | None


class TaskStarted(TaskEvent):
    name = "started"
    attempt: int


class TaskLoading(TaskEvent):
    """Waits for its model to be loaded."""

    name = "loading"
    model: str


class TaskLoaded(TaskEvent):
    """Its model was loaded for it."""

    name = "loaded"
    model: str
    seconds: float


class TaskDownloading(TaskEvent):
    """Waits for its model's weights to be fetched. Bytes; the total is None until the hub has said."""

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
    """What the picture will be like, by what the model has made out so far."""

    name = "preview"
    lasting = False
    step: int
    total: int
    media_type: str = "image/jpeg"
    #: In base64.
    image: str


class TaskStoring(TaskEvent):
    """Its pictures are made and wait for the store of pictures, which cannot be reached."""

    name = "storing"


class TaskSaved(TaskEvent):
    """Its pictures are whole on disk, or in the store; the record of its end comes next."""

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
    name = "model_loading"
    model: str


class ModelLoaded(Event):
    name = "model_loaded"
    model: str
    seconds: float
    device_bytes: int


class ModelFailed(Event):
    """It could not be loaded, or has been quarantined."""

    name = "model_failed"
    model: str
    failure: Failure


class ModelUnloading(Event):
    name = "model_unloading"
    model: str
    #: As in ModelUnloaded.
    reason: str


class ModelUnloaded(Event):
    """It has left the device."""

    name = "model_unloaded"
    model: str
    #: `switch`, `idle`, `asked`, `config`, `worker_died`.
    reason: str
    #: Whether it stays in host memory.
    warm: bool = False


class ModelCooled(Event):
    """A warm model has left host memory."""

    name = "model_cooled"
    model: str
    #: `idle`, `asked`, `config`, `worker_died`, `load_failed`, or `room`: for another one.
    reason: str


class ModelPulling(Event):
    """A download of weights began, went on by a percent, or ended."""

    name = "model_pulling"
    model: str
    #: `waiting`, `downloading`, `ready`, `failed`, `cancelled`.
    state: str
    bytes_done: int
    bytes_total: int | None
    #: Why it failed or was cancelled.
    failure: Failure | None


class ConfigChanged(Event):
    """Another configuration is in force."""

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
    """The configuration file cannot be used; the one before stays in force."""

    name = "config_rejected"
    source: str
    #: `file:line:column: what, and the fix`.
    errors: tuple[str, ...]


@dataclass(slots=True)
class Published:
    """An event with its place in the order of all events; ids also grow over restarts."""

    id: int
    event: Event
    _encoded: bytes | None = field(default=None, compare=False, repr=False)

    def encoded(self, encode: Callable[[int, Event], bytes]) -> bytes:
        """What `encode` makes of it: made once, for all listeners."""
        if self._encoded is None:
            self._encoded = encode(self.id, self.event)
        return self._encoded


class Subscription:
    """One listener's events, oldest first; iteration ends when the bus closes or the listener is too slow."""

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

    def offer(self, published: Published) -> None:
        """Deliver, or end a listener that is `limit` events behind: it comes back with Last-Event-ID."""
        if self._waiting.qsize() < self._limit:
            self._waiting.put_nowait(published)
        else:
            self.end()

    def end(self) -> None:
        if not self._waiting.full():
            self._waiting.put_nowait(None)


class EventBus:
    """Tells each event to every subscriber and remembers the latest tasks' events for late ones. Loop thread only."""

    def __init__(self, first_id: int, *, kept_tasks: int = 1000, kept_events: int = 256, backlog: int = 256) -> None:
        """`first_id` must be above every id of earlier runs (microseconds of the wall clock serve well)."""
        self._ids = count(first_id)
        self._last_id = first_id - 1
        self._kept_tasks = kept_tasks
        self._kept_events = kept_events
        self._backlog = backlog
        self._history: OrderedDict[str, deque[Published]] = OrderedDict()
        #: By task, None being everything.
        self._subscribers: dict[str | None, dict[Subscription, None]] = {}
        self._closed = False

    @property
    def last_id(self) -> int:
        return self._last_id

    @property
    def subscribers(self) -> int:
        return sum(map(len, self._subscribers.values()))

    @property
    def followed(self) -> list[str]:
        """Tasks with listeners of their own."""
        return [task_id for task_id in self._subscribers if task_id is not None]

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
        """This run's remembered events of a task with an id above `after`."""
        return [published for published in self._history.get(task_id, ()) if published.id > after]

    def forget(self, task_id: str) -> None:
        """The task's events are not remembered any more."""
        self._history.pop(task_id, None)

    @contextmanager
    def subscribe(self, task_id: str | None = None, *, after: int = 0) -> Iterator[Subscription]:
        """Events of one task (remembered ones first), or of everything from now on."""
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
        """End every subscription, now and later. Publishing stays harmless."""
        self._closed = True
        for subscriptions in self._subscribers.values():
            for subscription in subscriptions:
                subscription.end()
