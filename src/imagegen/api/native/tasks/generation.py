"""POST /text2image and /image2image accept a task; POST /plan tells what would happen to such a request."""

import re
from datetime import datetime
from typing import Annotated, Literal, Self
from unicodedata import category

from fastapi import APIRouter, Response
from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from imagegen.api.bounded import BoundedRoute
from imagegen.api.dependencies import Checks, EffectiveSettings, Service, Webhooks, Who
from imagegen.api.document import DocumentedAs
from imagegen.api.native.images.uploads import decode_image
from imagegen.api.native.shared import RequestBody
from imagegen.api.native.tasks.idempotency import Submitter
from imagegen.api.native.tasks.waiting import ANSWERS, Caller, TaskAccepted
from imagegen.api.problems import describe
from imagegen.api.security import MAKE
from imagegen.catalog.catalog import ModelId
from imagegen.catalog.fields import HubSource, SafetensorsFile
from imagegen.core.sizes import AspectRatio, Shape
from imagegen.core.task import MAX_SEED, MAX_STEPS, ImageFormat, InputPictures, Lora, Output, TaskType
from imagegen.core.webhooks import ENDS, WebhookEvent
from imagegen.tasks.admission import TaskDraft
from imagegen.tasks.outlooks import Plan
from imagegen.webhooks.sender import WebhookSender

router = APIRouter(tags=["tasks"], route_class=BoundedRoute, dependencies=[MAKE])

#: Routes whose bodies contain pictures; their limit is IMAGEGEN_MAX_UPLOAD_BYTES.
upload_router = APIRouter(tags=["tasks"], route_class=BoundedRoute, dependencies=[MAKE])

#: In the reference, the plan follows both.
plan_router = APIRouter(tags=["tasks"], route_class=BoundedRoute, dependencies=[MAKE])

#: The codes with which a route may refuse a task.
ACCEPTING = (
    "malformed_body",
    "invalid_request",
    "model_not_found",
    "unsupported_capability",
    "lora_not_found",
    "size_too_large",
    "webhooks_off",
    "url_not_allowed",
    "does_not_fit",
    "task_too_long",
    "body_too_large",
    "model_quarantined",
    "queue_full",
    "draining",
    "storage_failed",
    "journal_lost",
    "storage_full",
)

#: Those of them that `POST /plan` never answers with, because it accepts no task.
_ONLY_ACCEPTING = ("queue_full", "draining", "storage_failed", "journal_lost", "storage_full")


def plain_text(text: str) -> str:
    """The same text, if it has no control characters but tabs and line ends. Raises ValueError."""
    if any(category(c) == "Cc" and c not in "\n\t\r" for c in text):
        raise ValueError("control characters are not allowed")
    return text


Prompt = Annotated[str, Field(max_length=8192), AfterValidator(plain_text)]
Side = Annotated[int, Field(strict=True, ge=16, le=8192)]


def _number(seed: object) -> object:
    if isinstance(seed, str):
        if re.fullmatch("-1|[0-9]{1,20}", seed) is None:
            raise ValueError(f"must be a whole number from 0 to {MAX_SEED}, or -1 for a random one")
        seed = int(seed)
    return None if seed == -1 and type(seed) is int else seed


_SeedNumber = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]

#: None, after validation: random.
Seed = Annotated[
    _SeedNumber | None,
    BeforeValidator(
        _number,
        json_schema_input_type=Annotated[int, Field(ge=-1, le=MAX_SEED)]  # pyright: ignore[reportOperatorIssue]
        | Annotated[str, Field(pattern="^(-1|[0-9]{1,20})$")]
        | None,
    ),
]


