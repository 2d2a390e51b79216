"""Makes response bodies of the values of core. Pure."""

import json
from datetime import datetime, timedelta
from typing import Any

from fastapi import Response

from imagegen.api.schemas import (
    DeliveryDetails,
    DeliveryView,
    ImageView,
    LoadProgressView,
    LoraView,
    ModelDetails,
    ModelView,
    PlanView,
    PullView,
    ReplayView,
    ResidentModel,
    TaskLinks,
    TaskView,
    Unloaded,
    WebhookView,
)
from imagegen.catalog.catalog import ModelSpec
from imagegen.core.events import Event, TaskCompleted, TaskSaved
from imagegen.core.provenance import differences
from imagegen.core.receipt import Receipt
from imagegen.core.task import GenerationTask, StoredImage, TaskStatus
from imagegen.core.webhooks import Delivery, Webhook, WebhookEvent
from imagegen.hub.puller import Pull
from imagegen.models.manager import UnloadReport
from imagegen.models.residency import Resident
from imagegen.models.status import ModelStatus
from imagegen.tasks.outlooks import Outlook, Plan

GIB = 1024**3


def gib(size: int) -> float:
    """Bytes as GiB, rounded to a thousandth."""
    return round(size / GIB, 3)


def tag(response: Response, etag: str | None) -> None:
    """Set the `ETag` of an answer about the configuration."""
    if etag is not None:
        response.headers["ETag"] = f'"{etag}"'


def task_links(task_id: str) -> TaskLinks:
    here = f"/task/{task_id}"
    return TaskLinks(self=here, **{name: f"{here}/{name}" for name in ("events", "cancel", "replay", "bundle")})


def image_view(image: StoredImage) -> ImageView:
    return ImageView(url=f"/images/{image.path}", **image.model_dump(include=set(ImageView.model_fields)))


def replay_view(task: GenerationTask) -> ReplayView | None:
    replay, made_by = task.replay, task.provenance
    if replay is None:
        return None
    if made_by is None or task.status is not TaskStatus.COMPLETED:
        return ReplayView(of=replay.of)
    identical = tuple(image.pixels_sha256 for image in task.images) == replay.pixels_sha256
    return ReplayView(of=replay.of, identical=identical, differences=differences(replay.provenance, made_by))


def pull_view(pull: Pull) -> PullView:
    return PullView(
        error_code=pull.failure.code if pull.failure else None,
        error_message=pull.failure.message if pull.failure else None,
        **pull.model_dump(exclude={"model", "failure"}),
    )


def task_view(
    task: GenerationTask,
    outlook: Outlook | None,
    download: Pull | None = None,
    retention_days: float = 0,
    receipt: Receipt | None = None,
) -> TaskView:
    keeps = timedelta(days=retention_days)
    return TaskView(
        task_id=task.id,
        task_type=task.type,
        result_files=[image.path for image in task.images] or None,
        images=[image_view(image) for image in task.images],
        error_code=task.failure.code if task.failure else None,
        error_message=task.failure.message if task.failure else None,
        position=outlook.position if outlook else None,
        estimated_start_at=outlook.start_at if outlook else None,
        estimated_finish_at=outlook.finish_at if outlook else None,
        expires_at=task.completed_at + keeps if task.completed_at and keeps else None,
        webhook=webhook_view(task.webhook) if task.webhook else None,
        download=pull_view(download) if download else None,
        links=task_links(task.id),
        format=task.output.format,
        receipt=receipt,
        warnings=list(task.warnings) or None,
        replay=replay_view(task),
        **task.model_dump(include=_TASK_FIELDS),
        **task.request.model_dump(exclude={"loras"}),
        loras=[LoraView(**lora.model_dump()) for lora in task.request.loras] or None,
    )


_TASK_FIELDS = {"status", "model", "priority", "deadline_s", "attempt", "created_at", "started_at", "completed_at"}


