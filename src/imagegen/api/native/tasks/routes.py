"""Tasks: get, list, follow, cancel, replay and delete them, and clear the queue."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AfterValidator, BaseModel, Field

from imagegen.api.dependencies import EffectiveSettings, Service, Tasks, Who
from imagegen.api.headers import headers
from imagegen.api.native.events import TaskStreamEvent, framed_below
from imagegen.api.native.shared import Time
from imagegen.api.native.tasks.generation import ACCEPTING, plain_text
from imagegen.api.native.tasks.view import TaskView, task_view
from imagegen.api.native.tasks.waiting import ANSWERS, Caller, TaskAccepted
from imagegen.api.problems import describe
from imagegen.api.security import MAKE, MANAGE, SEE, KeyedRoute
from imagegen.api.sse import KEEP_ALIVE_S, EventStream, frames
from imagegen.catalog.catalog import ModelId
from imagegen.core.receipt import Receipt, receipt_of
from imagegen.core.task import GenerationTask, TaskStatus
from imagegen.settings import Settings
from imagegen.storage.journal import TaskFilter
from imagegen.tasks.manager import TaskManager

router = APIRouter(tags=["tasks"], route_class=KeyedRoute, dependencies=[SEE])


class TaskPage(BaseModel):
    """A page of tasks, newest first."""

    tasks: list[TaskView]
    total: int = Field(description="Tasks in the history, ended or not.")
    filtered: int = Field(
        description="Those of them that match the filter, also on other pages; with a filter, counted up to 10,000."
    )


class QueueCleared(BaseModel):
    """The result of clearing the queue."""

    message: str = Field(examples=["3 waiting tasks were cancelled."])
    cancelled: int
    remaining_tasks: int = Field(description="Tasks that still wait.")


def _searched(text: str | None) -> str | None:
    return None if text is None else plain_text(text)


@router.get("/task/{task_id}", operation_id="get_task", summary="One task", responses=describe("task_not_found"))
async def get_task(
    task_id: str, request: Request, service: Service, who: Who, tasks: Tasks, settings: EffectiveSettings
) -> TaskView:
    """A completed task has `result_files` and `images`; a failed task has `error_code` and `error_message`.

    A waiting task has its `position`, and its expected start and end once the times that they depend on were measured.
    """
    task = await service.task(who, task_id)
    return _view(task, tasks, settings, request, receipt_of(task))


@router.delete(
    "/task/{task_id}",
    operation_id="delete_task",
    dependencies=[MAKE],
    status_code=204,
    summary="Delete a task",
    responses=describe("task_not_found", "task_not_finished", "storage_failed", "storage_full", "store_unreachable"),
)
async def delete_task(task_id: str, service: Service, who: Who) -> None:
    """Deletes the record and the pictures of an ended task. Cancel a task that has not ended first."""
    await service.delete(who, task_id)


@router.get(
    "/tasks",
    operation_id="list_tasks",
    summary="The newest tasks",
    responses={200: {"headers": headers("Link")}, **describe("invalid_request")},
)
async def list_tasks(
    request: Request,
    service: Service,
    who: Who,
    tasks: Tasks,
    settings: EffectiveSettings,
    response: Response,
    status: Annotated[TaskStatus | None, Query(description="Only tasks with this status.")] = None,
    model: Annotated[ModelId | None, Query(description="Only tasks of this model.")] = None,
    q: Annotated[
        str | None,
        Query(min_length=1, max_length=200, description="Only tasks whose prompt contains this text."),
        AfterValidator(_searched),
    ] = None,
    since: Annotated[Time | None, Query(description="Only tasks accepted at that time or later.")] = None,
    until: Annotated[Time | None, Query(description="Only tasks accepted before that time.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Tasks in a page.")] = 50,
    cursor: Annotated[
        int | None, Query(ge=0, le=2**63 - 1, description="Start of the page, from `Link` of the page before it.")
    ] = None,
) -> TaskPage:
    """Newest first. If there are older tasks, the header `Link` has the URL of the next page (rel="next")."""
    page = await service.tasks(who, TaskFilter(status, model, q, since, until), limit, cursor)
    if page.more:
        times = {name: time.isoformat() if time else None for name, time in (("since", since), ("until", until))}
        cursor = page.tasks[-1].sequence
        asked = {"status": status, "model": model, "q": q, **times, "limit": limit, "cursor": cursor}
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        response.headers["Link"] = f'<{request.scope["root_path"]}/tasks?{query}>; rel="next"'
    views = [_view(task, tasks, settings, request) for task in page.tasks]
    return TaskPage(tasks=views, total=page.total, filtered=page.filtered)


@router.post(
    "/task/{task_id}/cancel",
    operation_id="cancel_task",
    dependencies=[MAKE],
    summary="Cancel a task",
    responses=describe("task_not_found", "task_finished"),
)
async def cancel_task(
    task_id: str, request: Request, service: Service, who: Who, tasks: Tasks, settings: EffectiveSettings
) -> TaskView:
    """A task that waits, or whose model is being loaded, ends at once.

    A task whose pictures are being made ends after the current denoising step. The answer still has `processing`.
    """
    return _view(await service.cancel(who, task_id), tasks, settings, request)


@router.post(
    "/task/{task_id}/replay",
    operation_id="replay_task",
    dependencies=[MAKE],
    status_code=202,
    response_model=TaskAccepted,
    summary="Replay a task",
    responses={**ANSWERS, **describe("task_not_found", "no_receipt", "no_inputs", *ACCEPTING)},
)
async def replay_task(task_id: str, caller: Caller, service: Service, who: Who) -> Response:
    """Accepts a new task that makes the pictures of a completed task again, from the same request and input pictures.

    Once it is completed, its `replay` tells whether every pixel is the same, and what has changed: the weights, the
    version of a library, the device.
    """
    return await caller.answer(await service.replay(who, task_id))


@router.post("/queue/clear", operation_id="clear_queue", dependencies=[MANAGE], summary="Cancel all waiting tasks")
async def clear_queue(tasks: Tasks) -> QueueCleared:
    """Cancels the tasks that wait. The running task goes on."""
    cancelled = await tasks.clear()
    message = f"{cancelled} waiting task{'s were' if cancelled != 1 else ' was'} cancelled."
    return QueueCleared(message=message, cancelled=cancelled, remaining_tasks=tasks.queue_size)


@router.get(
    "/task/{task_id}/events",
    operation_id="follow_task",
    summary="Follow a task (server-sent events)",
    response_class=EventStream,
    responses={
        200: {"model": TaskStreamEvent, "description": "The `data` of each event is of this form."},
        **describe("task_not_found", "too_many_streams"),
    },
)
async def follow_task(
    task_id: str,
    request: Request,
    service: Service,
    who: Who,
    last_event_id: Annotated[int, Header(ge=0, description="Only events with a higher id.")] = 0,
) -> EventStream:
    """`queued`, `started`, `loading`, `loaded`, `step` (k of n), `saved`. The last event is `completed`, `failed` or
    `cancelled`.

    While the task waits, `position` is sent when its position changes. While the weights of its model are pulled,
    `downloading` has the bytes. While its model is loaded, `loading` is repeated at each percent. A task with
    `previews` has `preview`. The stream begins with the past events or, after a restart of the service, with the event
    of the present state. Of a long task, the latest 256 steps are kept beside its states; if events after
    `Last-Event-ID` may be missing, the first event is `gap`. A stream that ends before its task has the last event
    `closed` with a `reason`: `too_slow` (256 events behind), `stopping`, `key_revoked`, `key_expired`, or
    `key_required` (the first key was made meanwhile). After 15 seconds without an event a comment is sent.
    """
    await service.task(who, task_id)  # raises here, because a stream that has begun cannot answer with a 404
    framed = framed_below(request.scope["root_path"])
    return EventStream(frames(service.events(who, task_id, last_event_id, KEEP_ALIVE_S), framed))


def _view(
    task: GenerationTask, tasks: TaskManager, settings: Settings, request: Request, receipt: Receipt | None = None
) -> TaskView:
    outlook, pull, prefix = tasks.outlook(task), tasks.pull_of(task.id), request.scope["root_path"]
    view = task_view(task, outlook, pull, settings.retention_days, receipt, prefix=prefix)
    view.storing = tasks.waits_for_store(task.id) or None
    return view