class LoraBody(RequestBody):
    """A LoRA for this request only. A task shows its LoRAs in the same form."""

    #: `weight_name` is the name that it had beside `repo`.
    path: SafetensorsFile = Field(validation_alias=AliasChoices("path", "weight_name"))
    repo: HubSource | None = None
    scale: float = Field(1.0, strict=True, ge=-4, le=4, allow_inf_nan=False)

    def lora(self) -> Lora:
        """The LoRA as a value of core."""
        return Lora(path=self.path, repo=self.repo, scale=self.scale)


class GenerationBody(RequestBody):
    """The fields that text2image and image2image have in common."""

    prompt: Prompt = Field(min_length=1, description="What the picture shows.")
    negative_prompt: Prompt | None = Field(
        None, description="What the picture must not show. Only for models that take a negative prompt."
    )
    model: ModelId | None = Field(
        None,
        validation_alias=AliasChoices("model", "model_name"),
        description="The id of a model; default: `default_model`. Also read as `model_name`.",
    )
    batch_size: int = Field(
        1,
        strict=True,
        ge=1,
        le=64,
        validation_alias=AliasChoices("batch_size", "batchSize"),
        description="Number of pictures. Their seeds are seed, seed + 1, ... Also read as `batchSize`.",
    )
    aspect_ratio: Shape | None = Field(
        None,
        validation_alias=AliasChoices("aspect_ratio", "aspectRatio"),
        description="Shape of the picture. The model's `base_size` decides its pixels. `input`: the shape of the input "
        "picture, which is the default of image2image; a plan, which has no picture, counts with a square. Also read "
        "as `aspectRatio`.",
    )
    width: Side | None = Field(None, description="Pixels. Replaces `aspect_ratio`, together with `height`.")
    height: Side | None = Field(None, description="Pixels. Replaces `aspect_ratio`, together with `width`.")
    steps: int | None = Field(
        None, strict=True, ge=1, le=MAX_STEPS, description="Denoising steps; default: the model's."
    )
    guidance_scale: float | None = Field(
        None,
        strict=True,
        ge=0,
        le=50,
        allow_inf_nan=False,
        description="How closely to follow the prompt; default: the model's.",
    )
    seed: Seed = Field(
        None,
        description="The same seed gives the same pixels; default, and -1: random. Also read as text: JavaScript "
        "rounds numbers above 2^53.",
    )
    priority: int = Field(
        0,
        strict=True,
        ge=-1000,
        le=1000,
        description="Lower numbers run first. Each `ageing_minutes` of waiting counts as one step lower.",
    )
    deadline_s: float | None = Field(
        None,
        strict=True,
        gt=0,
        le=2_592_000,
        allow_inf_nan=False,
        description="Seconds within which the task must begin to run. Otherwise it fails with `deadline_exceeded`.",
    )
    previews: int = Field(
        0,
        strict=True,
        ge=0,
        le=8,
        description="Number of previews of each picture in the task's event stream.",
    )
    webhook_url: str | None = Field(
        None, min_length=1, max_length=2000, description="Receives the events below. Answers show only its host."
    )
    webhook_events: list[WebhookEvent] | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="The events to send to `webhook_url`; default: `completed`, `failed` and `cancelled`.",
    )
    cancel_on_disconnect: bool = Field(
        False,
        strict=True,
        description="Whether the task is cancelled if a caller that waits for it (`Prefer: wait=N`) disconnects.",
    )
    format: ImageFormat = Field(ImageFormat.PNG, description="Format of the files. JPEG has no transparency.")
    quality: int | None = Field(
        None, strict=True, ge=1, le=100, description="Quality of jpeg, webp and avif; default: 90, 90 and 75."
    )
    metadata: bool = Field(True, strict=True, description="Whether each file contains its receipt.")
    lora_weights_path: SafetensorsFile | None = Field(
        None, description="A .safetensors file below the service's LoRA directory."
    )
    lora_scale: float = Field(0.7, strict=True, ge=-4, le=4, allow_inf_nan=False, description="Strength of that LoRA.")
    loras: list[Annotated[LoraBody, DocumentedAs(Lora)]] = Field(
        [], max_length=8, description="More LoRAs, in addition to `lora_weights_path`."
    )

    def all_loras(self) -> tuple[Lora, ...]:
        """All LoRAs of the request. `lora_weights_path`, the field of the original API, is the first."""
        path = self.lora_weights_path
        own = (Lora(path=path, scale=self.lora_scale),) if path else ()
        return own + tuple(body.lora() for body in self.loras)

    @model_validator(mode="after")
    def _quality_of_lossy_formats(self) -> Self:
        if self.quality is not None and self.format is ImageFormat.PNG:
            raise ValueError("png is lossless and has no quality; leave quality out, or choose another format")
        return self

    @model_validator(mode="after")
    def _width_with_height(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("give width and height together")
        return self

    @model_validator(mode="after")
    def _events_with_url(self) -> Self:
        if self.webhook_events is not None and self.webhook_url is None:
            raise ValueError("webhook_events needs webhook_url")
        return self


class Text2ImageBody(GenerationBody):
    """The body of text2image."""

    aspect_ratio: AspectRatio = Field(
        "1:1",
        validation_alias=AliasChoices("aspect_ratio", "aspectRatio"),
        description="Shape of the picture. The model's `base_size` decides its pixels. Also read as `aspectRatio`.",
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a red circle on a blue background", "model": "tiny", "aspect_ratio": "1:1", "seed": 7}
            ]
        }
    )


