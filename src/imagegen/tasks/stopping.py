"""Stopping: cancels tasks, fails tasks that can no longer run, and drains."""

import asyncio
from collections.abc import Iterable

import structlog

from imagegen.core.errors import FailureCode, TaskFinished
from imagegen.core.task import GenerationTask, TaskStatus
from imagegen.storage.images import ImageStore
from imagegen.tasks.device import Device
from imagegen.tasks.intake import Intake
from imagegen.tasks.life import LiveTask, Loading, StopRequest
from imagegen.tasks.outlooks import Outlooks
from imagegen.tasks.parking import Parking
from imagegen.tasks.records import Records
from imagegen.tasks.runner import Runner

log = structlog.get_logger(__name__)


class Stopping:
    """Ends tasks before they are completed. Belongs to TaskManager, which documents the public methods."""

    def __init__(
        self,
        device: Device,
        intake: Intake,
        runner: Runner,
        parking: Parking,
        records: Records,
        outlooks: Outlooks,
        images: ImageStore,
        cancel_grace_s: float,
    ) -> None:
        self._device = device
        self._queue = device.queue
        self._models = device.models
        self._intake = intake
        self._runner = runner
        self._parking = parking
        self._records = records
        self._outlooks = outlooks
        self._images = images
        self._cancel_grace_s = cancel_grace_s

    # -- one task -----------------------------------------------------------------------------------------------------

    async def cancel(self, task_id: str) -> GenerationTask:
        if self._take_out(task_id):
            return await self._records.cancel(self._records.live[task_id])
        task = await self._records.get(task_id)
        if task.status.finished and task.status is not TaskStatus.CANCELLED:
            raise TaskFinished(f"The task has already {task.status}.")
        live = self._records.live.get(task_id)
        if live is None or live.ending:
            return task
        log.info("task_cancel_asked", **live.record.ids)
        live.request_stop(StopRequest.CANCEL)
        call = self._device.call
        if isinstance(live.stage, Loading):
            # The task ends at once. The load gets some time to finish, because the next task may need the model.
            asyncio.get_running_loop().call_later(self._cancel_grace_s, self._abandon_load, live)
            return await self._records.cancel(live)
        if call is not None and live in call.members and len(call.members) > 1:
            # The task ends at once. The call continues for its other members, and this task's pictures are discarded.
            return await self._records.cancel(live)
        return task  # the request stops it between two steps, or before its pictures are uploaded

    def _abandon_load(self, cancelled: LiveTask) -> None:
        """Kill the worker if it is still loading for this task and no other task wants the model."""
        call, model = self._device.call, cancelled.record.model
        if call is None or call.first is not cancelled:
            return
        if all(live is cancelled or live.record.model != model for live in self._records.live.values()):
            self._models.abandon_load(model)

    def _take_out(self, task_id: str) -> bool:
        """Remove a waiting task from the queue or from Parking; False if it does not wait."""
        waited = self._queue.remove(task_id) or self._parking.remove(task_id)
        self._outlooks.changed()
        return waited

    # -- waiting tasks ------------------------------------------------------------------------------------------------

    async def clear(self) -> int:
        ids = self._queue.remove_all() + self._parking.remove_all()
        self._outlooks.changed()
        await asyncio.gather(*(self._records.cancel(self._records.live[task_id]) for task_id in ids))
        return len(ids)

    async def fail_late(self) -> int:
        late = self._take_all_out(self._intake.late())
        await asyncio.gather(*map(self._records.fail_late, late))
        return len(late)

    async def fail_removed(self) -> int:
        known = self._models.catalog.models
        removed = self._take_all_out(live for live in self._records.live.values() if live.record.model not in known)
        code, message = FailureCode.MODEL_REMOVED, "The model is no longer configured."
        await asyncio.gather(*(self._records.fail(live, code, message) for live in removed))
        self._outlooks.changed()
        return len(removed)

    def _take_all_out(self, candidates: Iterable[LiveTask]) -> list[LiveTask]:
        """Remove those that wait from the queue or from Parking, and return them."""
        return [live for live in list(candidates) if self._take_out(live.record.id)]

    # -- the service --------------------------------------------------------------------------------------------------

    def begin_drain(self) -> None:
        if self._intake.closed:
            return
        self._intake.close()
        if not self._images.reachable:
            self._upload_later()
        self._runner.stop()

    def hurry(self) -> None:
        self._upload_later()
        if self._device.call is not None:
            for live in self._device.call.members:
                live.request_stop(StopRequest.PUT_BACK)

    def _upload_later(self) -> None:
        """Stop all waiting for the store of pictures: the next run of the service uploads what is in the spool."""
        for live in self._records.live.values():
            live.request_stop(StopRequest.STORE_LATER)
