"""HttpMetrics: counts and times each request by the template of its route."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagegen.telemetry.metrics import Metrics

_STREAM = (b"content-type", b"text/event-stream")


class HttpMetrics:
    """Middleware: tells Metrics of each request once its answer is sent. A status of 0: the caller hung up before."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status, stream = time.perf_counter(), 0, False

        async def send_measured(message: Message) -> None:
            nonlocal status, stream
            if message["type"] == "http.response.start":
                status = message["status"]
                stream = any(name == _STREAM[0] and value.startswith(_STREAM[1]) for name, value in message["headers"])
            await send(message)

        try:
            await self._app(scope, receive, send_measured)
        except Exception:
            status = status or 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", None)
            seconds = None if stream else time.perf_counter() - began
            self._metrics.answered(scope["method"], route, status, seconds)
