"""Admission: checks a draft against the catalog and the limits, and fills in the model's defaults."""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256

import structlog

from imagegen.catalog.catalog import Catalog, ModelSpec
from imagegen.core.errors import (
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    NoInputs,
    NoReceipt,
    SizeTooLarge,
    TaskTooLong,
    UnsupportedCapability,
)
from imagegen.core.keys import KeyLimits
from imagegen.core.limits import MAX_PIXEL_STEPS
from imagegen.core.sizes import MAX_SIDE, Shape, Size, render_size, size_like, size_of
from imagegen.core.task import (
    GenerationRequest,
    GenerationTask,
    InputPictures,
    Lora,
    Output,
    Replay,
    TaskStatus,
    TaskType,
)
from imagegen.core.value import Value
from imagegen.core.webhooks import Webhook
from imagegen.core.wording import nearest
from imagegen.tasks.tickets import Work

#: The most models that a refusal names.
MOST_NAMED = 20


class Limits(Value):
    """The limits of one request, and of the queue."""

    max_queue: int
    max_batch_size: int
    max_pixels: int
    max_pixel_steps: int = MAX_PIXEL_STEPS


class TaskDraft(Value):
    """A request before admission. None: the model's default."""

    type: TaskType
    #: The owner of the task.
    owner: str = ""
    #: The models that its owner may use; empty: all.
    models: tuple[str, ...] = ()
    #: The limits of its owner's key.
    budget: KeyLimits = KeyLimits()
    model: str | None = None
    prompt: str
    negative_prompt: str | None = None
    #: None: `input` if the draft has an input picture, else `1:1`.
    aspect_ratio: Shape | None = None
    #: Pixels. Both are given, or neither; they replace the aspect ratio.
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    batch_size: int = 1
    strength: float | None = None
    loras: tuple[Lora, ...] = ()
    priority: int = 0
    deadline_s: float | None = None
    previews: int = 0
    output: Output = Output()
    #: The size of the upright input picture, if it is already known.
    input_size: Size | None = None
    #: Whoever makes the draft has checked the URL of the webhook, and the pictures.
    webhook: Webhook | None = None
    pictures: InputPictures = InputPictures()
    #: The task whose pictures this one makes again.
    replay: Replay | None = None
    #: As in GenerationTask.
    traceparent: str = ""


def admit(
    draft: TaskDraft,
    catalog: Catalog,
    limits: Limits,
    new_seed: Callable[[], int],
    *,
    longest_side: int = 0,
    input_size: Size | None = None,
) -> tuple[str, GenerationRequest]:
    """The model's id and the complete request. Raises ImagegenError if the request is refused.

    `new_seed` is called if the draft has no seed. `longest_side`: the longest side that the model can make, in pixels;
    0: any. `input_size`: the size of the upright input picture, if `needs_input_size(draft)`.
    """
    model = draft.model or catalog.default_model
    if draft.models and model not in draft.models:
        raise Forbidden(f"The API key may not use this model; it may use: {', '.join(draft.models)}.")
    spec = _spec(model, catalog)
    _check_capabilities(model, spec, draft, catalog)
    if draft.batch_size > limits.max_batch_size:
        raise InvalidRequest(f"batch_size: at most {limits.max_batch_size} pictures in one task.")
    size = _size(draft, spec, limits, longest_side, input_size)
    if size.pixels > limits.max_pixels:
        raise SizeTooLarge(f"{size.width}x{size.height} is more than {limits.max_pixels} pixels.")
    if 0 < longest_side < max(render_size(size, spec.side_multiple)):
        raise SizeTooLarge(
            f"'{model}' makes pictures of at most {longest_side} pixels a side; {size.width}x{size.height} is larger."
        )
    return model, GenerationRequest(
        prompt=draft.prompt,
        negative_prompt=draft.negative_prompt,
        width=size.width,
        height=size.height,
        steps=draft.steps or spec.steps,
        guidance_scale=spec.guidance_scale if draft.guidance_scale is None else draft.guidance_scale,
        seed=new_seed() if draft.seed is None else draft.seed,
        batch_size=draft.batch_size,
        strength=draft.strength,
        loras=draft.loras,
    )


def check_time(model: str, request: GenerationRequest, catalog: Catalog, limits: Limits, least_s: float | None) -> None:
    """Raises TaskTooLong. `least_s`: seconds that the request takes at the model's best pace; None: not measured.

    A picture of the model's own size and steps always passes: a limit below that would turn the model off.
    """
    spec, work, most_s = catalog.model(model), Work.of(request), catalog.task_seconds(model)
    usual = size_of("1:1", spec.base_size, spec.sizing, spec.side_multiple)
    if work.pixel_steps <= usual.pixels * spec.steps:
        return
    asked = f"{request.batch_size} x {request.width}x{request.height} pixels x {request.steps} steps"
    if least_s is None and work.pixel_steps > limits.max_pixel_steps:
        raise TaskTooLong(
            f"{asked} are {work.pixel_steps:,.0f} pixel steps; at most {limits.max_pixel_steps:,} are accepted until "
            f"it is measured how long '{model}' takes."
        )
    if least_s is not None and 0 < most_s < least_s:
        raise TaskTooLong(
            f"'{model}' takes at least {least_s:,.0f} s for {asked}, by its measured times; at most {most_s:,.0f} s "
            "are accepted (max_task_seconds)."
        )


