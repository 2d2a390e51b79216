"""Errors: the HTTP status of each code (STATUS), and the body: RFC 9457, or what an API's own renderer makes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagegen.api.dependencies import services_in
from imagegen.api.foreign_names import unknown_field
from imagegen.api.forwarding import path_in
from imagegen.api.headers import headers as described_headers
from imagegen.api.request_ids import HEADER, notes
from imagegen.catalog.fields import section_at
from imagegen.core.errors import ConfigInvalid, ImagegenError, LimitReached, Unauthorized
from imagegen.core.keys import LimitState
from imagegen.core.wording import THE_LOG, explained

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"

STATUS: Mapping[str, int] = MappingProxyType(
    {
        "malformed_body": 400,
        "unsupported_media_type": 415,
        "malformed_request": 400,
        "header_too_large": 431,
        "request_timeout": 408,
        "too_many_connections": 503,
        "too_many_uploads": 503,
        "too_many_streams": 503,
        "unauthorized": 401,
        "cross_origin": 403,
        "forbidden": 403,
        "limit_reached": 429,
        "unknown_host": 421,
        "invalid_request": 422,
        "invalid_image": 422,
        "image_too_large": 422,
        "size_too_large": 422,
        "does_not_fit": 422,
        "task_too_long": 422,
        "unsupported_capability": 422,
        "lora_not_found": 422,
        "no_repository": 422,
        "model_not_found": 404,
        "key_not_found": 404,
        "key_exists": 409,
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
        "task_cancelled": 409,
        "task_not_finished": 409,
        "no_receipt": 409,
        "no_inputs": 409,
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

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

#: The codes of errors that FastAPI or Starlette answers by itself.
_CODE_OF_STATUS: Mapping[int, str] = MappingProxyType(
    {
        400: "malformed_body",
        404: "not_found",
        405: "method_not_allowed",
        413: "body_too_large",
        415: "unsupported_media_type",
    }
)


#: Every code of a problem, sorted.
CODES = tuple(sorted({*STATUS, "internal_error", "http_error"}))

#: The headers of the answers with a status.
_HEADERS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        401: ("WWW-Authenticate",),
        416: ("Content-Range",),
        429: ("Retry-After", "RateLimit-Policy", "RateLimit"),
        503: ("Retry-After",),
    }
)

#: Phrases of RFC 9110 that Python has since 3.13.
_PHRASES: Mapping[int, str] = MappingProxyType(
    {413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}
)


class FieldError(BaseModel):
    """One problem of a request."""

    loc: str = Field(description="The field, as `body.width`.")
    message: str


class Problem(BaseModel):
    """An error (RFC 9457). `code` is stable; `detail` is for people; `type` is a page about the code."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "/docs/errors/invalid_request",
                    "title": "Unprocessable Content",
                    "status": 422,
                    "code": "invalid_request",
                    "detail": "body.steps: Input should be less than or equal to 200",
                    "errors": [{"loc": "body.steps", "message": "Input should be less than or equal to 200"}],
                }
            ]
        }
    )

    type: str = Field(description="The path of a page about the code.")
    title: str = Field(description="The phrase of the status.")
    status: int
    code: str
    detail: str
    errors: list[FieldError] | None = Field(None, description="The fields that are wrong.")


#: The content of an error in the OpenAPI document.
PROBLEM: Mapping[str, Any] = MappingProxyType({MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}})


class NoPictures(Exception):
    """A caller that waited for the pictures of a task gets none. Answered with the problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.detail)


#: Makes the response of an error from its problem and from the headers that it must have, such as Retry-After.
Renderer = Callable[[Problem, Mapping[str, str] | None], Response]


def problem(code: str, detail: str, *, status: int | None = None, errors: list[FieldError] | None = None) -> Problem:
    """The problem of an error. Without a `status`, STATUS has it; 500 if `code` is not there."""
    status = status or STATUS.get(code, 500)
    title = _PHRASES.get(status) or HTTPStatus(status).phrase
    return Problem(type=page(code), title=title, status=status, code=code, detail=detail, errors=errors)


def page(code: str) -> str:
    """The path of the page about a code of a problem or of a failed task."""
    return f"/docs/errors/{code}"


def problem_json(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The renderer of imagegen's own API: RFC 9457."""
    return JSONResponse(problem.model_dump(exclude_none=True), problem.status, headers=headers, media_type=MEDIA_TYPE)