#: A 2x2 PNG, so that the documentation's example works.
EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQV"
    "R4XmO8o6HBwMDAqBt1nYGBAQAVEwKNPKhyxwAAAABJRU5ErkJggg=="
)


class Image2ImageBody(GenerationBody):
    """The body of image2image."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "a yellow star on a blue background", "image": EXAMPLE_IMAGE, "strength": 0.8}]
        }
    )

    image: str = Field(
        min_length=1,
        validation_alias=AliasChoices("image", "base64_image"),
        description="The input picture: PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF in base64, with or without a `data:` "
        "prefix. Its transparent part counts as white. Also read as `base64_image`.",
    )
    strength: float = Field(
        0.8,
        strict=True,
        ge=0.01,
        le=1,
        allow_inf_nan=False,
        description="How much of the input picture is replaced: near 0 keeps it, 1 keeps nothing.",
    )
    mask: str | None = Field(
        None,
        min_length=1,
        validation_alias=AliasChoices("mask", "mask_image"),
        description="Only for models that can inpaint: a picture in base64. Its white part is repainted; where it is "
        "transparent, it counts as black. If all of it has one brightness, its transparent part is repainted. "
        "Also read as `mask_image`.",
    )


class PlanBody(GenerationBody):
    """The body of text2image, or of image2image without its pictures."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "a red circle", "model": "tiny"}]})

    task_type: TaskType = Field(TaskType.TEXT2IMAGE, description="The route of the request.")
    strength: float | None = Field(
        None, strict=True, ge=0.01, le=1, allow_inf_nan=False, description="Only for image2image."
    )


class PlanView(BaseModel):
    """What would happen to a request if it were made now."""

    fits: Literal[True] = Field(True, description="A request that is known not to fit is refused with the reason.")
    model: str = Field(examples=["tiny"])
    width: int = Field(examples=[128])
    height: int = Field(examples=[128])
    steps: int = Field(examples=[4])
    batch_size: int = Field(examples=[1])
    evicts: list[str] = Field(description="The models that would be evicted.")
    load_seconds: float | None = Field(
        description="Seconds to load its model; 0 if the model is resident; null until a load was measured."
    )
    position: int = Field(description="The number of tasks that would run before it.")
    estimated_start_at: datetime | None = Field(description="Null until the times that this depends on were measured.")
    estimated_finish_at: datetime | None
    warnings: list[str] = Field(
        description="Parts of the request that the pictures would ignore, as far as this is known without a load: the "
        "end of a prompt that is too long for the model."
    )


