"""Pure: how values of the core look on the wire."""

from typing import Any

from imagegen.api.schemas import ImageView, LoraView, ModelDetails, ModelView, PullView, TaskLinks, TaskView
from imagegen.catalog.catalog import ModelSpec
from imagegen.core.events import TaskCompleted, TaskEvent
from imagegen.core.task import GenerationTask, StoredImage
from imagegen.hub.puller import Pull
from imagegen.models.manager import DynamicModelManager

GIB = 1024**3


def gib(size: int) -> float:
    """Bytes as GiB, to the MiB."""
    return round(size / GIB, 3)


def task_links(task_id: str) -> TaskLinks:
    here = f"/task/{task_id}"
    return TaskLinks(self=here, events=f"{here}/events", cancel=f"{here}/cancel")


def image_view(image: StoredImage) -> ImageView:
    return ImageView(url=f"/images/{image.path}", width=image.width, height=image.height, seed=image.seed)


def pull_view(pull: Pull) -> PullView:
    return PullView(
        error_code=pull.failure.code if pull.failure else None,
        error_message=pull.failure.message if pull.failure else None,
        **pull.model_dump(exclude={"model", "failure"}),
    )


def task_view(task: GenerationTask, position: int | None, download: Pull | None = None) -> TaskView:
    return TaskView(
        task_id=task.id,
        task_type=task.type,
        result_files=[image.path for image in task.images] or None,
        images=[image_view(image) for image in task.images],
        error_code=task.failure.code if task.failure else None,
        error_message=task.failure.message if task.failure else None,
        position=position,
        download=pull_view(download) if download else None,
        links=task_links(task.id),
        **task.model_dump(include=_TASK_FIELDS),
        **task.request.model_dump(exclude={"loras"}),
        loras=[LoraView(**lora.model_dump()) for lora in task.request.loras] or None,
    )


_TASK_FIELDS = {"status", "model", "priority", "attempt", "created_at", "started_at", "completed_at"}


def event_view(event: TaskEvent) -> dict[str, Any]:
    """The data of an event; a completed task's pictures look as they do in the task."""
    data = event.model_dump(mode="json")
    if isinstance(event, TaskCompleted):
        data["result_files"] = [image.path for image in event.images]
        data["images"] = [image_view(image).model_dump() for image in event.images]
    return data


def model_view(model_id: str, spec: ModelSpec, models: DynamicModelManager) -> ModelView:
    return ModelView(**_model_fields(model_id, spec, models))


def model_details(
    model_id: str, spec: ModelSpec, models: DynamicModelManager, pull: Pull | None, *, weights_here: bool
) -> ModelDetails:
    return ModelDetails(
        **_model_fields(model_id, spec, models),
        weights_here=weights_here,
        pull=pull_view(pull) if pull else None,
        config=spec.model_dump(mode="json"),
    )


def _model_fields(model_id: str, spec: ModelSpec, models: DynamicModelManager) -> dict[str, Any]:
    current = models.current
    return {
        "id": model_id,
        "is_loaded": current is not None and current.model == model_id,
        "last_used": models.last_used(model_id),
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
