"""The routes of OpenAI's Images API, and its list of models."""

import asyncio
from functools import partial
from hashlib import sha256
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, StringConstraints

from imagegen.api.bounded import BoundedRoute, FormRoute
from imagegen.api.callers import Retries, cancel
from imagegen.api.dependencies import Models, Services, Who, services_of, settings_of
from imagegen.api.native.images.uploads import decode_base64
from imagegen.api.openai.answers import Kind, PictureStream, wait
from imagegen.api.openai.fields import (
    EditFields,
    GenerationFields,
    ImageFields,
    PromptedFields,
    VariationFields,
    invalid,
)
from imagegen.api.openai.forms import Files, read_form
from imagegen.api.security import MAKE, SEE, KeyedRoute
from imagegen.catalog.catalog import ANY_NAME
from imagegen.core.errors import ImageTooLarge, InvalidImage
from imagegen.core.owner import Owner
from imagegen.core.task import GenerationTask, InputPictures, TaskType
from imagegen.loaders.pictures import transparent_part
from imagegen.storage.journal import Claim
from imagegen.tasks.admission import TaskDraft

log = structlog.get_logger(__name__)

#: Not in the OpenAPI document of imagegen: OpenAI has its own, and clients have generated SDKs from that.
json_router = APIRouter(prefix="/v1", route_class=BoundedRoute, include_in_schema=False, dependencies=[MAKE])
form_router = APIRouter(prefix="/v1", route_class=FormRoute, include_in_schema=False, dependencies=[MAKE])
models_router = APIRouter(prefix="/v1", route_class=KeyedRoute, include_in_schema=False, dependencies=[SEE])