def render_errors(app: FastAPI, prefix: str, renderer: Renderer) -> None:
    """Let `renderer` make the response of every error at `prefix` and below it, also where there is no route.

    A segment such as `{name}` matches any one segment of a path. If several prefixes match, the one with the most
    segments counts. Other paths have problem details. Call install() first.
    """
    app.state.error_renderers = {**app.state.error_renderers, prefix: renderer}


def error_response(scope: Scope, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The response of an error, from the renderer of the path."""
    notes(scope).update(code=problem.code, route=getattr(scope.get("route"), "path", None))
    renderers: Mapping[str, Renderer] = scope["app"].state.error_renderers
    path = path_in(scope).split("/")
    prefixes = [prefix for prefix in renderers if _is_below(path, prefix.split("/"))]
    render = renderers[max(prefixes, key=lambda prefix: prefix.count("/"))] if prefixes else problem_json
    return render(problem.model_copy(update={"type": f"{scope.get('root_path', '')}{problem.type}"}), headers)


def _is_below(path: Sequence[str], prefix: Sequence[str]) -> bool:
    alike = (ours.startswith("{") or ours == theirs for ours, theirs in zip(prefix, path, strict=False))
    return len(prefix) <= len(path) and all(alike)


def describe(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these codes."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for status in sorted({STATUS[code] for code in codes}):
        words = ", ".join(f"`{code}`" for code in codes if STATUS[code] == status)
        by_status[status] = {"description": f"Code {words}.", "content": dict(PROBLEM)}
        if status in _HEADERS:
            by_status[status]["headers"] = described_headers(*_HEADERS[status])
    return by_status


def problem_schemas() -> dict[str, Any]:
    """The schemas that `describe` refers to."""
    schemas: dict[str, Any] = {
        kind.__name__: kind.model_json_schema(ref_template="#/components/schemas/{model}")
        for kind in (Problem, FieldError)
    }
    schemas["Problem"].pop("$defs", None)
    schemas["Problem"]["properties"]["code"] = {"$ref": "#/components/schemas/ErrorCode"}
    schemas["Problem"]["properties"]["errors"].pop("default", None)
    about = (
        "Why a request was refused. Each code has a page: `/docs/errors/CODE`. Later versions may have more of them."
    )
    schemas["ErrorCode"] = {"type": "string", "enum": list(CODES), "title": "ErrorCode", "description": about}
    return schemas


def install(app: FastAPI) -> None:
    """Answer every error of the app with error_response()."""
    app.state.error_renderers = {}
    app.add_exception_handler(ImagegenError, _on_imagegen_error)
    app.add_exception_handler(NoPictures, _on_no_pictures)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)


async def _on_imagegen_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ImagegenError)
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, LimitReached) and error.limit is not None:
        headers |= limit_headers(error.limit)
    errors = None
    if isinstance(error, ConfigInvalid):
        errors = [FieldError(loc=_printable(loc), message=_printable(what)) for loc, what in error.problems[:20]]
    what = problem(error.code, _printable(error.detail)[:2000], errors=errors or None)
    return error_response(request.scope, what, headers)


async def _on_no_pictures(request: Request, error: Exception) -> Response:
    assert isinstance(error, NoPictures)
    return error_response(request.scope, error.problem)


def limit_headers(limit: LimitState) -> dict[str, str]:
    """`RateLimit-Policy` and `RateLimit` of a limit (draft-ietf-httpapi-ratelimit-headers-10)."""
    window = "" if limit.window_s is None else f";w={limit.window_s}"
    reset = "" if limit.reset_s is None else f";t={limit.reset_s}"
    return {
        "RateLimit-Policy": f'"{limit.name}";q={int(limit.quota)}{window}',
        "RateLimit": f'"{limit.name}";r={max(0, int(limit.remaining))}{reset}',
    }


async def _on_validation_error(request: Request, error: Exception) -> Response:
    # The input is never sent back: it may be huge, secret, or not encodable (lone surrogates, infinities).
    assert isinstance(error, RequestValidationError)
    found = error.errors()[:20]
    if found[0]["type"] == "json_invalid":
        return error_response(request.scope, problem("malformed_body", _not_json(error.body, found[0])))
    body = _body_class(request.scope)
    errors = [FieldError(loc=_loc(item["loc"]), message=_printable(_message(item, body))) for item in found]
    first = errors[0]
    what = problem("invalid_request", f"{first.loc}: {first.message}", errors=errors)
    return error_response(request.scope, what)


def _not_json(text: str, details: Any) -> str:
    """Where and why a text is not JSON. `details`: FastAPI's error."""
    place, reason = details["loc"][1], details["ctx"]["error"]
    line, column = text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)
    hint = " JSON has double quotes, not single ones." if text[place : place + 1] == "'" else ""
    return f"The body is not JSON. Line {line}, column {column}: {reason}.{hint}"


