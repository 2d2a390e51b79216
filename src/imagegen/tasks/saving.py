"""Saving: pictures that are made and not yet kept. They are encoded, spooled and shipped while the GPU goes on."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

from imagegen.core.errors import EncodingFailed, FailureCode, StorageFailed, StorageFull
from imagegen.core.events import EventBus, TaskStoring
from imagegen.core.task import GenerationTask, Pixels, StoredImage
from imagegen.storage.encoding import encoder_of
from imagegen.storage.images import ImageStore
from imagegen.tasks.active import Active
from imagegen.tasks.records import Records

#: Calls whose pictures may be on their way while the GPU goes on; more would pile up in memory.
MAX_SAVING = 2

#: Seconds that a store gets to delete what a task left there that ended without pictures.
CLEAR_AWAY_S = 2


class Saving:
    """Ends tasks whose pictures are made, one way or another."""

    def __init__(self, images: ImageStore, records: Records, bus: EventBus, on_room: Callable[[], None]) -> None:
        """`on_room` is called when it is not crowded any more."""
        self._images = images
        self._records = records
        self._bus = bus
        self._on_room = on_room
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def crowded(self) -> bool:
        """Whether the GPU is to wait."""
        return len(self._under_way) > MAX_SAVING

    def take(self, made: Iterable[tuple[Active, tuple[Pixels, ...]]], beside: asyncio.TaskGroup) -> None:
        """The pictures of one call, each task's with its task."""
        # Each lets go of its own pictures once they are written.
        self._begin(_all([self._save(active, pictures) for active, pictures in made]), beside)

    def resume(self, active: Active, beside: asyncio.TaskGroup) -> None:
        """Of one that an earlier run left with its pictures in the spool."""
        self._begin(self._store(active, active.task.storing), beside)

    def _begin(self, work: Coroutine[Any, Any, None], beside: asyncio.TaskGroup) -> None:
        saving = beside.create_task(work)
        self._under_way.add(saving)
        saving.add_done_callback(self._done)

    def _done(self, saving: asyncio.Task[None]) -> None:
        was_crowded = self.crowded
        self._under_way.discard(saving)
        if was_crowded and not self.crowded:
            self._on_room()

    async def _save(self, active: Active, images: tuple[Pixels, ...]) -> None:
        task = active.task
        try:
            stored = await self._images.save(task.id, images, task.output.format, encoder_of(task))
        except StorageFull:
            message = "The disk is full: the pictures could not be stored."
            await self._records.fail(active, FailureCode.STORAGE_FULL, message)
        except EncodingFailed as error:
            await self._records.fail(active, FailureCode.ENCODING_FAILED, error.detail)
        except StorageFailed:
            message = "The disk refused to store the pictures."
            await self._records.fail(active, FailureCode.STORAGE_FAILED, message)
        else:
            del images  # pixels take a hundred times as much memory as the rest, and storing may take hours
            await self._store(active, stored)

    async def _store(self, active: Active, stored: tuple[StoredImage, ...]) -> None:
        """Bring spooled pictures to where they are kept, and end the task."""
        try:
            shipped = await self._ship(active, stored) if self._images.ships else True
        except StorageFailed as error:
            await self._records.fail(active, FailureCode.STORAGE_FAILED, error.detail)
        else:
            if shipped:
                await self._records.complete(active, stored)
            elif active.stop.is_set() and not active.put_back:
                await self._records.cancel(active)
            else:
                return  # the service leaves; the spool and the journal keep it for the next run
        await self._clear_away(active.task)

    async def _ship(self, active: Active, stored: tuple[StoredImage, ...]) -> bool:
        """However long that takes; False if it was let go before. Raises StorageFailed."""
        if active.task.storing != stored:
            active.task = active.task.evolve(storing=stored)
            await self._records.write(active.task)

        def on_wait() -> None:
            if not active.waits_for_store:
                active.waits_for_store = True
                self._bus.publish(TaskStoring(task_id=active.task.id))

        shipping = asyncio.create_task(self._images.ship(stored, on_wait))
        letting_go = asyncio.create_task(active.let_go.wait())
        try:
            await asyncio.wait([shipping, letting_go], return_when=asyncio.FIRST_COMPLETED)
            if shipping.done():
                shipping.result()
            return shipping.done()
        finally:
            shipping.cancel()
            letting_go.cancel()

    async def _clear_away(self, ended: GenerationTask) -> None:
        """Leave nothing of it in the spool; and nothing in the store, if it ended without pictures."""
        if self._records.is_written(ended):  # else the next run begins where the journal says
            await self._images.unspool(ended.storing or ended.images)
        if self._images.reachable:
            # What the store does not let go now goes with the record, which names it.
            with suppress(StorageFailed, TimeoutError):
                async with asyncio.timeout(CLEAR_AWAY_S):
                    await self._images.delete(ended.storing)


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*works)
