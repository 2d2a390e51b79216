"""RequestIds: gives each request an id, returns it, and logs each request in one line."""

import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-ID"

#: What a caller's own id may be made of. Any other text is replaced, so that it cannot forge a line of the log.
_VALID = re.compile(r"[A-Za-z0-9._-]{1,128}")

_KEY = "imagegen.request"

#: Routes that programs ask every few seconds. Their lines have the level DEBUG.
POLLED = frozenset({"/livez", "/readyz", "/health", "/metrics"})

log = structlog.get_logger(__name__)


def notes(scope: Scope) -> MutableMapping[str, Any]:
    """What is known about a request: `request_id` and, once it is refused, `code` and `route`.

    All copies of the scope have the same object.
    """
    found: MutableMapping[str, Any] = scope.setdefault(_KEY, {})
    return found


class RequestIds:
    """Middleware: takes the id of the header X-Request-ID or makes one, for logs, tasks and the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.perf_counter(), 500  # what a request gets that ends in an error
        scope.setdefault("state", {})  # a copy of the scope, which a route may get, has the same one
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _VALID.fullmatch(given) else str(uuid.uuid4())
        notes(scope)["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
                status = message["status"]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                _log(scope, status, time.perf_counter() - began)


def _log(scope: Scope, status: int, seconds: float) -> None:
    """Log a request. The path is not logged, because it may have what the caller has typed."""
    known, who = notes(scope), scope["state"].get("who")
    route = known.get("route") or getattr(scope.get("route"), "path", None)
    line = {"method": scope["method"], "route": route, "status": status, "ms": round(1000 * seconds, 1)}
    key = (who.name or None) if who is not None else None
    (log.debug if route in POLLED else log.info)("request", **line, key=key, code=known.get("code"))
