"""Tasks: look, list, follow, cancel; the queue: clear."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from imagegen.api.dependencies import Bus, Tasks
from imagegen.api.problems import describe
from imagegen.api.schemas import QueueCleared, TaskPage, TaskView
from imagegen.api.views import event_view, task_view
from imagegen.core.events import (
    Event,
    Published,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskFailed,
    TaskQueued,
    TaskStarted,
)
from imagegen.core.task import GenerationTask, TaskStatus
from imagegen.tasks.manager import TaskManager

router = APIRouter(tags=["tasks"])


@router.get("/task/{task_id}", operation_id="get_task", summary="One task", responses=describe("task_not_found"))
async def get_task(task_id: str, tasks: Tasks) -> TaskView:
    """The task as it stands: `result_files` and `images` once it is completed, `error_message` once it has failed."""
    return _view(await tasks.get(task_id), tasks)


@router.get("/tasks", operation_id="list_tasks", summary="The newest tasks", responses=describe("invalid_request"))
async def list_tasks(
    tasks: Tasks,
    status: Annotated[TaskStatus | None, Query(description="Only tasks of this status.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 50,
) -> TaskPage:
    """Newest first."""
    page = await tasks.page(status, limit)
    positions = tasks.positions()
    views = [task_view(task, positions.get(task.id), tasks.download(task.id)) for task in page.tasks]
    return TaskPage(tasks=views, total=page.total, filtered=page.filtered)


@router.post(
    "/task/{task_id}/cancel",
    operation_id="cancel_task",
    summary="Cancel a task",
    responses=describe("task_not_found", "task_finished"),
)
async def cancel_task(task_id: str, tasks: Tasks) -> TaskView:
    """A waiting task ends at once; a running one after its current denoising step: it then still reads `processing`."""
    return _view(await tasks.cancel(task_id), tasks)


@router.post("/queue/clear", operation_id="clear_queue", summary="Cancel all waiting tasks")
async def clear_queue(tasks: Tasks) -> QueueCleared:
    """The running task goes on."""
    cancelled = await tasks.clear()
    message = f"{cancelled} waiting task{'s were' if cancelled != 1 else ' was'} cancelled."
    return QueueCleared(message=message, cancelled=cancelled, remaining_tasks=tasks.queue_size)


async def _known(task_id: str, tasks: Tasks) -> GenerationTask:
    # As a dependency: once the stream has begun, there is no status code left to say 404 with.
    return await tasks.get(task_id)


@router.get(
    "/task/{task_id}/events",
    operation_id="follow_task",
    summary="Follow a task (server-sent events)",
    response_class=EventSourceResponse,
    responses=describe("task_not_found"),
)
async def follow_task(
    known: Annotated[GenerationTask, Depends(_known)],
    tasks: Tasks,
    bus: Bus,
    last_event_id: Annotated[int, Header(ge=0, description="Only what came after this id.")] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """`queued`, `started`, `loading`, `step` (k of n), then `completed`, `failed` or `cancelled`, and the stream ends.

    A task whose model's weights are being fetched gets `downloading`, with bytes, after `queued`.
    Every state is sent once, past ones first; after a restart of the service the stream begins with the current one.
    """
    # Subscribe first, then read the record: nothing falls between.
    with bus.subscribe(known.id, after=last_event_id) as events:
        past = bus.history(known.id)
        if not past:
            published = Published(bus.last_id, current_event(await tasks.get(known.id), tasks))
            yield _sse(published)
            if published.event.final:
                return
        elif past[-1].event.final and past[-1].id <= last_event_id:
            return  # the listener has heard it all
        async for published in events:
            yield _sse(published)
            if published.event.final:
                return


def _view(task: GenerationTask, tasks: TaskManager) -> TaskView:
    return task_view(task, tasks.position(task), tasks.download(task.id))


def _sse(published: Published) -> ServerSentEvent:
    assert isinstance(published.event, TaskEvent)
    return ServerSentEvent(event=published.event.name, id=str(published.id), data=event_view(published.event))


def current_event(task: GenerationTask, tasks: TaskManager) -> Event:
    """The event that brought the task where it is, for listeners whose past this process does not remember."""
    match task.status:
        case TaskStatus.PENDING:
            return TaskQueued(task_id=task.id, position=tasks.position(task) or 0)
        case TaskStatus.PROCESSING:
            return TaskStarted(task_id=task.id, attempt=task.attempt)
        case TaskStatus.COMPLETED:
            return TaskCompleted(task_id=task.id, images=task.images)
        case TaskStatus.FAILED:
            assert task.failure is not None
            return TaskFailed(task_id=task.id, failure=task.failure)
        case TaskStatus.CANCELLED:
            return TaskCancelled(task_id=task.id)
