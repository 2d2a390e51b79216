"""Records: finds every task, and writes the end of each task to disk before it publishes it."""

from datetime import UTC, datetime

import structlog

from imagegen.core.errors import (
    FailureCode,
    ImageNotFound,
    StorageFailed,
    StorageFull,
    StoreUnreachable,
    TaskNotFinished,
    TaskNotFound,
)
from imagegen.core.events import EventBus, TaskCancelled, TaskCompleted, TaskEvent, TaskFailed, TaskSaved
from imagegen.core.task import Failure, GenerationTask, StoredImage
from imagegen.storage.images import ImageStore, task_of
from imagegen.storage.journal import Page, Retention, TaskFilter, TaskJournal
from imagegen.tasks.life import LiveTask

log = structlog.get_logger(__name__)


class Records:
    """Owns `live`, the tasks that have not ended. The journal has all tasks."""

    def __init__(self, journal: TaskJournal, images: ImageStore, bus: EventBus) -> None:
        self.live: dict[str, LiveTask] = {}
        self._journal = journal
        self._images = images
        self._bus = bus
        #: Ended tasks whose end the disk has refused so far. Callers see them as ended.
        self._unwritten: dict[str, GenerationTask] = {}

    def __repr__(self) -> str:
        return f"<Records [Live: {len(self.live)}, Unwritten: {len(self._unwritten)}]>"

    # -- reading ------------------------------------------------------------------------------------------------------

    async def get(self, task_id: str) -> GenerationTask:
        """The present record of a task. Raises TaskNotFound."""
        live = self.live.get(task_id)
        task = live.record if live else self._unwritten.get(task_id) or await self._journal.get(task_id)
        if task is None:
            raise TaskNotFound
        return task

    async def picture(self, path: str) -> StoredImage:
        """A picture of a task, by its path. Raises ImageNotFound for any other file."""
        try:
            task = await self.get(task_of(path))
        except TaskNotFound:
            raise ImageNotFound from None
        for image in task.images:
            if image.path == path:
                return image
        raise ImageNotFound

    async def page(self, wanted: TaskFilter, limit: int, before: int | None = None) -> Page:
        """A page of tasks, newest first; with `before`, those that arrived before that sequence number."""
        return await self._journal.page(wanted, limit, before)

    async def count(self) -> int:
        """The number of tasks in the journal, ended or not."""
        return await self._journal.count()

    def is_written(self, task: GenerationTask) -> bool:
        """Whether the end of this task is in the journal."""
        return task.id not in self._unwritten

    # -- writing ------------------------------------------------------------------------------------------------------

    async def write(self, *tasks: GenerationTask, started: bool = False) -> bool:
        """Write records to the journal. `started`: their attempts have begun, so `started` webhooks are queued as well.

        False: the disk refused. The journal then has the older records, and a restart repeats the tasks.
        """
        try:
            await (self._journal.begin(*tasks) if started else self._journal.update(*tasks))
        except (StorageFull, StorageFailed) as error:
            for task in tasks:
                log.error("journal_failed", **task.ids, status=task.status, code=error.code)
            return False
        return True

    async def complete(self, live: LiveTask, images: tuple[StoredImage, ...]) -> None:
        """End a task whose pictures are in their store."""
        ended = live.complete(images, datetime.now(UTC))
        self._bus.publish(TaskSaved(task_id=ended.id, images=images))
        await self._end(live, ended, TaskCompleted(task_id=ended.id, images=images))

    async def fail(self, live: LiveTask, code: FailureCode, message: str) -> None:
        """End a task as failed."""
        failure = Failure(code=code, message=message)
        ended = live.fail(failure, datetime.now(UTC))
        await self._end(live, ended, TaskFailed(task_id=ended.id, failure=failure))

    async def fail_late(self, live: LiveTask) -> None:
        """End a task that has missed its deadline."""
        message = f"The task could not begin within its deadline of {live.record.deadline_s:g} s."
        await self.fail(live, FailureCode.DEADLINE_EXCEEDED, message)

    async def cancel(self, live: LiveTask) -> GenerationTask:
        """End a task as cancelled."""
        ended = live.cancel(datetime.now(UTC))
        await self._end(live, ended, TaskCancelled(task_id=ended.id))
        return ended

    async def _end(self, live: LiveTask, ended: GenerationTask, event: TaskEvent) -> None:
        # The end is on disk before it is published, so that the task does not run again after a kill -9.
        written = await self.write(ended)
        live.finish()
        if not written:
            self._unwritten[ended.id] = ended
        self._bus.publish(event)  # while it is in `live`, where the taps of the bus look it up
        del self.live[ended.id]
        failure, took = ended.failure, (ended.completed_at or ended.created_at) - ended.created_at
        log.info(
            "task_ended",
            **ended.ids,
            status=ended.status,
            attempt=ended.attempt,
            seconds=round(took.total_seconds(), 3),
            pictures=len(ended.images),
            code=failure.code if failure else None,
            reason=failure.message if failure else None,
        )

    async def write_ends(self) -> None:
        """Write the ends that the disk has refused. Raises StorageFull or StorageFailed if it still does."""
        ended = list(self._unwritten.values())
        if ended:
            await self._journal.update(*ended)
        for task in ended:
            if self._unwritten.pop(task.id, None) is not None:  # it was not deleted meanwhile
                await self._images.unspool(task.storing or task.images)

    # -- deleting -----------------------------------------------------------------------------------------------------

    async def delete(self, task_id: str) -> None:
        """Delete an ended task with its files. Raises TaskNotFound, TaskNotFinished, StorageFailed."""
        task = await self.get(task_id)
        if not task.status.finished:
            raise TaskNotFinished
        await self._images.delete(task.images + task.storing)
        await self._forget([task])
        log.info("task_deleted", **task.ids)

    async def expire(self, kept: Retention) -> int:
        """Delete what retention does not keep; returns the number of deleted tasks.

        A task whose files cannot be removed stays until the next time. The files go first: on a full disk, that is
        what makes room for the changes of the journal.
        """
        deleted = await self._delete_surplus(kept._replace(journal=0))
        if kept.journal:
            if dropped := await self._journal.drop_inputs(kept.journal):
                log.info("inputs_deleted", tasks=dropped)
            deleted += await self._delete_surplus(Retention(journal=kept.journal))
        if deleted:
            log.info("tasks_expired", tasks=deleted)
        return deleted

    async def _delete_surplus(self, kept: Retention) -> int:
        deleted, stuck = 0, set[str]()
        while surplus := await self._journal.surplus(kept, without=stuck):
            removed = await self._remove_files(surplus)
            await self._forget(removed)
            deleted += len(removed)
            stuck |= {task.id for task in surplus} - {task.id for task in removed}
            if not removed:  # a read-only folder, for example
                break
        return deleted

    async def _remove_files(self, ended: list[GenerationTask]) -> list[GenerationTask]:
        """Remove the files of tasks. Returns the tasks whose files are gone. Raises StoreUnreachable."""
        try:
            await self._images.delete(image for task in ended for image in task.images + task.storing)
        except StoreUnreachable:
            raise
        except StorageFailed:
            return [task for task in ended if await self._try_to_remove_files(task)]
        return ended

    async def _try_to_remove_files(self, task: GenerationTask) -> bool:
        try:
            await self._images.delete(task.images + task.storing)
        except StorageFailed as error:
            log.error("files_not_removed", task_id=task.id, reason=error.detail)
            return False
        return True

    async def _forget(self, ended: list[GenerationTask]) -> None:
        """Delete the records of tasks whose files are gone. Files without a record could not be found any more."""
        left, at_once = ended, len(ended)
        while left:
            some = left[:at_once]
            try:
                await self._journal.delete([task.id for task in some])
            except StorageFull:
                if at_once == 1:
                    raise
                at_once //= 2  # a smaller change may fit into what the journal has left
                continue
            for task in some:
                self._unwritten.pop(task.id, None)
                self._bus.forget(task.id)
            left = left[at_once:]
