"""The API of Replicate: predictions, which are tasks, and what its clients ask about a model. docs/clients.md."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from imagegen.api.bounded import BoundedRoute, FormRoute
from imagegen.api.dependencies import Models, Service, Who, services_of
from imagegen.api.input_pictures import input_picture
from imagegen.api.native.shared import RequestBody
from imagegen.api.native.tasks.generation import LoraBody, Prompt, Seed, Side
from imagegen.api.native.tasks.waiting import MAX_WAIT_S, preferred_wait
from imagegen.api.security import MAKE, SEE, SEE_SIGNED, KeyedRoute
from imagegen.api.sse import KEEP_ALIVE, KEEP_ALIVE_S, EventStream
from imagegen.api.urls import base_url, open_url
from imagegen.catalog.catalog import Catalog
from imagegen.core.errors import TaskFinished
from imagegen.core.events import EventBus, TaskCancelled, TaskCompleted, TaskFailed, TaskStep
from imagegen.core.owner import Owner
from imagegen.core.sizes import Size, size_like
from imagegen.core.task import MAX_STEPS, GenerationTask, ImageFormat, InputPictures, Output, TaskStatus, TaskType
from imagegen.core.webhooks import ENDS, Webhook, WebhookEvent
from imagegen.storage.journal import TaskFilter
from imagegen.tasks.admission import TaskDraft
from imagegen.webhooks.sender import WebhookSender

#: Errors of these paths are problem details, which the clients read.
PREFIXES = ("/v1/predictions", "/v1/files", "/v1/models/{owner}/{name}")

router = APIRouter(prefix="/v1", route_class=KeyedRoute, dependencies=[SEE], include_in_schema=False)

#: Routes whose bodies contain pictures; their limit is IMAGEGEN_MAX_UPLOAD_BYTES.
upload_router = APIRouter(prefix="/v1", route_class=BoundedRoute, dependencies=[MAKE], include_in_schema=False)

#: Uploads in a form, with the same limit.
form_router = APIRouter(prefix="/v1", route_class=FormRoute, dependencies=[MAKE], include_in_schema=False)

#: The stream of a prediction, which the JavaScript client reads without its key: `urls.stream` has a token.
stream_router = APIRouter(prefix="/v1", route_class=KeyedRoute, dependencies=[SEE_SIGNED], include_in_schema=False)

STATUS: Mapping[TaskStatus, str] = MappingProxyType(
    {
        TaskStatus.PENDING: "starting",
        TaskStatus.PROCESSING: "processing",
        TaskStatus.COMPLETED: "succeeded",
        TaskStatus.FAILED: "failed",
        TaskStatus.CANCELLED: "canceled",
    }
)

#: Seconds that `Prefer: wait` waits.
WAIT_S = 60

#: Predictions in a page of the list.
PAGE = 100

#: The formats by the names of Replicate's models.
FORMATS: Mapping[str, ImageFormat] = MappingProxyType({"jpg": ImageFormat.JPEG} | {word: word for word in ImageFormat})

#: The events of a task for each word of `webhook_events_filter`. The output comes with the end; there are no logs.
EVENTS: Mapping[str, tuple[WebhookEvent, ...]] = MappingProxyType(
    {"start": (WebhookEvent.STARTED,), "output": (WebhookEvent.COMPLETED,), "logs": (), "completed": ENDS}
)

_RATIO = re.compile(r"([1-9]\d?):([1-9]\d?)")


class Input(BaseModel):
    """The input of a prediction, by the names that Replicate's picture models use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Prompt = ""
    negative_prompt: Prompt | None = None
    #: `16:9`; `match_input_image`; `custom`: width and height count.
    aspect_ratio: str | None = Field(None, max_length=20)
    width: Side | None = None
    height: Side | None = None
    num_outputs: int = Field(1, strict=True, ge=1, le=64)
    num_inference_steps: int | None = Field(None, strict=True, ge=1, le=MAX_STEPS)
    guidance: float | None = Field(None, strict=True, ge=0, le=50, allow_inf_nan=False)
    guidance_scale: float | None = Field(None, strict=True, ge=0, le=50, allow_inf_nan=False)
    seed: Seed = None
    #: A data URL, base64, or the URL of a picture of this service; `input_image` is another name of it.
    image: str | None = Field(None, min_length=1)
    input_image: str | None = Field(None, min_length=1)
    mask: str | None = Field(None, min_length=1)
    prompt_strength: float | None = Field(None, strict=True, ge=0.01, le=1, allow_inf_nan=False)
    strength: float | None = Field(None, strict=True, ge=0.01, le=1, allow_inf_nan=False)
    output_format: Literal["png", "jpg", "jpeg", "webp", "avif"] = "png"
    #: Without effect for png.
    output_quality: int | None = Field(None, strict=True, ge=0, le=100)
    #: An addition of this service.
    loras: list[LoraBody] = Field([], max_length=8)
    #: What examples of Replicate send: it asks for nothing that this service does not do by itself.
    go_fast: bool = False
    disable_safety_checker: Literal[True] = True
    megapixels: Literal["1"] = "1"

    @field_validator("aspect_ratio")
    @classmethod
    def _known_ratio(cls, ratio: str | None) -> str | None:
        if ratio not in (None, "custom", "match_input_image") and not _RATIO.fullmatch(ratio):
            raise ValueError("must be as 16:9, `custom` or `match_input_image`")
        return ratio

    @model_validator(mode="after")
    def _once(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("give width and height together")
        if self.image and self.input_image:
            raise ValueError("give either image or input_image")
        if self.guidance is not None and self.guidance_scale is not None:
            raise ValueError("give either guidance or guidance_scale")
        if self.mask and not self.picture:
            raise ValueError("mask needs image")
        return self

    @property
    def picture(self) -> str | None:
        """The input picture; None: text-to-image."""
        return self.image or self.input_image


class ModelPredictionBody(RequestBody):
    """The body of a prediction of the model in the path."""

    input: Input
    webhook: str | None = Field(None, min_length=1, max_length=2000)
    webhook_completed: str | None = Field(None, min_length=1, max_length=2000)
    webhook_events_filter: list[Literal["start", "output", "logs", "completed"]] | None = Field(None, max_length=4)
    #: Every prediction has `urls.stream`.
    stream: bool | None = None

    @model_validator(mode="after")
    def _one_receiver(self) -> Self:
        if self.webhook and self.webhook_completed:
            raise ValueError("give either webhook or webhook_completed")
        return self


class PredictionBody(ModelPredictionBody):
    """The body of a prediction: `version` is the name of a model, or `owner/name:version`."""

    version: str = Field(min_length=1, max_length=300)


# -- predictions -------------------------------------------------------------------------------------------------------


@upload_router.post("/predictions", status_code=201)
async def create_prediction(
    body: PredictionBody, request: Request, who: Who, prefer: Annotated[str | None, Header(max_length=1000)] = None
) -> Response:
    """Accept a task. With `Prefer: wait=N`, answer when it has ended, at the latest after N seconds (60)."""
    catalog = services_of(request).models.catalog
    return await _create(body, _versioned(body.version, catalog), request, who, prefer)


@upload_router.post("/models/{owner}/{name}/predictions", status_code=201)
async def create_model_prediction(
    owner: str,
    name: str,
    body: ModelPredictionBody,
    request: Request,
    who: Who,
    prefer: Annotated[str | None, Header(max_length=1000)] = None,
) -> Response:
    """The same, of the model in the path."""
    model = services_of(request).models.catalog.id_of(f"{owner}/{name}")
    return await _create(body, model, request, who, prefer)


def _versioned(version: str, catalog: Catalog) -> str:
    """The model of a `version`: the part after the colon or, if it names no model, the part before it.

    Raises ModelNotFound.
    """
    name, _, of_it = version.partition(":")
    return catalog.named(of_it) or catalog.id_of(name)


async def _create(body: ModelPredictionBody, model: str, request: Request, who: Owner, prefer: str | None) -> Response:
    services = services_of(request)
    draft = await _draft(body.input, model, request, who)
    draft = draft.evolve(webhook=_webhook(body, request, services.webhooks))
    task = (await services.service.submit(who, draft)).task
    if wait_s := _wait_s(prefer):
        task = await services.service.wait(who, task.id, wait_s)
    return JSONResponse(await _view(task, request, who), 201)


def _wait_s(prefer: str | None) -> int:
    words = [word.strip().lower() for word in (prefer or "").replace(";", ",").split(",")]
    return min(preferred_wait(prefer) or (WAIT_S if "wait" in words else 0), MAX_WAIT_S)


def _webhook(body: ModelPredictionBody, request: Request, webhooks: WebhookSender) -> Webhook | None:
    """The receiver of the prediction's webhooks. Raises WebhooksOff, UrlNotAllowed."""
    url = body.webhook or body.webhook_completed
    if url is None:
        return None
    words: Sequence[str] = ["completed"] if body.webhook_completed else body.webhook_events_filter or [*EVENTS]
    events = [event for word in words for event in EVENTS[word]]
    return webhooks.accept(url, events).evolve(api="replicate", base_url=base_url(request))


async def _draft(asked: Input, model: str, request: Request, who: Owner) -> TaskDraft:
    services = services_of(request)
    size = _size(asked, model, services.models.catalog)
    quality = None if asked.output_quality is None else max(1, asked.output_quality)
    form = FORMATS[asked.output_format]
    draft = TaskDraft(
        type=TaskType.TEXT2IMAGE,
        model=model,
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        width=size.width if size else None,
        height=size.height if size else None,
        aspect_ratio="input" if asked.aspect_ratio == "match_input_image" else None,
        steps=asked.num_inference_steps,
        guidance_scale=asked.guidance if asked.guidance_scale is None else asked.guidance_scale,
        seed=asked.seed,
        batch_size=asked.num_outputs,
        loras=tuple(lora.lora() for lora in asked.loras),
        output=Output(format=form, quality=None if form is ImageFormat.PNG else quality),
    )
    if asked.picture is None:
        return draft
    image, input_size = await input_picture(asked.picture, services, who, request)
    mask = (await input_picture(asked.mask, services, who, request, mask=True))[0] if asked.mask else None
    strength = asked.prompt_strength if asked.strength is None else asked.strength
    return draft.evolve(
        type=TaskType.IMAGE2IMAGE,
        strength=0.8 if strength is None else strength,
        pictures=InputPictures(init_image=image, mask_image=mask),
        input_size=input_size,
    )


def _size(asked: Input, model: str, catalog: Catalog) -> Size | None:
    """The size that is asked for; None: the model's own, or that of the input picture."""
    found = _RATIO.fullmatch(asked.aspect_ratio or "")
    if found is None:
        width, height = asked.width, asked.height
        return None if width is None or height is None else Size(width, height)
    spec = catalog.models[model]
    return size_like(Size(int(found[1]), int(found[2])), spec.base_size, spec.side_multiple)


@router.get("/predictions")
async def list_predictions(
    request: Request, service: Service, who: Who, cursor: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None
) -> dict[str, Any]:
    """The newest predictions, which are all tasks that the caller may see."""
    page = await service.tasks(who, TaskFilter(None, None, None, None, None), PAGE, cursor)
    more = urlencode({"cursor": page.tasks[-1].sequence}) if page.more else None
    return {
        "previous": None,
        "next": f"{base_url(request)}/v1/predictions?{more}" if more else None,
        "results": [await _view(task, request, who) for task in page.tasks],
    }


@router.get("/predictions/{task_id}")
async def get_prediction(task_id: str, request: Request, service: Service, who: Who) -> dict[str, Any]:
    """A prediction as it is now."""
    return await _view(await service.task(who, task_id), request, who)


@router.post("/predictions/{task_id}/cancel", dependencies=[MAKE])
async def cancel_prediction(task_id: str, request: Request, service: Service, who: Who) -> dict[str, Any]:
    """Cancel a prediction. One that has ended stays as it is."""
    with suppress(TaskFinished):
        await service.cancel(who, task_id)
    return await _view(await service.task(who, task_id), request, who)


@stream_router.get("/predictions/{task_id}/stream", response_class=EventStream)
async def stream_prediction(task_id: str, request: Request, service: Service, who: Who) -> EventStream:
    """The events of a prediction: `logs` for each step, `output` with the URL of each picture, `error`, `done`."""
    await service.task(who, task_id)  # raises here, because a stream that has begun cannot answer with a 404
    return EventStream(_events(task_id, request, who))


async def _events(task_id: str, request: Request, who: Owner) -> AsyncIterator[bytes]:
    async for published in services_of(request).service.events(who, task_id, silence_s=KEEP_ALIVE_S):
        if published is None:
            yield KEEP_ALIVE
            continue
        match published.event:
            case TaskStep(step=step, total=total):
                yield _frame("logs", published.id, progress_line(step, total))
            case TaskCompleted(images=images):
                for image in images:
                    yield _frame("output", published.id, await open_url(f"/images/{image.path}", request))
                yield _frame("done", published.id, "{}")
            case TaskFailed(failure=failure):
                yield _frame("error", published.id, json.dumps({"detail": failure.message}))
                yield _frame("done", published.id, '{"reason": "error"}')
            case TaskCancelled():
                yield _frame("done", published.id, '{"reason": "canceled"}')
            case _:
                pass


def _frame(name: str, event_id: int, data: str) -> bytes:
    return f"event: {name}\nid: {event_id}\ndata: {data}\n\n".encode()


def progress_line(step: int, total: int) -> str:
    """The progress in the form that the clients look for in logs."""
    percent = 100 * step // total
    return f"{percent:3d}%|{'█' * (percent // 10):<10}| {step}/{total}"


async def _view(task: GenerationTask, request: Request, who: Owner) -> dict[str, Any]:
    paths = [f"/images/{image.path}" for image in task.images] if task.status is TaskStatus.COMPLETED else []
    output = [await open_url(path, request) for path in paths]
    stream = await open_url(f"/v1/predictions/{task.id}/stream", request)
    return prediction(task, base_url(request), output, stream, _logs(task, services_of(request).bus))


def _logs(task: GenerationTask, bus: EventBus) -> str:
    """The latest step, as far as it is remembered, and what the pictures ignore of the request."""
    steps = [it.event for it in bus.history(task.id) if isinstance(it.event, TaskStep)]
    lines = [progress_line(it.step, it.total) for it in steps[-1:]]
    return "".join(f"{line}\n" for line in [*lines, *task.warnings])


def prediction(task: GenerationTask, base: str, output: Sequence[str], stream: str, logs: str) -> dict[str, Any]:
    """A task as a prediction. `input` is the request as it was understood."""
    here = f"{base}/v1/predictions/{task.id}"
    return {
        "id": task.id,
        "model": f"imagegen/{task.model}",
        "version": task.model,
        "status": STATUS[task.status],
        "input": _input(task),
        "output": list(output) or None,
        "logs": logs,
        "error": task.failure.message if task.failure else None,
        "metrics": {"predict_time": task.device_s} if task.device_s is not None else {},
        "source": "api",
        "data_removed": False,
        "created_at": _time(task.created_at),
        "started_at": _time(task.started_at),
        "completed_at": _time(task.completed_at),
        "urls": {
            "get": here,
            "cancel": f"{here}/cancel",
            "stream": stream,
            "web": f"{base}/task/{task.id}",
        },
    }


def _input(task: GenerationTask) -> dict[str, Any]:
    request = task.request
    given = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": request.width,
        "height": request.height,
        "num_outputs": request.batch_size,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "seed": request.seed,
        "prompt_strength": request.strength,
        "output_format": task.output.format,
        "output_quality": task.output.quality,
    }
    return {name: value for name, value in given.items() if value is not None}


