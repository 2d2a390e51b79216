"""Records: what is known of every task, on disk before anyone is told; the single writer of their states."""

from datetime import UTC, datetime

import structlog

from imagegen.core.errors import (
    FailureCode,
    ImageNotFound,
    StorageFailed,
    StorageFull,
    TaskNotFinished,
    TaskNotFound,
)
from imagegen.core.events import EventBus, TaskCancelled, TaskCompleted, TaskFailed, TaskSaved
from imagegen.core.task import Failure, GenerationTask, StoredImage, TaskStatus
from imagegen.storage.images import ImageStore, task_of
from imagegen.storage.tasks import Page, Retention, TaskFilter, TaskJournal
from imagegen.tasks.active import Active

log = structlog.get_logger(__name__)


class Records:
    """Owns `active`, every task that has not ended; the journal remembers all."""

    def __init__(self, journal: TaskJournal, images: ImageStore, bus: EventBus) -> None:
        self.active: dict[str, Active] = {}
        self._journal = journal
        self._images = images
        self._bus = bus
        #: Ended tasks whose end the disk has refused so far; it is true all the same.
        self._unwritten: dict[str, GenerationTask] = {}

    # -- reading ------------------------------------------------------------------------------------------------------

    async def get(self, task_id: str) -> GenerationTask:
        """A task's record now. Raises TaskNotFound."""
        active = self.active.get(task_id)
        task = active.task if active else self._unwritten.get(task_id) or await self._journal.get(task_id)
        if task is None:
            raise TaskNotFound
        return task

    async def picture(self, path: str) -> StoredImage:
        """A picture that a task has made: nothing else is one. Raises ImageNotFound."""
        try:
            task = await self.get(task_of(path))
        except TaskNotFound:
            raise ImageNotFound from None
        for image in task.images:
            if image.path == path:
                return image
        raise ImageNotFound

    async def page(self, wanted: TaskFilter, limit: int, before: int | None = None) -> Page:
        """The newest tasks, or the newest before the one with this sequence."""
        return await self._journal.page(wanted, limit, before)

    async def count(self) -> int:
        """Tasks in the history, ended or not."""
        return await self._journal.count()

    def is_written(self, task: GenerationTask) -> bool:
        """Whether the journal knows of its end, too."""
        return task.id not in self._unwritten

    # -- writing ------------------------------------------------------------------------------------------------------

    async def write(self, *tasks: GenerationTask, started: bool = False) -> bool:
        """Store new states. If the disk refuses, the older ones stay there and a restart repeats the tasks."""
        try:
            await (self._journal.begin(*tasks) if started else self._journal.update(*tasks))
        except (StorageFull, StorageFailed) as error:
            for task in tasks:
                log.error("journal_failed", task_id=task.id, status=task.status, code=error.code)
            return False
        return True

    async def complete(self, active: Active, images: tuple[StoredImage, ...]) -> None:
        """Its pictures are where they are kept."""
        self._bus.publish(TaskSaved(task_id=active.task.id, images=images))
        active.task = active.task.evolve(images=images, storing=())
        await self._end(active, TaskStatus.COMPLETED)
        self._bus.publish(TaskCompleted(task_id=active.task.id, images=images))

    async def fail(self, active: Active, code: FailureCode, message: str) -> None:
        failure = Failure(code=code, message=message)
        await self._end(active, TaskStatus.FAILED, failure=failure)
        self._bus.publish(TaskFailed(task_id=active.task.id, failure=failure))

    async def cancel(self, active: Active) -> GenerationTask:
        await self._end(active, TaskStatus.CANCELLED)
        self._bus.publish(TaskCancelled(task_id=active.task.id))
        return active.task

    async def _end(self, active: Active, status: TaskStatus, **changes: object) -> None:
        active.ending = True
        ended = active.task.evolve(status=status, completed_at=datetime.now(UTC), **changes)
        # On disk before anyone is told: after a kill -9 it must not come back to life.
        written = await self.write(ended)
        active.task = ended
        if not written:
            self._unwritten[ended.id] = ended
        del self.active[ended.id]
        log.info("task_ended", task_id=ended.id, status=status, attempt=ended.attempt)

    async def write_ends(self) -> None:
        """Store the ends that the disk refused when they came. Raises StorageFull or StorageFailed if it still does."""
        ended = list(self._unwritten.values())
        if ended:
            await self._journal.update(*ended)
        for task in ended:
            del self._unwritten[task.id]

    # -- deleting -----------------------------------------------------------------------------------------------------

    async def delete(self, task_id: str) -> None:
        """Remove an ended task with its files. Raises TaskNotFound, TaskNotFinished, StorageFailed."""
        task = await self.get(task_id)
        if not task.status.finished:
            raise TaskNotFinished
        await self._remove([task])

    async def expire(self, kept: Retention) -> int:
        """Delete the ended tasks that are more than is to be kept; how many that were."""
        deleted = 0
        while surplus := await self._journal.surplus(kept):
            await self._remove(surplus)
            deleted += len(surplus)
        return deleted

    async def _remove(self, ended: list[GenerationTask]) -> None:
        """Files first: a record without files can be removed again, files without a record by nobody."""
        await self._images.delete(image for task in ended for image in task.images + task.storing)
        await self._journal.delete([task.id for task in ended])
        for task in ended:
            self._unwritten.pop(task.id, None)
            self._bus.forget(task.id)