def plan_view(plan: Plan) -> PlanView:
    return PlanView(
        model=plan.model,
        **plan.request.model_dump(include={"width", "height", "steps", "batch_size"}),
        evicts=plan.evicts,
        load_seconds=plan.load_s,
        position=plan.outlook.position or 0,
        estimated_start_at=plan.outlook.start_at,
        estimated_finish_at=plan.outlook.finish_at,
        warnings=list(plan.warnings),
    )


@router.post(
    "/text2image",
    operation_id="text2image",
    status_code=202,
    response_model=TaskAccepted,
    summary="Make pictures from a prompt",
    responses={**ANSWERS, **describe(*ACCEPTING, "idempotency_key_reused")},
)
async def text2image(body: Text2ImageBody, caller: Caller, submitter: Submitter, webhooks: Webhooks) -> Response:
    """Accepts a task and answers once it is on disk. Follow it at `links.events`, or poll `links.self`.

    With the header `Prefer: wait=N`, the answer is 200 with the ended task if it ends within N seconds, else 202.
    """
    once = await submitter.submit(_draft(TaskType.TEXT2IMAGE, body, webhooks), body)
    return await caller.answer(once, cancel=body.cancel_on_disconnect)


@upload_router.post(
    "/image2image",
    operation_id="image2image",
    status_code=202,
    response_model=TaskAccepted,
    summary="Make pictures from a prompt and a picture",
    responses={
        **ANSWERS,
        **describe(*ACCEPTING, "idempotency_key_reused", "invalid_image", "image_too_large", "too_many_uploads"),
    },
)
async def image2image(
    body: Image2ImageBody,
    caller: Caller,
    submitter: Submitter,
    settings: EffectiveSettings,
    webhooks: Webhooks,
    checks: Checks,
) -> Response:
    """Like text2image, but starts from an input picture, which is scaled and cropped to the size around its centre.

    With `mask`, only its white part is repainted. Models that edit (Kontext) ignore `strength`.
    """
    image, size = await decode_image(body.image, settings.max_input_pixels, checks)
    mask = None
    if body.mask:
        mask, _ = await decode_image(body.mask, settings.max_input_pixels, checks, mask=True)
    pictures = InputPictures(init_image=image, mask_image=mask)
    draft = _draft(TaskType.IMAGE2IMAGE, body, webhooks).evolve(
        strength=body.strength, pictures=pictures, input_size=size
    )
    once = await submitter.submit(draft, body)
    return await caller.answer(once, cancel=body.cancel_on_disconnect)


@plan_router.post(
    "/plan",
    operation_id="plan",
    summary="Plan a request without making it",
    responses=describe(*(code for code in ACCEPTING if code not in _ONLY_ACCEPTING)),
)
async def plan(body: PlanBody, service: Service, who: Who, webhooks: Webhooks) -> PlanView:
    """Takes the body of text2image or image2image, without pictures, and accepts no task.

    The answer has the models that would be evicted, the position in the queue, and the expected start and end. A
    request that can never run is refused with the same code as by those routes.
    """
    draft = _draft(body.task_type, body, webhooks).evolve(strength=body.strength)
    return plan_view(await service.plan(who, draft))


def _draft(kind: TaskType, body: GenerationBody, webhooks: WebhookSender) -> TaskDraft:
    return TaskDraft(
        type=kind,
        loras=body.all_loras(),
        output=Output(format=body.format, quality=body.quality, metadata=body.metadata),
        webhook=webhooks.accept(body.webhook_url, body.webhook_events or ENDS) if body.webhook_url else None,
        **body.model_dump(include=_DRAFT_FIELDS),
    )


#: The fields that bodies and drafts share, except `loras`, whose types differ.
_DRAFT_FIELDS = set(GenerationBody.model_fields) & set(TaskDraft.model_fields) - {"loras"}
