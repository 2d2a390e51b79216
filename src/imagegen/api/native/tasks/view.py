"""The body of a task, as routes, webhooks and bundles show it."""

from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from imagegen.api.native.images.routes import ImageView, image_view
from imagegen.api.native.models.pulls import PullView, pull_view
from imagegen.api.problems import page
from imagegen.core.errors import FailureCode
from imagegen.core.provenance import differences
from imagegen.core.receipt import Receipt
from imagegen.core.task import GenerationTask, ImageFormat, Lora, TaskStatus, TaskType, TokensRead
from imagegen.core.webhooks import WebhookEvent
from imagegen.hub.puller import Pull
from imagegen.tasks.outlooks import Outlook


class TaskLinks(BaseModel):
    """The URLs of a task."""

    self: str = Field(examples=["/task/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11"])
    events: str = Field(examples=["/task/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11/events"])
    cancel: str = Field(examples=["/task/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11/cancel"])
    replay: str = Field(examples=["/task/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11/replay"])
    bundle: str = Field(examples=["/task/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11/bundle"])


class ReplayView(BaseModel):
    """A replay, compared with the original task."""

    of: str = Field(description="The original task.", examples=["0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11"])
    identical: bool | None = Field(default=None, description="Once completed: whether every pixel is the same.")
    differences: list[str] | None = Field(
        default=None,
        description="Once completed: what has changed since the original task. Empty: the pixels must be the same.",
        examples=[["versions.torch: 2.13.0, was 2.12.1"]],
    )


class WebhookView(BaseModel):
    """The receiver of a task's webhooks. The URL may contain a secret, so only its host is shown."""

    host: str = Field(examples=["example.com"])
    events: list[WebhookEvent]


class TaskView(BaseModel):
    """A task."""

    task_id: str = Field(examples=["0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11"])
    status: TaskStatus
    task_type: TaskType
    model: str = Field(examples=["tiny"])
    prompt: str
    negative_prompt: str | None = None
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    batch_size: int
    format: ImageFormat
    strength: float | None = None
    loras: list[Lora] | None = Field(None, description="The LoRAs of the request, if there are any.")
    priority: int
    attempt: int = Field(
        description="Attempts so far. A second one follows if the worker or the service died during the first one."
    )
    position: int | None = Field(None, description="While pending: the number of tasks that run before it.")
    estimated_start_at: datetime | None = Field(
        None,
        description="While pending: when it is expected to begin if no other task arrives. Null until the times that "
        "this depends on were measured.",
    )
    estimated_finish_at: datetime | None = Field(None, description="Until it has ended: when it is expected to end.")
    deadline_s: float | None = Field(None, description="Seconds within which it must begin to run.")
    expires_at: datetime | None = Field(
        None,
        description="Once ended: the earliest time at which it is deleted because of its age. The time while "
        "the service is stopped does not count.",
    )
    webhook: WebhookView | None = Field(None, description="The receiver of its webhooks, if there is one.")
    download: PullView | None = Field(None, description="While pending: the pull that it waits for.")
    storing: bool | None = Field(
        None, description="While processing: true if its pictures wait for the bucket, which cannot be reached."
    )
    request_id: str | None = Field(
        None, description="`X-Request-ID` of the request that submitted it, as the log has it."
    )
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    result_files: list[str] | None = Field(None, description="Once completed: `folder/file` of each picture.")
    images: list[ImageView]
    receipt: Receipt | None = Field(
        None, description="Once its pictures are made: everything that their pixels depend on. Absent in lists."
    )
    warnings: list[str] | None = Field(
        None, description="Sentences about parts of the request that its pictures ignore, such as layers of a LoRA."
    )
    tokens: list[TokensRead] | None = Field(
        None, description="Once its pictures are made: the tokens of the prompt that each text encoder read, if known."
    )
    replay: ReplayView | None = Field(None, description="If it is a replay: the comparison with the original task.")
    error_code: FailureCode | None = Field(None, description="If it failed: a stable code.")
    error_message: str | None = Field(None, description="If it failed: the reason.")
    error_type: str | None = Field(
        None, description="If it failed: the path of a page about the code.", examples=["/docs/errors/out_of_memory"]
    )
    links: TaskLinks

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys without a value, as clients of the original API expect. The times are always present."""
        always = ["started_at", "completed_at"]
        if self.status is TaskStatus.PENDING:
            always += ["estimated_start_at", "estimated_finish_at"]
        return {key: value for key, value in handler(self).items() if value is not None or key in always}


def task_links(task_id: str, prefix: str) -> TaskLinks:
    """The URLs of a task. `prefix`: of the paths of this service, as `/imagegen`."""
    here = f"{prefix}/task/{task_id}"
    return TaskLinks(self=here, **{name: f"{here}/{name}" for name in ("events", "cancel", "replay", "bundle")})


def replay_view(task: GenerationTask) -> ReplayView | None:
    replay, made_by = task.replay, task.provenance
    if replay is None:
        return None
    if made_by is None or task.status is not TaskStatus.COMPLETED:
        return ReplayView(of=replay.of)
    identical = tuple(image.pixels_sha256 for image in task.images) == replay.pixels_sha256
    return ReplayView(of=replay.of, identical=identical, differences=differences(replay.provenance, made_by))


def task_view(
    task: GenerationTask,
    outlook: Outlook | None,
    download: Pull | None = None,
    retention_days: float = 0,
    receipt: Receipt | None = None,
    *,
    prefix: str,
) -> TaskView:
    """The body of a task. `outlook`, `download`: of a task that has not ended. `retention_days`: 0 keeps for ever.

    `prefix`: of the paths of this service, as `/imagegen`.
    """
    keeps, webhook = timedelta(days=retention_days), task.webhook
    return TaskView(
        task_id=task.id,
        task_type=task.type,
        request_id=task.request_id or None,
        result_files=[image.path for image in task.images] or None,
        images=[image_view(image, prefix) for image in task.images],
        error_code=task.failure.code if task.failure else None,
        error_message=task.failure.message if task.failure else None,
        error_type=f"{prefix}{page(task.failure.code)}" if task.failure else None,
        position=outlook.position if outlook else None,
        estimated_start_at=outlook.start_at if outlook else None,
        estimated_finish_at=outlook.finish_at if outlook else None,
        expires_at=task.completed_at + keeps if task.completed_at and keeps else None,
        webhook=WebhookView(host=webhook.host, events=list(webhook.events)) if webhook else None,
        download=pull_view(download) if download else None,
        links=task_links(task.id, prefix),
        format=task.output.format,
        receipt=receipt,
        warnings=list(task.warnings) or None,
        tokens=list(task.tokens) or None,
        replay=replay_view(task),
        **task.model_dump(include=_TASK_FIELDS),
        **task.request.model_dump(exclude={"loras"}),
        loras=list(task.request.loras) or None,
    )


_TASK_FIELDS = {"status", "model", "priority", "deadline_s", "attempt", "created_at", "started_at", "completed_at"}