class ModelCard(BaseModel):
    """A model, or an alias of one: `root` is the id of the model that answers."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "imagegen"
    root: str


class ModelCards(BaseModel):
    object: str = "list"
    data: list[ModelCard]


class _Sender:
    """Who sends a request, whether the SDK may send it again, and whether it has sent it before."""

    def __init__(self, request: Request, who: Owner, key: str | None, retries: int | None) -> None:
        self.request = request
        self.who = who
        self.services: Services = services_of(request)
        self._idempotency_key = key
        self._retries = retries

    async def make(self, draft: TaskDraft, fields: ImageFields, kind: Kind, files: tuple[bytes, ...] = ()) -> Response:
        """Accept a task, or join the one that the same request has made before, and answer with its pictures."""
        streams = isinstance(fields, PromptedFields) and fields.stream
        digest = await asyncio.to_thread(_digest, self.request.url.path, fields, files)
        address = self.request.client.host if self.request.client else ""
        # An SDK does not send a request again once its stream has begun.
        key = (self.who.name, address, digest) if self._retries is not None and not streams else None
        task = await self._joined(key) or await self._accepted(draft, fields, digest)
        abandon = partial(self._abandon, key, task.id)
        if isinstance(fields, PromptedFields) and fields.stream:
            return PictureStream(self.request, self.who, task, fields, kind, abandon)
        return await wait(self.request, self.who, task, fields, abandon)

    async def _joined(self, key: tuple[str, ...] | None) -> GenerationTask | None:
        """The task of the same request, if this is a retry and its caller has gone."""
        retries: Retries = self.request.app.state.retries
        task_id = retries.take(key) if key is not None and self._retries else None
        return await self.services.service.task(self.who, task_id) if task_id is not None else None

    async def _accepted(self, draft: TaskDraft, fields: ImageFields, digest: str) -> GenerationTask:
        claim = Claim(self._idempotency_key, digest) if self._idempotency_key else None
        task = (await self.services.service.submit(self.who, draft, claim)).task
        if user := fields.safety_identifier or fields.user:
            log.info("task_user", **task.ids, user=user)
        return task

    async def _abandon(self, key: tuple[str, ...] | None, task_id: str) -> None:
        """The caller has closed the connection before the task ended."""
        retries: Retries = self.request.app.state.retries
        if self._idempotency_key is not None:
            return  # the same request may be waiting for it elsewhere, or come back at any time
        if key is not None:
            retries.leave(key, self.who, task_id)
        else:
            await cancel(self.services.service, self.who, task_id)

    def draft(self, kind: TaskType, fields: ImageFields) -> TaskDraft:
        """The draft of a task without pictures."""
        return fields.draft(kind, self.services.models.catalog, settings_of(self.services).max_batch_size)

    async def with_picture(self, draft: TaskDraft, image: bytes, mask: bytes | None = None) -> TaskDraft:
        """The draft with an input picture and, if there is one, a mask whose transparent part is repainted.

        Raises InvalidImage, ImageTooLarge, TooManyUploads, RequestValidationError.
        """
        most = settings_of(self.services).max_input_pixels
        size = await self.services.checks.check(image, most)
        if mask is not None:
            try:
                await self.services.checks.check(mask, most)
                mask = await asyncio.to_thread(transparent_part, mask)
            except (InvalidImage, ImageTooLarge) as error:
                raise invalid("mask", error.detail) from None
        return draft.evolve(pictures=InputPictures(init_image=image, mask_image=mask), input_size=size)


def _digest(path: str, fields: ImageFields, files: tuple[bytes, ...]) -> str:
    """SHA-256 of a request. The bytes of a multipart body differ each time, so it is made of what they say."""
    parts = [path.encode(), fields.model_dump_json().encode(), *files]
    return sha256(b"".join(sha256(part).digest() for part in parts)).hexdigest()


async def _sender(
    request: Request,
    who: Who,
    idempotency_key: Annotated[
        Annotated[str, StringConstraints(min_length=1, max_length=255, pattern="^[ -~]+$")] | None, Header()
    ] = None,
    x_stainless_retry_count: Annotated[int | None, Header(ge=0, le=1000)] = None,
) -> _Sender:
    return _Sender(request, who, idempotency_key, x_stainless_retry_count)


Sender = Annotated[_Sender, Depends(_sender)]


@json_router.post("/images/generations")
async def generate(fields: GenerationFields, sender: Sender) -> Response:
    """Make pictures from a prompt or, with `image_url`, from a prompt and a picture."""
    if fields.picture is None:
        return await sender.make(sender.draft(TaskType.TEXT2IMAGE, fields), fields, "image_generation")
    draft = sender.draft(TaskType.IMAGE2IMAGE, fields)
    image = await asyncio.to_thread(decode_base64, fields.picture)
    return await sender.make(await sender.with_picture(draft, image), fields, "image_generation")


@form_router.post("/images/edits")
async def edit(request: Request, sender: Sender) -> Response:
    """Make pictures from a prompt and a picture. With a mask, only its transparent part is repainted."""
    fields, files = await read_form(request, EditFields, ("image", "mask"))
    image, masks = _one_picture(files), files.get("mask", [])
    if len(masks) > 1:
        raise invalid("mask", "must be one file")
    draft = sender.draft(TaskType.IMAGE2IMAGE, fields)
    draft = await sender.with_picture(draft, image, *masks)
    return await sender.make(draft, fields, "image_edit", (image, *masks))


@form_router.post("/images/variations")
async def vary(request: Request, sender: Sender) -> Response:
    """Make pictures that are like a picture."""
    fields, files = await read_form(request, VariationFields, ("image",))
    image = _one_picture(files)
    draft = await sender.with_picture(sender.draft(TaskType.IMAGE2IMAGE, fields), image)
    return await sender.make(draft, fields, "image_edit", (image,))


def _one_picture(files: Files) -> bytes:
    images = files.get("image", [])
    if len(images) != 1:
        raise invalid("image", f"must be one picture: the models here take no more; {len(images)} were sent")
    return images[0]


@models_router.get("/models")
async def list_cards(models: Models, who: Who) -> ModelCards:
    """The models that the caller may use, and the aliases of these models."""
    catalog = models.catalog
    names = {name: name for name in catalog.models} | dict(catalog.aliases)
    usable = {name: root for name, root in names.items() if name != ANY_NAME and root in (who.models or catalog.models)}
    return ModelCards(data=[ModelCard(id=name, root=root) for name, root in usable.items()])


@models_router.get("/models/{model}")
async def show_card(model: str, models: Models) -> ModelCard:
    """A model, by its id or an alias."""
    return ModelCard(id=model, root=models.catalog.id_of(model))