def webhook_view(webhook: Webhook) -> WebhookView:
    return WebhookView(host=webhook.host, events=list(webhook.events))


def webhook_payload(event: WebhookEvent, at: datetime, task: TaskView) -> str:
    """The body of a webhook, in the form of Standard Webhooks."""
    data = task.model_dump(mode="json")
    return json.dumps({"type": f"task.{event}", "timestamp": at.isoformat(), "data": data}, ensure_ascii=False)


def delivery_view(delivery: Delivery, next_attempt_at: datetime | None) -> DeliveryView:
    return DeliveryView(**_delivery_fields(delivery), next_attempt_at=next_attempt_at)


def delivery_details(delivery: Delivery, next_attempt_at: datetime | None) -> DeliveryDetails:
    payload = json.loads(delivery.payload)
    return DeliveryDetails(**_delivery_fields(delivery), next_attempt_at=next_attempt_at, payload=payload)


def _delivery_fields(delivery: Delivery) -> dict[str, Any]:
    return {"host": delivery.host, **delivery.model_dump(exclude={"sequence", "url", "payload"})}


def plan_view(plan: Plan) -> PlanView:
    return PlanView(
        model=plan.model,
        **plan.request.model_dump(include={"width", "height", "steps", "batch_size"}),
        evicts=plan.evicts,
        load_seconds=plan.load_s,
        position=plan.outlook.position or 0,
        estimated_start_at=plan.outlook.start_at,
        estimated_finish_at=plan.outlook.finish_at,
    )


def event_view(event: Event) -> dict[str, Any]:
    """The data of an event. Pictures have the same form as in the task."""
    data = event.model_dump(mode="json")
    if isinstance(event, TaskCompleted | TaskSaved):
        data["result_files"] = [image.path for image in event.images]
        data["images"] = [image_view(image).model_dump() for image in event.images]
    return data


def model_view(model_id: str, spec: ModelSpec, status: ModelStatus) -> ModelView:
    return ModelView(**_model_fields(model_id, spec, status))


def unloaded(report: UnloadReport) -> Unloaded:
    names = ", ".join(f"'{model}'" for model in report.models)
    message = f"{names} {'was' if len(report.models) == 1 else 'were'} unloaded." if names else "No model was loaded."
    return Unloaded(message=message, freed_bytes=report.freed, left_bytes=report.left)


def resident_view(resident: Resident, spec: ModelSpec, status: ModelStatus) -> ResidentModel:
    return ResidentModel(
        model=resident.model,
        name=spec.name,
        device_bytes=resident.device_bytes,
        last_used=resident.last_used_at,
        unloads_at=status.unloads_at,
    )


def model_details(
    model_id: str, spec: ModelSpec, status: ModelStatus, pull: Pull | None, *, weights_here: bool
) -> ModelDetails:
    progress = status.load_progress
    return ModelDetails(
        **_model_fields(model_id, spec, status),
        weights_here=weights_here,
        load_progress=LoadProgressView(**progress._asdict()) if progress else None,
        pull=pull_view(pull) if pull else None,
        config=spec.model_dump(mode="json"),
    )


def _model_fields(model_id: str, spec: ModelSpec, status: ModelStatus) -> dict[str, Any]:
    resident, error = status.resident, status.error
    return {
        "id": model_id,
        "is_loaded": resident is not None,
        "last_used": status.last_used,
        "state": status.state,
        "error_code": error.code if error else None,
        "error_message": error.message if error else None,
        "unloads_at": status.unloads_at,
        "load_seconds": status.load_seconds,
        "warm_load_seconds": status.warm_seconds,
        "host_bytes": status.host_bytes,
        "device_bytes": resident.device_bytes if resident else None,
        **spec.model_dump(include=_MODEL_FIELDS),
    }


_MODEL_FIELDS = {
    "name",
    "type",
    "pipeline_class",
    "memory_usage",
    "supports_text2img",
    "supports_img2img",
    "supports_inpaint",
    "description",
}
