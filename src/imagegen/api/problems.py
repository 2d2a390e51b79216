"""Errors: from a stable code to its HTTP status (STATUS) and to a body (RFC 9457, or what an API's renderer makes)."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagegen.core.errors import ConfigInvalid, ImagegenError

MEDIA_TYPE = "application/problem+json"

STATUS: Mapping[str, int] = MappingProxyType(
    {
        "malformed_body": 400,
        "cross_origin": 403,
        "unknown_host": 421,
        "invalid_request": 422,
        "invalid_image": 422,
        "image_too_large": 422,
        "size_too_large": 422,
        "does_not_fit": 422,
        "unsupported_capability": 422,
        "lora_not_found": 422,
        "no_repository": 422,
        "model_not_found": 404,
        "task_not_found": 404,
        "image_not_found": 404,
        "not_found": 404,
        "method_not_allowed": 405,
        "model_exists": 409,
        "path_not_allowed": 422,
        "config_invalid": 422,
        "config_broken": 409,
        "config_read_only": 409,
        "config_stale": 412,
        "version_not_found": 404,
        "task_finished": 409,
        "task_not_finished": 409,
        "no_receipt": 409,
        "idempotency_key_reused": 422,
        "model_busy": 409,
        "load_failed": 422,
        "model_quarantined": 503,
        "weights_here": 409,
        "not_pulling": 409,
        "body_too_large": 413,
        "webhooks_off": 422,
        "url_not_allowed": 422,
        "delivery_not_found": 404,
        "range_not_satisfiable": 416,
        "queue_full": 503,
        "draining": 503,
        "storage_failed": 503,
        "journal_lost": 503,
        "search_too_long": 503,
        "store_unreachable": 503,
        "storage_full": 507,
    }
)

#: The codes of errors that FastAPI or Starlette answers by itself.
_CODE_OF_STATUS: Mapping[int, str] = MappingProxyType(
    {400: "malformed_body", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
)


class FieldError(BaseModel):
    """One problem of a request."""

    loc: str = Field(description="The field, as `body.width`.", examples=["body.width"])
    message: str = Field(examples=["Input should be less than or equal to 4096"])


class Problem(BaseModel):
    """An error (RFC 9457). `code` is stable; `detail` is for people."""

    type: str = "about:blank"
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    code: str = Field(examples=["invalid_request"])
    detail: str = Field(examples=["body.width: Input should be less than or equal to 4096"])
    errors: list[FieldError] | None = None


#: Makes the response of an error from its problem and from the headers that it must have, such as Retry-After.
Renderer = Callable[[Problem, Mapping[str, str] | None], Response]


def problem(code: str, detail: str, *, status: int | None = None, errors: list[FieldError] | None = None) -> Problem:
    """The problem of an error. Without a `status`, STATUS has it; 500 if `code` is not there."""
    status = status or STATUS.get(code, 500)
    return Problem(title=HTTPStatus(status).phrase, status=status, code=code, detail=detail, errors=errors)


def problem_json(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The renderer of imagegen's own API: RFC 9457."""
    return JSONResponse(problem.model_dump(exclude_none=True), problem.status, headers=headers, media_type=MEDIA_TYPE)


def render_errors(app: FastAPI, prefix: str, renderer: Renderer) -> None:
    """Let `renderer` make the response of every error at `prefix` and below it, also where there is no route.

    If several prefixes match a path, the longest one counts. Other paths have problem details. Call install() first.
    """
    app.state.error_renderers = {**app.state.error_renderers, prefix: renderer}


def error_response(scope: Scope, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The response of an error, from the renderer of the path."""
    renderers: Mapping[str, Renderer] = scope["app"].state.error_renderers
    prefixes = [prefix for prefix in renderers if f"{scope['path']}/".startswith(f"{prefix}/")]
    render = renderers[max(prefixes, key=len)] if prefixes else problem_json
    return render(problem, headers)


def describe(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these codes."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for status in sorted({STATUS[code] for code in codes}):
        words = ", ".join(f"`{code}`" for code in codes if STATUS[code] == status)
        schema = {"$ref": "#/components/schemas/Problem"}
        by_status[status] = {"description": f"Code {words}.", "content": {MEDIA_TYPE: {"schema": schema}}}
    return by_status


def install(app: FastAPI) -> None:
    """Answer every error of the app with error_response(), and describe problems in the OpenAPI document."""
    app.state.error_renderers = {}
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        return _with_problems(generate())

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_exception_handler(ImagegenError, _on_imagegen_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_bug)


def _with_problems(document: dict[str, Any]) -> dict[str, Any]:
    """Add the schemas that `describe` refers to, and remove FastAPI's own error schemas."""
    schemas = document["components"]["schemas"]
    for model in (Problem, FieldError):
        schemas[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas[model.__name__].pop("$defs", None)
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    invalid = describe("invalid_request")[422]
    for operations in document["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                operation["responses"]["422"] = invalid
    return document


async def _on_imagegen_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ImagegenError)
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
    errors = None
    if isinstance(error, ConfigInvalid):
        errors = [FieldError(loc=_printable(loc), message=_printable(what)) for loc, what in error.problems[:20]]
    what = problem(error.code, _printable(error.detail)[:2000], errors=errors or None)
    return error_response(request.scope, what, headers)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    # The input is never sent back: it may be huge, secret, or not encodable (lone surrogates, infinities).
    assert isinstance(error, RequestValidationError)
    errors = [FieldError(loc=_loc(item["loc"]), message=_printable(item["msg"])) for item in error.errors()[:20]]
    first = errors[0]
    what = problem("invalid_request", f"{first.loc}: {first.message}", errors=errors)
    return error_response(request.scope, what)


def _loc(parts: tuple[str | int, ...]) -> str:
    return _printable(".".join(map(str, parts)))[:200]


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODE_OF_STATUS.get(error.status_code, "http_error")
    what = problem(code, str(error.detail), status=error.status_code)
    return error_response(request.scope, what, error.headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    what = problem("internal_error", "The service failed on this request; its log has the details.")
    return error_response(request.scope, what)


class TextAsProblem:
    """Middleware: replaces the plain-text errors that Starlette sends outside of our handlers by error_response()."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replaced = False

        async def send_problem(message: Message) -> None:
            nonlocal replaced
            if _is_plain_refusal(message):
                replaced = True
                status = message["status"]
                detail = HTTPStatus(status).description or HTTPStatus(status).phrase
                what = problem(_CODE_OF_STATUS.get(status, "http_error"), detail, status=status)
                await error_response(scope, what)(scope, receive, send)
            elif not replaced:
                await send(message)

        await self._app(scope, receive, send_problem)


def _is_plain_refusal(message: Message) -> bool:
    if message["type"] != "http.response.start" or message["status"] < 400:
        return False
    return any(name == b"content-type" and value.startswith(b"text/plain") for name, value in message["headers"])
