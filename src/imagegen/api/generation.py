"""POST /text2image and /image2image accept a task; POST /plan tells what would happen to such a request."""

from typing import Any

from fastapi import APIRouter, Response

from imagegen.api.bounded import BoundedRoute
from imagegen.api.dependencies import EffectiveSettings, Service, Webhooks, Who
from imagegen.api.idempotency import REPLAYED_HEADER, Submitter
from imagegen.api.problems import describe
from imagegen.api.schemas import (
    GenerationBody,
    Image2ImageBody,
    PlanBody,
    PlanView,
    TaskAccepted,
    TaskView,
    Text2ImageBody,
)
from imagegen.api.uploads import decode_image
from imagegen.api.views import plan_view
from imagegen.api.waiting import Caller
from imagegen.core.task import InputPictures, Output, TaskType
from imagegen.core.webhooks import ENDS
from imagegen.tasks.admission import TaskDraft
from imagegen.webhooks.sender import WebhookSender

router = APIRouter(tags=["tasks"], route_class=BoundedRoute)
#: Routes whose bodies contain pictures; app.py gives this router a larger limit of the body.
upload_router = APIRouter(tags=["tasks"], route_class=BoundedRoute)

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
    "body_too_large",
    "model_quarantined",
    "queue_full",
    "draining",
    "storage_failed",
    "storage_full",
)

#: Those of them that `POST /plan` never answers with, because it accepts no task.
_ONLY_ACCEPTING = ("queue_full", "draining", "storage_failed", "storage_full")


#: 200 is for callers that wait for the end of the task.
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": TaskView, "description": "With `Prefer: wait=N`, if the task has ended within N seconds."},
    202: {"headers": {"Idempotency-Replayed": REPLAYED_HEADER}},
}


@router.post(
    "/text2image",
    operation_id="text2image",
    status_code=202,
    response_model=TaskAccepted,
    summary="Make pictures from a prompt",
    responses={**_ANSWERS, **describe(*ACCEPTING, "idempotency_key_reused")},
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
    responses={**_ANSWERS, **describe(*ACCEPTING, "idempotency_key_reused", "invalid_image", "image_too_large")},
)
async def image2image(
    body: Image2ImageBody, caller: Caller, submitter: Submitter, settings: EffectiveSettings, webhooks: Webhooks
) -> Response:
    """Like text2image, but starts from an input picture, which is scaled and cropped to the size around its centre.

    With `mask`, only its white part is repainted. Models that edit (Kontext) ignore `strength`.
    """
    image = await decode_image(body.image, settings.max_input_pixels)
    mask = await decode_image(body.mask, settings.max_input_pixels) if body.mask else None
    pictures = InputPictures(init_image=image, mask_image=mask)
    draft = _draft(TaskType.IMAGE2IMAGE, body, webhooks).evolve(strength=body.strength, pictures=pictures)
    once = await submitter.submit(draft, body)
    return await caller.answer(once, cancel=body.cancel_on_disconnect)


@router.post(
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
