"""RequestIds: gives each request an id, returns it, and logs the requests that are refused."""

import re
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
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _VALID.fullmatch(given) else str(uuid.uuid4())
        notes(scope)["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
                if message["status"] >= 400:
                    known = notes(scope)
                    log.info(
                        "request_refused",
                        status=message["status"],
                        code=known.get("code"),
                        method=scope["method"],
                        route=known.get("route"),
                    )
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)
