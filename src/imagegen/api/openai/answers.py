"""Answers: the pictures of a task once it has ended, or a stream of its previews and pictures."""

import asyncio
import base64
import io
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from imagegen.api.callers import problem_of, until_ended
from imagegen.api.dependencies import services_of
from imagegen.api.openai.errors import SHOULD_RETRY, error_body
from imagegen.api.openai.fields import NAME_OF_QUALITY, ImageFields, PromptedFields
from imagegen.api.problems import Problem, error_response, problem
from imagegen.api.sse import KEEP_ALIVE, KEEP_ALIVE_S, EventStream
from imagegen.api.synchronous import headers_of, read_picture
from imagegen.api.urls import open_url
from imagegen.core.errors import Draining, ImagegenError
from imagegen.core.events import (
    Event,
    StreamClosed,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskPreview,
)
from imagegen.core.owner import Owner
from imagegen.core.task import GenerationTask, Output, Pixels, StoredImage, TaskStatus
from imagegen.storage.encoding import encode
from imagegen.storage.images import ImageStore
from imagegen.tasks.intake import RETRY_AFTER_DRAIN_S

#: Called when the caller of a task is gone.
Abandon = Callable[[], Awaitable[None]]

Kind = Literal["image_generation", "image_edit"]


class TokenDetails(BaseModel):
    """Tokens by what they stand for."""

    text_tokens: int = 0
    image_tokens: int = 0


class Usage(BaseModel):
    """Tokens of the prompt that the model read. Pictures are not counted in tokens here."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens_details: TokenDetails = TokenDetails()


class Picture(BaseModel):
    """One picture. `index` and `type` are what Together's clients read."""

    index: int
    type: Literal["b64_json", "url"]
    b64_json: str | None = None
    url: str | None = None


class ImagesAnswer(BaseModel):
    """The pictures of a task. `id`, `model` and `object` are what Together's clients read."""

    created: int
    data: list[Picture]
    background: Literal["opaque"] = "opaque"
    output_format: str
    quality: str
    size: str
    usage: Usage
    id: str
    model: str
    object: Literal["list"] = "list"


def usage_of(task: GenerationTask) -> Usage:
    """The tokens of the prompt, as the encoder that read most of it counts."""
    text = max((it.read for it in task.tokens), default=0)
    return Usage(input_tokens=text, total_tokens=text, input_tokens_details=TokenDetails(text_tokens=text))


def quality_of(fields: ImageFields) -> str:
    """The quality of the pictures, by one of OpenAI's names."""
    asked = fields.quality if isinstance(fields, PromptedFields) else "auto"
    return NAME_OF_QUALITY.get(asked, asked)


async def answer(request: Request, task: GenerationTask, fields: ImageFields) -> Response:
    """The pictures of an ended task, or why there are none. Raises ImageNotFound, StorageFailed, Draining."""
    if not task.status.finished:
        detail = f"{Draining().detail} The task {task.id} goes on after its next start."
        raise Draining(detail, retry_after=RETRY_AFTER_DRAIN_S)
    if task.status is not TaskStatus.COMPLETED:
        # A retry would be a new task with the same end.
        return error_response(request.scope, problem_of(task), {SHOULD_RETRY: "false", **headers_of(task)})
    pictures = [await _picture(request, index, image, fields) for index, image in enumerate(task.images)]
    first = task.images[0]
    body = ImagesAnswer(
        created=int((task.completed_at or task.created_at).timestamp()),
        data=pictures,
        output_format=task.output.format,
        quality=quality_of(fields),
        size=f"{first.width}x{first.height}",
        usage=usage_of(task),
        id=task.id,
        model=task.model,
    )
    content = await asyncio.to_thread(body.model_dump_json, exclude_none=True)
    return Response(content, media_type="application/json", headers=headers_of(task))


async def _picture(request: Request, index: int, image: StoredImage, fields: ImageFields) -> Picture:
    services = services_of(request)
    url = await open_url(f"/images/{image.path}", request) if fields.wants_url else None
    data = await _base64(services.images, image) if fields.wants_data else None
    return Picture(index=index, type="url" if data is None else "b64_json", b64_json=data, url=url)