def _body_class(scope: Scope) -> type[BaseModel] | None:
    """The class of the body that a request's route takes."""
    field = getattr(scope.get("route"), "body_field", None)
    kind = field.field_info.annotation if field is not None else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _message(details: Any, body: type[BaseModel] | None) -> str:
    if details["type"] != "extra_forbidden":
        return explained(details)
    path = details["loc"][1:]  # without `body`
    return unknown_field(str(path[-1]), body and section_at(body, path))


def _loc(parts: tuple[str | int, ...]) -> str:
    return _printable(".".join(map(str, parts)))[:200]


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    code = _CODE_OF_STATUS.get(status, "http_error")
    detail = _too_large(request.scope) if status == 413 else _parse_error(error.__cause__) or str(error.detail)
    headers = {"Allow": ", ".join(_methods(request))} if status == 405 else error.headers
    return error_response(request.scope, problem(code, detail, status=status), headers)


def _methods(request: Request) -> list[str]:
    """The methods of all routes of a path. The error has only those of the first route."""
    path = getattr(request.scope.get("route"), "path", request.url.path)
    same = (route for route in _leaves(request.app.routes) if route.path == path)
    taken = {method for route in same for method in getattr(route, "methods", None) or ()}
    found = [it for it in _METHODS if it in taken]
    return [*found, *(["HEAD"] if "GET" in found else [])]  # HeadAsGet answers it


def _leaves(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes of an application, also those of the routers that it includes."""
    for route in routes:
        inner = getattr(route, "effective_candidates", None)
        yield from _leaves(inner()) if inner is not None else (route,)


def _too_large(scope: Scope) -> str:
    """The limit that a body exceeds, and the setting that it comes from."""
    limit = scope[MAX_BODY_SIZE_SCOPE_KEY]
    settings = services_in(scope["app"]).settings
    names = [
        f"IMAGEGEN_{it.upper()}" for it in ("max_body_bytes", "max_upload_bytes") if getattr(settings, it) == limit
    ]
    source = f"; {' or '.join(names)} sets this limit" if names else ""
    return f"The body is larger than {limit:,} bytes{source}."


def _parse_error(cause: BaseException | None) -> str | None:
    """Why a body could not be parsed, for causes that are not JSON errors; None: any other cause."""
    if isinstance(cause, UnicodeDecodeError):
        return f"The body is not UTF-8 text: byte {cause.start} is not part of a character."
    if isinstance(cause, RecursionError):
        return "The body is nested too deep."
    return None


async def _on_disconnect(request: Request, error: Exception) -> Response:
    # Nobody reads this, or the connection has sent a refusal. It is no bug: that would be two tracebacks in the log.
    return error_response(request.scope, problem("malformed_request", "The body did not arrive."))


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette runs this outside of all middleware, so the id is neither bound nor added to the answer there.
    request_id = notes(request.scope).get("request_id", "")
    what = problem("internal_error", f"The service failed on this request; {THE_LOG} has the details.")
    response = error_response(request.scope, what, {HEADER: request_id})
    known = notes(request.scope)
    log.error("request_failed", request_id=request_id, code=what.code, route=known["route"], exc_info=error)
    return response


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
                phrase = HTTPStatus(status).description or HTTPStatus(status).phrase
                detail = _too_large(scope) if status == 413 else phrase
                what = problem(_CODE_OF_STATUS.get(status, "http_error"), detail, status=status)
                await error_response(scope, what)(scope, receive, send)
            elif not replaced:
                await send(message)

        await self._app(scope, receive, send_problem)


def _is_plain_refusal(message: Message) -> bool:
    if message["type"] != "http.response.start" or message["status"] < 400:
        return False
    return any(name == b"content-type" and value.startswith(b"text/plain") for name, value in message["headers"])
