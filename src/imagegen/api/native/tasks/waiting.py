"""Answers to requests that submit a task: at once, or when the task has ended (RFC 7240, `Prefer: wait`)."""

import re
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel, Field

from imagegen.api.callers import cancel as cancel_task
from imagegen.api.callers import until_ended
from imagegen.api.dependencies import Services, Who, services_of, settings_of
from imagegen.api.headers import headers
from imagegen.api.native.tasks.view import TaskLinks, TaskView, task_links, task_view
from imagegen.core.owner import Owner
from imagegen.core.receipt import receipt_of
from imagegen.core.task import GenerationTask, TaskStatus
from imagegen.tasks.manager import Accepted

#: The longest wait in seconds. Proxies give up long before.
MAX_WAIT_S = 600

#: Seconds after which a caller should poll a new task for the first time.
FIRST_LOOK_S = 1

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?=$|[,;])", re.IGNORECASE)


class TaskAccepted(BaseModel):
    """The task is on disk and will run."""

    task_id: str = Field(examples=["0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11"])
    status: TaskStatus = Field(examples=["pending"])
    message: str = Field(examples=["The task is queued."])
    links: TaskLinks


#: The `responses` of a route that submits a task. 200 is for callers that wait for its end.
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": TaskView,
        "description": "With `Prefer: wait=N`, if the task has ended within N seconds.",
        "headers": headers("Content-Location", "Preference-Applied", "Idempotency-Replayed"),
    },
    202: {
        "description": "The task is on disk.",
        "headers": headers("Location", "Retry-After", "Preference-Applied", "Idempotency-Replayed"),
    },
}


def preferred_wait(prefer: str | None) -> int:
    """The seconds of a `Prefer: wait=N` header, at most MAX_WAIT_S; 0: the header asks for no wait."""
    asked = _WAIT.search(prefer or "")
    return min(int(asked[1]), MAX_WAIT_S) if asked else 0


class _Caller:
    """The caller of a request that submits a task."""

    def __init__(self, request: Request, services: Services, who: Owner, wait_s: int) -> None:
        self._request = request
        self._services = services
        self._who = who
        self._wait_s = wait_s
        self._prefix = request.scope["root_path"]

    async def answer(self, accepted: Accepted, *, cancel: bool = False) -> Response:
        """202, or 200 with the task if it ends while the caller waits.

        `cancel`: cancel the task if the caller disconnects while it waits.
        """
        response = await self._answer(accepted.task, cancel=cancel)
        if accepted.repeated:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    async def _answer(self, task: GenerationTask, *, cancel: bool) -> Response:
        if not self._wait_s:
            return self._accepted(task)
        service = self._services.service
        ended = await until_ended(self._request, service, self._who, task.id, self._wait_s)
        if ended is None and cancel:
            await cancel_task(service, self._who, task.id)
        task = ended or await service.task(self._who, task.id)
        response = self._ended(task) if task.status.finished else self._accepted(task)
        response.headers["Preference-Applied"] = f"wait={self._wait_s}"
        return response

    def _ended(self, task: GenerationTask) -> Response:
        view = task_view(
            task, None, None, settings_of(self._services).retention_days, receipt_of(task), prefix=self._prefix
        )
        headers = {"Content-Location": view.links.self}
        return Response(view.model_dump_json(), media_type="application/json", headers=headers)

    def _accepted(self, task: GenerationTask) -> Response:
        links = task_links(task.id, self._prefix)
        message = "The task is queued." if task.status is TaskStatus.PENDING else f"The task is {task.status}."
        body = TaskAccepted(task_id=task.id, status=task.status, message=message, links=links)
        headers = {"Location": links.self, "Retry-After": str(FIRST_LOOK_S)}
        return Response(body.model_dump_json(), 202, headers=headers, media_type="application/json")


async def _caller(
    request: Request,
    who: Who,
    prefer: Annotated[
        str | None,
        Header(max_length=1000, description="`wait=N`: wait at most N seconds for the end of the task."),
    ] = None,
) -> _Caller:
    return _Caller(request, services_of(request), who, preferred_wait(prefer))


Caller = Annotated[_Caller, Depends(_caller)]