def _time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat().replace("+00:00", "Z")


def webhook_body(task: GenerationTask, event: WebhookEvent, at: datetime) -> str:
    """The body of a webhook: the prediction. Its URLs need a key if the service has any."""
    assert task.webhook is not None
    base = task.webhook.base_url
    output = [f"{base}/images/{image.path}" for image in task.images]
    stream, logs = f"{base}/v1/predictions/{task.id}/stream", "".join(f"{line}\n" for line in task.warnings)
    return json.dumps(prediction(task, base, output, stream, logs), ensure_ascii=False)


# -- files and models --------------------------------------------------------------------------------------------------


@form_router.post("/files", status_code=201)
async def create_file(content: UploadFile, request: Request) -> dict[str, Any]:
    """Answer with the file itself as a data URL, which the clients then send as an input. Nothing is stored."""
    data = await content.read()
    media = (content.content_type or "application/octet-stream").partition(";")[0]
    text = await asyncio.to_thread(lambda: base64.b64encode(data).decode())
    return {
        "id": "inline",
        "name": content.filename or "",
        "content_type": media,
        "size": len(data),
        "etag": "",
        "checksums": {},
        "metadata": {},
        "created_at": _time(datetime.now().astimezone()),
        "expires_at": None,
        "urls": {"get": f"data:{media};base64,{text}"},
    }


