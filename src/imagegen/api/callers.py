"""Callers that wait for a task: follows their connection, and lets a retry join the task of the request before it."""

import asyncio
import math
from collections.abc import Hashable
from contextlib import suppress

from fastapi import Request

from imagegen.api.problems import Problem, problem
from imagegen.core.errors import Draining, TaskFinished, TaskNotFound, WasCancelled
from imagegen.core.owner import Owner
from imagegen.core.task import GenerationTask, TaskStatus
from imagegen.service.image_service import ImageService

#: Seconds for which a task goes on after its caller has hung up: the SDKs of OpenAI retry after 0.5 to 8 s.
GRACE_S = 15

#: Tasks that may wait for a retry at once. The tasks of further callers that hang up are cancelled at once.
MOST_LEFT = 1000


async def until_ended(
    request: Request, service: ImageService, who: Owner, task_id: str, seconds: float = math.inf
) -> GenerationTask | None:
    """The task when it has ended, or as it is after so many seconds or when the service stops.

    None: the caller has closed the connection. The body of the request must have been read. Raises TaskNotFound.
    """
    waiting = asyncio.create_task(service.wait(who, task_id, seconds))
    gone = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def cancel(service: ImageService, who: Owner, task_id: str) -> None:
    """Cancel a task that nobody waits for any more, unless it has ended."""
    with suppress(TaskFinished, TaskNotFound):
        await service.cancel(who, task_id)


def problem_of(task: GenerationTask) -> Problem:
    """Why a caller that waited gets no pictures: the task failed, was cancelled, or the service stops."""
    if task.failure is not None:
        return problem(task.failure.code, task.failure.message, status=500)
    if task.status is TaskStatus.CANCELLED:
        return problem(WasCancelled.code, WasCancelled().detail)
    return problem(Draining.code, f"{Draining().detail} The task {task.id} goes on after its next start.")


class Retries:
    """Tasks whose callers have hung up and may ask again. One object for each application.

    A client that gives up after a time-out closes the connection and sends the request again. The second request
    joins the task of the first one. A task that nobody has joined after `grace_s` is cancelled.
    """

    def __init__(self, service: ImageService, grace_s: float = GRACE_S) -> None:
        self._service = service
        self._grace_s = grace_s
        #: The tasks by request, the oldest first, and the timers that cancel them.
        self._left: dict[Hashable, dict[str, asyncio.TimerHandle]] = {}
        self._cancelling: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Retries [{sum(map(len, self._left.values()))}]>"

    def leave(self, key: Hashable, who: Owner, task_id: str) -> None:
        """The caller of the request `key` is gone. `key` must name the caller and the whole request."""
        if len(self._left) >= MOST_LEFT:
            self._cancel(who, task_id)
            return
        timer = asyncio.get_running_loop().call_later(self._grace_s, self._give_up, key, who, task_id)
        self._left.setdefault(key, {})[task_id] = timer

    def take(self, key: Hashable) -> str | None:
        """The task of an earlier request `key` whose caller is gone. The new caller waits for it from now on."""
        if key not in self._left:
            return None
        task_id = next(iter(self._left[key]))
        self._remove(key, task_id).cancel()
        return task_id

    def _give_up(self, key: Hashable, who: Owner, task_id: str) -> None:
        self._remove(key, task_id)
        self._cancel(who, task_id)

    def _remove(self, key: Hashable, task_id: str) -> asyncio.TimerHandle:
        timer = self._left[key].pop(task_id)
        if not self._left[key]:
            del self._left[key]
        return timer

    def _cancel(self, who: Owner, task_id: str) -> None:
        cancelling = asyncio.create_task(cancel(self._service, who, task_id), name="cancel")
        self._cancelling.add(cancelling)
        cancelling.add_done_callback(self._cancelling.discard)
