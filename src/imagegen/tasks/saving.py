"""Saver: encodes, writes and uploads the pictures of a task while the GPU runs the next one."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

import structlog
from structlog.contextvars import bind_contextvars

from imagegen.core.errors import EncodingFailed, FailureCode, StorageFailed, StorageFull
from imagegen.core.events import EventBus, TaskStoring
from imagegen.core.task import GenerationTask, Pixels, StoredImage
from imagegen.storage.encoding import encoder_of
from imagegen.storage.images import ImageStore
from imagegen.tasks.life import LiveTask, StopRequest
from imagegen.tasks.records import Records

log = structlog.get_logger(__name__)

#: The number of calls whose pictures may be saved while the GPU works. The pixels of more would fill the memory.
MAX_SAVING = 2

#: Seconds that the store gets to delete the pictures of a task that ended without pictures.
CLEAR_AWAY_S = 2


class Saver:
    """Saves pictures and ends their tasks. Belongs to Runner."""

    def __init__(self, images: ImageStore, records: Records, bus: EventBus, on_room: Callable[[], None]) -> None:
        """`on_room` is called when `crowded` becomes false."""
        self._images = images
        self._records = records
        self._bus = bus
        self._on_room = on_room
        #: One asyncio task for each call whose pictures are being saved.
        self._running: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Saver [Calls: {len(self._running)}]>"

    @property
    def crowded(self) -> bool:
        """Whether the GPU must wait before it makes more pictures."""
        return len(self._running) > MAX_SAVING

    def take(self, made: Iterable[tuple[LiveTask, tuple[Pixels, ...]]], background: asyncio.TaskGroup) -> None:
        """Save the pictures of one call, which are given with their tasks."""
        # Each task drops its pixels once they are written, and does not wait for the others.
        self._begin(_all([self._save(live, pictures) for live, pictures in made]), background)

    def resume(self, live: LiveTask, background: asyncio.TaskGroup) -> None:
        """Upload the pictures that an earlier run of the service left in the spool."""
        self._begin(_all([self._store(live, live.record.storing)]), background)

    def _begin(self, work: Coroutine[Any, Any, None], background: asyncio.TaskGroup) -> None:
        saving = background.create_task(work)
        self._running.add(saving)
        saving.add_done_callback(self._done)

    def _done(self, saving: asyncio.Task[None]) -> None:
        was_crowded = self.crowded
        self._running.discard(saving)
        if was_crowded and not self.crowded:
            self._on_room()

    async def _save(self, live: LiveTask, images: tuple[Pixels, ...]) -> None:
        task = live.record
        bind_contextvars(**task.ids)  # for the asyncio task of `_all`
        try:
            stored = await self._images.save(task.id, images, task.output.format, encoder_of(task))
        except StorageFull:
            message = "The disk is full: the pictures could not be stored."
            await self._records.fail(live, FailureCode.STORAGE_FULL, message)
        except EncodingFailed as error:
            await self._records.fail(live, FailureCode.ENCODING_FAILED, error.detail)
        except StorageFailed:
            message = "The disk refused to store the pictures."
            await self._records.fail(live, FailureCode.STORAGE_FAILED, message)
        else:
            del images  # the upload may take hours, and pixels take far more memory than the rest of a task
            await self._store(live, stored)

    async def _store(self, live: LiveTask, stored: tuple[StoredImage, ...]) -> None:
        """Upload pictures from the spool, if there is a bucket, and end the task."""
        bind_contextvars(**live.record.ids)
        try:
            uploaded = await self._upload(live, stored) if self._images.has_bucket else True
        except StorageFailed as error:
            await self._records.fail(live, FailureCode.STORAGE_FAILED, error.detail)
        else:
            if uploaded:
                await self._records.complete(live, stored)
            elif live.stop_request is StopRequest.CANCEL:
                await self._records.cancel(live)
            else:
                return  # the service stops; the spool and the journal keep the pictures for its next run
        await self._clear_away(live.record)

    async def _upload(self, live: LiveTask, stored: tuple[StoredImage, ...]) -> bool:
        """Upload the pictures. False: a stop request came before the end. Raises StorageFailed."""
        if live.record.storing != stored:
            live.store(stored)
            await self._records.write(live.record)

        def on_wait() -> None:
            if live.wait_for_store():
                log.warning("task_waits_for_store", **live.record.ids)
                self._bus.publish(TaskStoring(task_id=live.record.id))

        uploading = asyncio.create_task(self._images.upload(stored, on_wait))
        stopping = asyncio.create_task(live.until_stop_requested())
        try:
            await asyncio.wait([uploading, stopping], return_when=asyncio.FIRST_COMPLETED)
            if uploading.done():
                uploading.result()
            return uploading.done()
        finally:
            uploading.cancel()
            stopping.cancel()

    async def _clear_away(self, ended: GenerationTask) -> None:
        """Delete the task's pictures from the spool and, if it ended without pictures, from the store."""
        if self._records.is_written(ended):  # otherwise the next run of the service needs them
            await self._images.unspool(ended.storing or ended.images)
        if self._images.reachable:
            # Files that are not deleted now are deleted with the record, which names them.
            with suppress(StorageFailed, TimeoutError):
                async with asyncio.timeout(CLEAR_AWAY_S):
                    await self._images.delete(ended.storing)


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run each of the works as an asyncio task of its own, so that its log lines have the ids of its own task."""
    await asyncio.gather(*works)