async def _base64(images: ImageStore, image: StoredImage) -> str:
    data = await read_picture(images, image)
    return (await asyncio.to_thread(base64.b64encode, data)).decode()


# -- callers that wait -------------------------------------------------------------------------------------------------


async def wait(request: Request, who: Owner, task: GenerationTask, fields: ImageFields, abandon: Abandon) -> Response:
    """Answer when the task has ended. `abandon` is called if the caller closes the connection before."""
    ended = await until_ended(request, services_of(request).service, who, task.id)
    if ended is not None:
        return await answer(request, ended, fields)
    await abandon()
    return Response(status_code=499)  # nobody reads it


# -- streams -----------------------------------------------------------------------------------------------------------


class PictureStream(EventStream):
    """The events of one task. `abandon` is called if its caller closes the connection before the end."""

    def __init__(
        self,
        request: Request,
        who: Owner,
        task: GenerationTask,
        fields: PromptedFields,
        kind: Kind,
        abandon: Abandon,
    ) -> None:
        self._services = services_of(request)
        self._who = who
        self._task = task
        self._fields = fields
        self._kind = kind
        self._abandon = abandon
        self._previewed: Counter[int] = Counter()
        #: Whether the task has ended, or goes on without this stream.
        self._over = False
        super().__init__(self._frames())
        self.headers.update(headers_of(task))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not self._over:
                await self._abandon()

    async def _frames(self) -> AsyncIterator[bytes]:
        service = self._services.service
        async for published in service.events(self._who, self._task.id, 0, KEEP_ALIVE_S):
            if published is None:
                yield KEEP_ALIVE
                continue
            try:
                events = await self._events(published.event)
            except ImagegenError as error:  # the pictures cannot be read
                events = [_error(problem(error.code, error.detail))]
            for name, data in events:
                yield _frame(name, data)

    async def _events(self, event: Event) -> Sequence[tuple[str, Mapping[str, Any]]]:
        match event:
            case TaskPreview():
                return [await self._partial(event)]
            case TaskCompleted():
                self._over = True
                task = await self._services.service.task(self._who, self._task.id)
                return [await self._completed(task, image) for image in event.images]
            case TaskFailed() | TaskCancelled():
                self._over = True
                task = await self._services.service.task(self._who, self._task.id)
                return [_error(problem_of(task))]
            case StreamClosed(reason=reason):
                self._over = reason == "stopping"  # then the task goes on after the next start
                code = Draining.code if reason == "stopping" else "too_many_streams"
                return [_error(problem(code, f"The stream ended before its task: {reason}."))]
        return []

    async def _partial(self, event: TaskPreview) -> tuple[str, Mapping[str, Any]]:
        picture = (event.step - 1) // max(1, event.total // self._fields.n)
        index = self._previewed[picture]
        self._previewed[picture] += 1
        data, size = await asyncio.to_thread(_reencoded, base64.b64decode(event.image), self._fields.output)
        return self._event("partial_image", data, size, {"partial_image_index": index})

    async def _completed(self, task: GenerationTask, image: StoredImage) -> tuple[str, Mapping[str, Any]]:
        data = await _base64(self._services.images, image)
        return self._event("completed", data, f"{image.width}x{image.height}", {"usage": usage_of(task).model_dump()})

    def _event(self, what: str, data: str, size: str, more: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        shared = {
            "created_at": int(time.time()),
            "size": size,
            "quality": quality_of(self._fields),
            "background": "opaque",
            "output_format": str(self._fields.output_format),
        }
        name = f"{self._kind}.{what}"
        return name, {"type": name, "b64_json": data, **shared, **more}


def _error(what: Problem) -> tuple[str, Mapping[str, Any]]:
    return "error", {"type": "error", "error": error_body(what).model_dump()}


def _frame(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _reencoded(jpeg: bytes, output: Output) -> tuple[str, str]:
    """A preview in the format of the picture, in base64, and its size."""
    from PIL import Image

    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        rgb = image.convert("RGB")
    pixels = Pixels(width=rgb.width, height=rgb.height, seed=0, rgb=rgb.tobytes())
    data = encode(pixels, output.evolve(metadata=False), {})
    return base64.b64encode(data).decode(), f"{rgb.width}x{rgb.height}"
