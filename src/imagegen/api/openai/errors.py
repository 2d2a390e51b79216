"""Errors in the form that OpenAI's clients read."""

from collections.abc import Mapping
from types import MappingProxyType

from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from imagegen.api.problems import Problem

#: Seconds of Retry-After that the SDKs obey. After a longer one they retry after some seconds, unless they are told not
#: to.
LONGEST_RETRY_S = 120

#: Tells the SDKs whether to retry, whatever the status is.
SHOULD_RETRY = "x-should-retry"

_TYPES: Mapping[int, str] = MappingProxyType(
    {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
)

#: The field that a code is about.
_PARAMS: Mapping[str, str] = MappingProxyType(
    {
        "model_not_found": "model",
        "model_quarantined": "model",
        "does_not_fit": "model",
        "size_too_large": "size",
        "invalid_image": "image",
        "image_too_large": "image",
        "lora_not_found": "loras",
    }
)


class ErrorBody(BaseModel):
    """What is wrong."""

    message: str
    type: str
    #: The field of the request.
    param: str | None
    #: One of the codes of imagegen.
    code: str


class ErrorEnvelope(BaseModel):
    """The body of every error."""

    error: ErrorBody


def error_body(problem: Problem) -> ErrorBody:
    """An error as OpenAI's clients read it."""
    status = problem.status
    usual = "server_error" if status >= 500 else "invalid_request_error"
    param = _PARAMS.get(problem.code)
    if problem.errors:
        param = problem.errors[0].loc.removeprefix("body").removeprefix(".") or None
    message = problem.detail.removeprefix("body: ").removeprefix("body.")
    return ErrorBody(message=message, type=_TYPES.get(status, usual), param=param, code=problem.code)


def render(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The response of an error. What is wrong with a request is 400: OpenAI does not use 422."""
    status = 400 if problem.status == 422 else problem.status
    more = dict(headers or {})
    if int(more.get("Retry-After", "0")) > LONGEST_RETRY_S:
        # A full queue may be asked earlier. A budget has nothing left before.
        more |= {"Retry-After": str(LONGEST_RETRY_S)} if status == 503 else {SHOULD_RETRY: "false"}
    if problem.code == "model_quarantined":
        more[SHOULD_RETRY] = "false"
    return JSONResponse(ErrorEnvelope(error=error_body(problem)).model_dump(), status, headers=more)
