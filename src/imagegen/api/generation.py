"""POST /text2image and /image2image: from a body to an accepted task."""

from fastapi import APIRouter, Response

from imagegen.api.bounded import BoundedRoute
from imagegen.api.dependencies import Config, Tasks
from imagegen.api.problems import describe
from imagegen.api.schemas import GenerationBody, Image2ImageBody, TaskAccepted, Text2ImageBody
from imagegen.api.uploads import decode_image
from imagegen.api.views import task_links
from imagegen.core.task import GenerationTask, InputPictures, TaskType
from imagegen.tasks.admission import TaskDraft

router = APIRouter(tags=["generation"], route_class=BoundedRoute)
#: Bodies with a picture in them; the composition root gives this one the larger limit.
upload_router = APIRouter(tags=["generation"], route_class=BoundedRoute)

_PROBLEMS = (
    "malformed_body",
    "invalid_request",
    "model_not_found",
    "unsupported_capability",
    "lora_not_found",
    "size_too_large",
    "does_not_fit",
    "body_too_large",
    "queue_full",
    "draining",
    "storage_failed",
    "storage_full",
)

#: Seconds after which a first look at a new task makes sense.
FIRST_LOOK_S = 1


@router.post(
    "/text2image",
    operation_id="text2image",
    status_code=202,
    summary="Make pictures from words",
    responses=describe(*_PROBLEMS),
)
async def text2image(body: Text2ImageBody, response: Response, tasks: Tasks) -> TaskAccepted:
    """Accepts a task and answers at once; the task is on disk by then. Follow `links.events`, or poll `links.self`."""
    task = await tasks.submit(_draft(TaskType.TEXT2IMAGE, body))
    return _accepted(task, response)


@upload_router.post(
    "/image2image",
    operation_id="image2image",
    status_code=202,
    summary="Make pictures from words and a picture",
    responses=describe(*_PROBLEMS, "invalid_image", "image_too_large"),
)
async def image2image(body: Image2ImageBody, response: Response, tasks: Tasks, settings: Config) -> TaskAccepted:
    """As text2image, starting from an input picture: it is filled to the asked size, its centre kept.

    With `mask`, only the white part of that is drawn anew. Models that edit (Kontext) do without `strength`.
    """
    image = await decode_image(body.image, settings.max_input_pixels)
    mask = await decode_image(body.mask, settings.max_input_pixels) if body.mask else None
    pictures = InputPictures(init_image=image, mask_image=mask)
    draft = _draft(TaskType.IMAGE2IMAGE, body).evolve(strength=body.strength, pictures=pictures)
    task = await tasks.submit(draft)
    return _accepted(task, response)


def _draft(kind: TaskType, body: GenerationBody) -> TaskDraft:
    return TaskDraft(type=kind, loras=body.all_loras(), **body.model_dump(include=_DRAFT_FIELDS))


#: What a body says in the draft's own words.
_DRAFT_FIELDS = set(GenerationBody.model_fields) & set(TaskDraft.model_fields) - {"loras"}


def _accepted(task: GenerationTask, response: Response) -> TaskAccepted:
    links = task_links(task.id)
    response.headers["Location"] = links.self
    response.headers["Retry-After"] = str(FIRST_LOOK_S)
    return TaskAccepted(task_id=task.id, status=task.status, message="The task is queued.", links=links)
