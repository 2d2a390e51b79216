"""What can go wrong: a refused request, and a task that ends without pictures."""

from contextlib import suppress
from typing import Any

import httpx

from imagegen_client.generated.models import TaskView


class ImagegenError(Exception):
    """The service refused a request. Each `code` has a page: `/docs/errors/CODE` of the service."""

    def __init__(self, status: int, code: str, detail: str, retry_after: float | None, problem: dict[str, Any]) -> None:
        """`retry_after`: seconds after which the same request may be accepted. `problem`: the whole answer."""
        super().__init__(f"{code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after = retry_after
        self.problem = problem


class TaskEnded(Exception):
    """A task failed or was cancelled."""

    def __init__(self, task: TaskView) -> None:
        self.task = task
        self.code = task.error_code or task.status
        super().__init__(f"{self.code}: {task.error_message or 'the task was cancelled'}")


def error_of(response: httpx.Response) -> ImagegenError:
    """The error that an answer with a status of 400 or more is."""
    problem: dict[str, Any] = {}
    with suppress(ValueError):
        answer = response.json()
        problem = answer if isinstance(answer, dict) else {}
    seconds = None
    with suppress(ValueError):
        seconds = float(response.headers.get("Retry-After", ""))
    code = str(problem.get("code", "http_error"))
    detail = str(problem.get("detail", response.reason_phrase))
    return ImagegenError(response.status_code, code, detail, seconds, problem)