@router.get("/models/{owner}/{name}")
async def get_model(owner: str, name: str, models: Models, request: Request) -> dict[str, Any]:
    """A model."""
    model = models.catalog.id_of(f"{owner}/{name}")
    spec = models.catalog.models[model]
    return {
        "url": f"{base_url(request)}/models/{model}",
        "owner": owner,
        "name": name,
        "description": spec.description,
        "visibility": "private",
        **dict.fromkeys(("github_url", "paper_url", "license_url", "cover_image_url", "default_example")),
        "run_count": 0,
        "latest_version": _version(model),
    }


@router.get("/models/{owner}/{name}/versions")
async def list_versions(owner: str, name: str, models: Models) -> dict[str, Any]:
    """The one version of a model, which has the id of the model."""
    model = models.catalog.id_of(f"{owner}/{name}")
    return {"previous": None, "next": None, "results": [_version(model)]}


@router.get("/models/{owner}/{name}/versions/{version}")
async def get_version(owner: str, name: str, version: str, models: Models) -> dict[str, Any]:
    """A version of a model."""
    return _version(_versioned(f"{owner}/{name}:{version}", models.catalog))


def _version(model: str) -> dict[str, Any]:
    output = {"type": "array", "items": {"type": "string", "format": "uri"}}
    return {
        "id": model,
        "created_at": "2026-01-01T00:00:00Z",
        "cog_version": "0.16.0",
        "openapi_schema": {"components": {"schemas": {"Input": Input.model_json_schema(), "Output": output}}},
    }
