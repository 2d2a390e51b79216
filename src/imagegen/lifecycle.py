"""Runs the service: the start, housekeeping, a new configuration, the drain."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import structlog

from imagegen import logs
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.difference import Difference
from imagegen.catalog.writer import CatalogWriter
from imagegen.core.errors import Draining, ImagegenError, JournalLost
from imagegen.core.events import EventBus
from imagegen.hub.puller import ModelPuller
from imagegen.service.access import Access
from imagegen.settings import Settings
from imagegen.storage.files import file_id
from imagegen.storage.images import ImageStore
from imagegen.storage.journal import Retention, TaskJournal
from imagegen.storage.lock import LOCK
from imagegen.tasks.device import Device
from imagegen.tasks.manager import TaskManager
from imagegen.webhooks.sender import WebhookSender

log = structlog.get_logger(__name__)

#: Seconds that a running task gets to stop between two steps before its worker is killed.
STOP_GRACE_S = 3

#: Seconds between two checks of the lock.
LOOK_EVERY_S = 1

#: Seconds between two searches for tasks that have missed their deadline and streams whose key is not valid any more.
OFTEN_S = 1

#: With `retention_gb: auto`, pictures take one part of so many of their disk.
SHARE_OF_DISK = 4

Chore = Callable[[], Coroutine[Any, Any, object]]


class CatalogSwap:
    """Puts a new catalog in force."""

    def __init__(self, device: Device, tasks: TaskManager, puller: ModelPuller) -> None:
        self._models = device.models
        self._tasks = tasks
        self._puller = puller
        #: Catalogs that wait for the running task.
        self._waiting = 0

    async def __call__(self, catalog: Catalog) -> Difference:
        """Put it in force at once, or between two tasks if a model may have to leave memory. Raises Draining.

        A catalog never goes in force before an earlier one that waits for the running task.
        """
        if not self._waiting and (change := self._models.apply_at_once(catalog)) is not None:
            self._follow(change, catalog)
            return change
        self._waiting += 1
        try:
            return await self._tasks.between_tasks(lambda: self._apply(catalog))
        finally:
            self._waiting -= 1

    async def _apply(self, catalog: Catalog) -> Difference:
        change = await self._models.apply(catalog)
        self._follow(change, catalog)
        await self._tasks.fail_removed()
        return change

    def _follow(self, change: Difference, catalog: Catalog) -> None:
        for model in change.removed:
            self._puller.removed(model)
        if "log_level" in change.settings:
            logs.configure(catalog.settings.log_level)


class Housekeeping:
    """Periodic work: evicts idle models, deletes expired tasks, repeats writes that failed, and enforces deadlines.

    It also ends the streams of keys that are not valid any more.
    """

    def __init__(
        self,
        settings: Settings,
        device: Device,
        tasks: TaskManager,
        journal: TaskJournal,
        images: ImageStore,
        bus: EventBus,
        access: Access,
    ) -> None:
        self._settings = settings
        self._models = device.models
        self._tasks = tasks
        self._journal = journal
        self._images = images
        self._bus = bus
        self._access = access

    def chores(self) -> list[tuple[Chore, float]]:
        """Each chore with its interval in seconds."""
        every_s = self._settings.housekeeping_s
        tasks = self._tasks
        usual = [self._journal.check, self._evict_idle, self._expire, tasks.records.write_ends, self._images.check]
        often = [tasks.fail_late, self._end_streams]
        return [*((chore, every_s) for chore in usual), *((chore, min(every_s, OFTEN_S)) for chore in often)]

    async def _evict_idle(self) -> None:
        """Only asks for it, because models leave memory between two tasks only."""
        await self._tasks.between_tasks(lambda: self._models.evict_idle(self._tasks.wanted))

    async def _end_streams(self) -> None:
        await self._access.end_streams(self._bus)

    async def _expire(self) -> None:
        settings = self._models.catalog.settings.over(self._settings)
        kept = Retention(
            age_s=settings.retention_days * 86_400,
            tasks=settings.retention_tasks,
            size=self._most_pictures(settings),
            journal=int(settings.retention_journal_gb * 2**30),
        )
        if any(kept):
            await self._tasks.records.expire(kept)
        await self._journal.tidy()

    @staticmethod
    def _most_pictures(settings: Settings) -> int:
        """Bytes of pictures that are kept; 0: any number."""
        if settings.retention_gb != "auto":
            return int(settings.retention_gb * 2**30)
        return 0 if settings.store else shutil.disk_usage(settings.data_dir).total // SHARE_OF_DISK


class Lifecycle:
    """Starts the parts of the service, keeps them running, and ends them in order."""

    def __init__(
        self,
        settings: Settings,
        device: Device,
        tasks: TaskManager,
        journal: TaskJournal,
        images: ImageStore,
        bus: EventBus,
        puller: ModelPuller,
        webhooks: WebhookSender,
        config: CatalogWriter,
        access: Access,
    ) -> None:
        self._settings = settings
        self._executor = device.executor
        self._tasks = tasks
        self._journal = journal
        self._images = images
        self._bus = bus
        self._puller = puller
        self._webhooks = webhooks
        self._config = config
        self._housekeeping = Housekeeping(settings, device, tasks, journal, images, bus, access)
        self._lock = settings.data_dir / LOCK
        #: Why nothing can be stored any more.
        self._loss: JournalLost | None = None
        self._running: asyncio.Task[None] | None = None
        #: The jobs that an error has ended.
        self._dead: list[str] = []
        #: Why a drain was asked for, perhaps before `_running` exists; None: it was not.
        self._to_drain: str | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._in_a_hurry = asyncio.Event()

    @property
    def lost(self) -> bool:
        """Whether the journal or the lock was removed, or the disk has failed. The process must then end."""
        return self._loss is not None

    @property
    def crashed(self) -> bool:
        """Whether an error has ended the run loop or another job. The process must then end: nothing else does its
        work."""
        running = self._running
        stopped = running is not None and running.done() and not running.cancelled() and running.exception() is not None
        return stopped or bool(self._dead)

    @property
    def ended(self) -> bool:
        """Whether no task runs any more: the drain is over, or the service crashed, or its journal is lost."""
        return self.lost or (self._running is not None and self._running.done())

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve until the context ends, then drain."""
        async with AsyncExitStack() as stack:
            self._images.sweep()
            stack.callback(self._images.close)
            stack.push_async_callback(self._journal.close)
            stack.push_async_callback(self._executor.close, 2 * STOP_GRACE_S)
            # Event ids begin at the wall clock in microseconds, which is above all ids of earlier versions.
            self._bus.begin(await self._journal.reserve_event_ids(time.time_ns() // 1000))
            self._in_background(stack, self._watch(), "journal")
            self._in_background(stack, self._webhooks.run(), "webhooks")
            self._in_background(stack, self._puller.run(), "pulls")
            self._running = asyncio.create_task(self._tasks.run(), name="tasks")
            self._running.add_done_callback(_log_crash)
            stack.push_async_callback(self._leave)
            if self._to_drain is not None:
                self.begin_drain(self._to_drain)
            # Requests are answered from here on only, because a cancel, a clear and max_queue need the tasks of earlier
            # runs.
            recovered = asyncio.create_task(self._tasks.until_recovered())
            await asyncio.wait([recovered, self._running], return_when=asyncio.FIRST_COMPLETED)
            recovered.cancel()
            await self._config.begin()
            self._in_background(stack, self._config.run(), "config file")
            stack.callback(self._config.close)
            for chore, every_s in self._housekeeping.chores():
                self._in_background(stack, _repeat(chore, every_s), chore.__name__.strip("_"))
            yield

    def _in_background(self, stack: AsyncExitStack, job: Coroutine[Any, Any, None], name: str) -> None:
        """Run a job until the stack closes. An error that ends it ends the service, which would go on without it."""
        running = asyncio.create_task(job, name=name)
        running.add_done_callback(self._job_ended)
        stack.push_async_callback(_cancel, running)

    def _job_ended(self, job: asyncio.Task[None]) -> None:
        if _log_crash(job):
            self._dead.append(job.get_name())
            self.begin_drain("crash")

    async def _watch(self) -> None:
        """Drain at once if the journal is lost or the lock file was removed: another instance could then start."""
        lost = asyncio.create_task(self._journal.until_lost())
        held = file_id(self._lock)
        try:
            while not lost.done() and (held is None or file_id(self._lock) == held):
                await asyncio.wait([lost], timeout=LOOK_EVERY_S)
            reason = lost.result() if lost.done() else JournalLost(f"{self._lock} was removed while the service ran.")
            self._loss = reason
            log.critical("journal_lost", reason=reason.detail)
            self.begin_drain("journal_lost")
            self.hurry()
        finally:
            lost.cancel()

    # -- at a signal --------------------------------------------------------------------------------------------------

    def begin_drain(self, reason: str = "end") -> None:
        """Refuse new tasks and end all event streams. The running task goes on, and reads are answered.

        Before the tasks run, the drain begins as soon as they do. `reason`: for the log.
        """
        self._to_drain = self._to_drain or reason
        if self._running is not None and self._leaving is None:
            running, timeout_s = len(self._tasks.running), self._settings.drain_timeout_s
            log.info(
                "draining", reason=reason, waiting=self._tasks.queue_size, running=running, drain_timeout_s=timeout_s
            )
            self._tasks.begin_drain()
            self._puller.begin_drain()
            self._bus.close()
            self._leaving = asyncio.create_task(self._drain(self._running), name="drain")

    def hurry(self) -> None:
        """Put the running task back into the queue instead of waiting for it."""
        log.info("drain_hurried")
        self._in_a_hurry.set()

    def reload(self) -> None:
        """Read models.yaml again."""
        log.info("reload_asked", signal="SIGHUP")
        self._config.ask_reload("signal")

    async def _leave(self) -> None:
        self.begin_drain()
        assert self._leaving is not None
        await self._leaving
        with suppress(ImagegenError):  # a task whose end still cannot be written runs once more after the next start
            await self._tasks.records.write_ends()

    async def _drain(self, running: asyncio.Task[None]) -> None:
        """Wait for the running task; after `drain_timeout_s` put it back into the queue; finally kill its worker."""
        hurried = asyncio.create_task(self._in_a_hurry.wait())
        await asyncio.wait(
            [running, hurried], timeout=self._settings.drain_timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        hurried.cancel()
        if self.lost:  # nothing that the running task does can be stored
            self._executor.abort()
            await _cancel(running)
            return
        for harder in (self._tasks.hurry, self._executor.abort):
            if running.done():
                return
            harder()
            await asyncio.wait([running], timeout=STOP_GRACE_S)
        await _cancel(running)


async def _repeat(chore: Chore, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            await chore()
        except Draining:
            return
        except ImagegenError as error:  # a full disk, for example: the next attempt may succeed
            log.warning("housekeeping_failed", chore=chore.__name__.strip("_"), code=error.code)
        except OSError as error:
            log.warning("housekeeping_failed", chore=chore.__name__.strip("_"), code="os_error", reason=str(error))


def _log_crash(running: asyncio.Task[None]) -> bool:
    """Whether an error has ended this task; logs it."""
    if running.cancelled() or (error := running.exception()) is None:
        return False
    log.critical("service_crashed", job=running.get_name(), reason=repr(error), exc_info=error)
    return True


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
