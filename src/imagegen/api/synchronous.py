"""Runs a task for an API whose answer is the pictures: the caller waits, and a caller that leaves cancels its task."""

import asyncio
from collections.abc import Callable

from fastapi import Request

from imagegen.api.callers import cancel, problem_of, until_ended
from imagegen.api.dependencies import services_of
from imagegen.api.problems import NoPictures, problem
from imagegen.core.errors import WasCancelled
from imagegen.core.events import Event
from imagegen.core.owner import Owner
from imagegen.core.task import GenerationTask, StoredImage, TaskStatus
from imagegen.service.image_service import ImageService
from imagegen.storage.images import ImageStore
from imagegen.tasks.admission import TaskDraft

#: Headers of every answer with pictures.
MODEL_HEADER, TASK_HEADER = "X-Imagegen-Model", "X-Imagegen-Task"


async def run(
    request: Request, who: Owner, draft: TaskDraft, on_event: Callable[[Event], None] | None = None
) -> GenerationTask:
    """The completed task of a draft. Raises what `submit` raises, and NoPictures."""
    service = services_of(request).service
    task_id = (await service.submit(who, draft)).task.id
    following = None if on_event is None else asyncio.create_task(_follow(service, who, task_id, on_event))
    try:
        task = await until_ended(request, service, who, task_id)
    finally:
        if following is not None:
            following.cancel()
    if task is None:
        await cancel(service, who, task_id)
        raise NoPictures(problem(WasCancelled.code, WasCancelled().detail))  # nobody reads it
    if task.status is not TaskStatus.COMPLETED:
        raise NoPictures(problem_of(task))
    return task


async def _follow(service: ImageService, who: Owner, task_id: str, on_event: Callable[[Event], None]) -> None:
    async for published in service.events(who, task_id):
        if published is not None:
            on_event(published.event)


def headers_of(task: GenerationTask) -> dict[str, str]:
    """The headers of an answer with the pictures of a task."""
    return {MODEL_HEADER: task.model, TASK_HEADER: task.id}


async def read_picture(images: ImageStore, image: StoredImage) -> bytes:
    """The file of a picture. Raises ImageNotFound or StorageFailed."""
    image = await images.known(image)
    return b"".join([piece async for piece in images.pieces(image, 0, image.bytes)])
