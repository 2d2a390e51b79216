"""What happens, as frozen events, and the one bus that tells it to whoever listens."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import count
from typing import ClassVar, NamedTuple

from imagegen.core.task import Failure, StoredImage
from imagegen.core.value import Value


class Event(Value):
    """Something that happened."""

    #: The word on the wire.
    name: ClassVar[str]
    #: Whether nothing follows it for its task.
    final: ClassVar[bool] = False


class TaskEvent(Event):
    """Something that happened to one task."""

    task_id: str


class TaskQueued(TaskEvent):
    """Accepted and stored, or put back after its worker died."""

    name = "queued"
    #: Tasks that are to run before it.
    position: int


class TaskStarted(TaskEvent):
    name = "started"
    attempt: int


class TaskLoading(TaskEvent):
    """Waits for its model to be loaded."""

    name = "loading"
    model: str


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
    #: `switch`, `idle`, `asked`, `worker_died`.
    reason: str
    #: Whether it stays in host memory.
    warm: bool = False


class ModelCooled(Event):
    """A warm model has left host memory."""

    name = "model_cooled"
    model: str
    #: `idle`, `asked`, `worker_died`, `load_failed`, or `room`: for another one.
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


class Published(NamedTuple):
    """An event with its place in the order of all events; ids also grow over restarts."""

    id: int
    event: Event


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
        while (published := await self._waiting.get()) is not None:
            yield published

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
        self._subscribers: dict[Subscription, str | None] = {}
        self._closed = False

    @property
    def last_id(self) -> int:
        return self._last_id

    @property
    def subscribers(self) -> int:
        return len(self._subscribers)

    def publish(self, event: Event) -> None:
        self._last_id = next(self._ids)
        published = Published(self._last_id, event)
        task_id = event.task_id if isinstance(event, TaskEvent) else None
        if task_id is not None:
            self._remember(task_id, published)
        for subscription, topic in self._subscribers.items():
            if topic is None or topic == task_id:
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

    @contextmanager
    def subscribe(self, task_id: str | None = None, *, after: int = 0) -> Iterator[Subscription]:
        """Events of one task (remembered ones first), or of everything from now on."""
        backlog = self.history(task_id, after) if task_id is not None else []
        subscription = Subscription(backlog, self._backlog)
        self._subscribers[subscription] = task_id
        if self._closed:
            subscription.end()
        try:
            yield subscription
        finally:
            self._subscribers.pop(subscription, None)

    def close(self) -> None:
        """End every subscription, now and later. Publishing stays harmless."""
        self._closed = True
        for subscription in self._subscribers:
            subscription.end()