def _spec(model: str, catalog: Catalog) -> ModelSpec:
    try:
        return catalog.model(model)
    except ModelNotFound:
        known = ", ".join(catalog.models)
        raise ModelNotFound(f"There is no such model{nearest(model, catalog.models)}; known: {known}.") from None


def _size(draft: TaskDraft, spec: ModelSpec, limits: Limits, longest_side: int, input_size: Size | None) -> Size:
    if (draft.width is None) != (draft.height is None):
        raise InvalidRequest("Give width and height together.")
    if draft.width is not None and draft.height is not None:
        return Size(draft.width, draft.height)
    image2image = draft.type is TaskType.IMAGE2IMAGE
    shape = draft.aspect_ratio or ("input" if image2image else "1:1")
    if shape != "input":
        return size_of(shape, spec.base_size, spec.sizing, spec.side_multiple)
    if not image2image:
        raise InvalidRequest("aspect_ratio: 'input' is the shape of an input picture, and text2image has none.")
    # A plan has no picture. The shape hardly changes the number of pixels, so a square is good enough.
    like = input_size or Size(1, 1)
    longest = longest_side or MAX_SIDE
    return size_like(like, spec.base_size, spec.side_multiple, most_pixels=limits.max_pixels, most_side=longest)


def needs_input_size(draft: TaskDraft) -> bool:
    """Whether `admit` needs the size of the input picture."""
    shaped = draft.aspect_ratio in (None, "input") and draft.width is None
    return shaped and draft.pictures.init_image is not None


def _check_capabilities(model: str, spec: ModelSpec, draft: TaskDraft, catalog: Catalog) -> None:
    needs = [*_needed_capabilities(draft)]
    missing = next((says for says, can in needs if not can(spec)), None)
    if missing is None:
        return
    allowed = [name for name in catalog.models if not draft.models or name in draft.models]
    able = [name for name in allowed if all(can(catalog.models[name]) for _, can in needs)]
    named = ", ".join(able[:MOST_NAMED]) or "none"
    more = f" and {len(able) - MOST_NAMED} more" if len(able) > MOST_NAMED else ""
    raise UnsupportedCapability(f"'{model}' {missing}; these can: {named}{more}.")


def _needed_capabilities(draft: TaskDraft) -> Iterator[tuple[str, Callable[[ModelSpec], bool]]]:
    """What the draft needs of its model: the words of a refusal, and whether an entry can do it."""
    if draft.pictures.mask_image is not None:
        yield "cannot do inpainting", lambda spec: spec.supports_inpaint
    elif draft.type is TaskType.IMAGE2IMAGE:
        yield "cannot do image2image", lambda spec: spec.supports_img2img
    else:
        yield "cannot do text2image", lambda spec: spec.supports_text2img
    if draft.loras:
        yield "takes no LoRA", lambda spec: spec.supports_lora
    if draft.negative_prompt:
        yield "takes no negative_prompt", lambda spec: spec.supports_negative_prompt


def new_task(draft: TaskDraft, model: str, request: GenerationRequest) -> GenerationTask:
    """The record of an admitted draft: `pending`, with a new id. `request_id` comes from the context of the log."""
    image, mask = draft.pictures.init_image, draft.pictures.mask_image
    return GenerationTask(
        id=str(uuid.uuid4()),
        type=draft.type,
        model=model,
        request=request,
        owner=draft.owner,
        request_id=structlog.contextvars.get_contextvars().get("request_id", ""),
        traceparent=draft.traceparent,
        priority=draft.priority,
        deadline_s=draft.deadline_s,
        previews=draft.previews,
        webhook=draft.webhook,
        output=draft.output,
        created_at=datetime.now(UTC),
        input_bytes=len(image or b"") + len(mask or b""),
        init_image_sha256=None if image is None else sha256(image).hexdigest(),
        mask_image_sha256=None if mask is None else sha256(mask).hexdigest(),
        replay=draft.replay,
    )


def draft_of(task: GenerationTask, pictures: InputPictures) -> TaskDraft:
    """A draft that asks for the pictures of a task again.

    Raises NoReceipt if the task is not completed, NoInputs if its input pictures were deleted.
    """
    if task.status is not TaskStatus.COMPLETED or task.provenance is None:
        raise NoReceipt
    if task.init_image_sha256 is not None and pictures.init_image is None:
        raise NoInputs
    hashes = tuple(image.pixels_sha256 for image in task.images)
    return TaskDraft(
        type=task.type,
        owner=task.owner,
        model=task.model,
        **dict(task.request),
        priority=task.priority,
        output=task.output,
        pictures=pictures,
        replay=Replay(of=task.id, pixels_sha256=hashes, provenance=task.provenance),
    )
