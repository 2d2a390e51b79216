"""Saver: encodes, writes and uploads the pictures of a task while the GPU runs the next one."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

from structlog.contextvars import bind_contextvars

from imagegen.core.errors import EncodingFailed, FailureCode, StorageFailed, StorageFull
from imagegen.core.events import EventBus, TaskStoring
from imagegen.core.task import GenerationTask, Pixels, StoredImage
from imagegen.storage.encoding import encoder_of
from imagegen.storage.images import ImageStore
from imagegen.tasks.life import LiveTask, StopRequest
from imagegen.tasks.records import Records

#: Calls whose pictures may be saved while the GPU goes on. The pixels of more would fill the memory.
MAX_SAVING = 2

#: Seconds that a store gets to delete the pictures of a task that ended without any.
CLEAR_AWAY_S = 2


class Saver:
    """Ends every task whose pictures are made. Belongs to Runner."""

    def __init__(self, images: ImageStore, records: Records, bus: EventBus, on_room: Callable[[], None]) -> None:
        """`on_room` is called when `crowded` becomes false."""
        self._images = images
        self._records = records
        self._bus = bus
        self._on_room = on_room
        self._under_way: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Saver [Calls: {len(self._under_way)}]>"

    @property
    def crowded(self) -> bool:
        """Whether the GPU must wait before it makes more pictures."""
        return len(self._under_way) > MAX_SAVING

    def take(self, made: Iterable[tuple[LiveTask, tuple[Pixels, ...]]], beside: asyncio.TaskGroup) -> None:
        """Save the pictures of one call: each task with its own."""
        # Each task drops its pixels once they are written, and does not wait for the others.
        self._begin(_all([self._save(live, pictures) for live, pictures in made]), beside)

    def resume(self, live: LiveTask, beside: asyncio.TaskGroup) -> None:
        """Upload the pictures that an earlier run left in the spool."""
        self._begin(_all([self._store(live, live.record.storing)]), beside)

    def _begin(self, work: Coroutine[Any, Any, None], beside: asyncio.TaskGroup) -> None:
        saving = beside.create_task(work)
        self._under_way.add(saving)
        saving.add_done_callback(self._done)

    def _done(self, saving: asyncio.Task[None]) -> None:
        was_crowded = self.crowded
        self._under_way.discard(saving)
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
            del images  # pixels take far more memory than the rest of a task, and the upload may take hours
            await self._store(live, stored)

    async def _store(self, live: LiveTask, stored: tuple[StoredImage, ...]) -> None:
        """Upload pictures from the spool, if there is a bucket, and end the task."""
        bind_contextvars(**live.record.ids)
        try:
            uploaded = await self._upload(live, stored) if self._images.ships else True
        except StorageFailed as error:
            await self._records.fail(live, FailureCode.STORAGE_FAILED, error.detail)
        else:
            if uploaded:
                await self._records.complete(live, stored)
            elif live.stop_request is StopRequest.CANCEL:
                await self._records.cancel(live)
            else:
                return  # the service ends; spool and journal keep the pictures for the next run
        await self._clear_away(live.record)

    async def _upload(self, live: LiveTask, stored: tuple[StoredImage, ...]) -> bool:
        """Upload, however long that takes. False: a stop request came first. Raises StorageFailed."""
        if live.record.storing != stored:
            live.store(stored)
            await self._records.write(live.record)

        def on_wait() -> None:
            if live.wait_for_store():
                self._bus.publish(TaskStoring(task_id=live.record.id))

        uploading = asyncio.create_task(self._images.ship(stored, on_wait))
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
        """Delete its pictures from the spool; and from the store, if the task ended without pictures."""
        if self._records.is_written(ended):  # otherwise the next run needs them
            await self._images.unspool(ended.storing or ended.images)
        if self._images.reachable:
            # Files that the store does not delete now are deleted with the record, which names them.
            with suppress(StorageFailed, TimeoutError):
                async with asyncio.timeout(CLEAR_AWAY_S):
                    await self._images.delete(ended.storing)


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Each work has an asyncio task of its own, so that its lines of the log have its own ids."""
    await asyncio.gather(*works)
