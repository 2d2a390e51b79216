"""Callers: what they prefer to wait for, and what happens when they go away meanwhile (RFC 7240, `Prefer: wait`)."""

import asyncio
import re
from contextlib import suppress
from typing import Annotated

from fastapi import Depends, Header, Request, Response

from imagegen.api.dependencies import Services, services_of, settings_of
from imagegen.api.schemas import TaskAccepted
from imagegen.api.views import task_links, task_view
from imagegen.core.errors import TaskFinished, TaskNotFound
from imagegen.core.events import EventBus
from imagegen.core.receipt import receipt_of
from imagegen.core.task import GenerationTask, TaskStatus
from imagegen.tasks.manager import Once, TaskManager

#: Seconds that a caller can wait at most; proxies give up long before.
MAX_WAIT_S = 600

#: Seconds after which a first look at a new task makes sense.
FIRST_LOOK_S = 1

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?=$|[,;])", re.IGNORECASE)


def preferred_wait(prefer: str | None) -> int:
    """Seconds, from a `Prefer` header; 0: it asks for none."""
    asked = _WAIT.search(prefer or "")
    return min(int(asked[1]), MAX_WAIT_S) if asked else 0


class _Caller:
    """Whoever has just had a task accepted."""

    def __init__(self, request: Request, services: Services, wait_s: int) -> None:
        self._request = request
        self._tasks = services.tasks
        self._bus = services.bus
        self._services = services
        self._wait_s = wait_s

    async def answer(self, once: Once, *, cancel: bool = False) -> Response:
        """202, or 200 with the ended task if that comes soon enough. Who goes away may take the task along."""
        response = await self._answer(once.task, cancel=cancel)
        if once.repeated:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    async def _answer(self, task: GenerationTask, *, cancel: bool) -> Response:
        if not self._wait_s:
            return _accepted(task)
        ended = asyncio.create_task(_end_of(task.id, self._tasks, self._bus))
        gone = asyncio.create_task(_disconnect(self._request))
        try:
            await asyncio.wait([ended, gone], timeout=self._wait_s, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not ended.done() and cancel:
                await _cancel(task, self._tasks)
        finally:
            ended.cancel()
            gone.cancel()
        response = await self._present(task.id) or _accepted(task)
        response.headers["Preference-Applied"] = f"wait={self._wait_s}"
        return response

    async def _present(self, task_id: str) -> Response | None:
        """The task, if it has ended."""
        task = await self._tasks.records.get(task_id)
        if not task.status.finished:
            return None
        view = task_view(task, None, None, settings_of(self._services).retention_days, receipt=receipt_of(task))
        headers = {"Content-Location": view.links.self}
        return Response(view.model_dump_json(), media_type="application/json", headers=headers)


async def _end_of(task_id: str, tasks: TaskManager, bus: EventBus) -> None:
    """Returns when the task has ended, or the service stops telling."""
    with bus.subscribe(task_id) as events:
        if (await tasks.records.get(task_id)).status.finished:
            return
        async for published in events:
            if published.event.final:
                return


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: GenerationTask, tasks: TaskManager) -> None:
    with suppress(TaskFinished, TaskNotFound):  # it was quicker
        await tasks.cancel(task.id)


def _accepted(task: GenerationTask) -> Response:
    links = task_links(task.id)
    message = "The task is queued." if task.status is TaskStatus.PENDING else f"The task is {task.status}."
    body = TaskAccepted(task_id=task.id, status=task.status, message=message, links=links)
    headers = {"Location": links.self, "Retry-After": str(FIRST_LOOK_S)}
    return Response(body.model_dump_json(), 202, headers=headers, media_type="application/json")


async def _caller(
    request: Request,
    prefer: Annotated[
        str | None,
        Header(max_length=1000, description="`wait=N`: answer with the ended task if that takes at most N seconds."),
    ] = None,
) -> _Caller:
    return _Caller(request, services_of(request), preferred_wait(prefer))


Caller = Annotated[_Caller, Depends(_caller)]
