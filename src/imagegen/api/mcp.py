"""POST /mcp: the Model Context Protocol over streamable HTTP. `mcp_server.py` has the tools."""

import asyncio
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagegen.api.bounded import BoundedRoute
from imagegen.api.dependencies import Services
from imagegen.api.problems import Problem
from imagegen.api.security import SEE

PREFIX = "/mcp"

#: The limit of its bodies is IMAGEGEN_MAX_UPLOAD_BYTES.
upload_router = APIRouter(route_class=BoundedRoute, dependencies=[SEE], include_in_schema=False)

#: Codes of JSON-RPC: an invalid request, and an internal error.
_INVALID_REQUEST, _INTERNAL_ERROR = -32600, -32603


def render(problem: Problem, headers: Mapping[str, str] | None) -> Response:
    """An error before there is an answer of the protocol: JSON-RPC without an id."""
    code = _INTERNAL_ERROR if problem.status >= 500 else _INVALID_REQUEST
    error = {"code": code, "message": problem.detail, "data": {"code": problem.code}}
    return JSONResponse({"jsonrpc": "2.0", "id": None, "error": error}, problem.status, headers)


class McpEndpoint:
    """Runs the SDK's session manager from the first request to the end of the application. Event loop only."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._running: asyncio.Task[None] | None = None
        self._app: asyncio.Future[ASGIApp] | None = None
        self._over = asyncio.Event()

    async def app(self) -> ASGIApp:
        """What answers the requests. Raises what the import of the SDK raises."""
        if self._app is None or self._running is None or self._running.done():
            self._app = asyncio.get_running_loop().create_future()
            self._running = asyncio.create_task(self._run(self._app), name="mcp")
        app, running = self._app, self._running
        either: list[asyncio.Future[Any]] = [app, running]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        return app.result()

    async def _run(self, app: "asyncio.Future[ASGIApp]") -> None:
        # In a thread: the import takes a second.
        server = await asyncio.to_thread(import_module, "imagegen.api.mcp_server")
        manager = server.http_manager(self._services)
        async with manager.run():
            app.set_result(manager.handle_request)
            await self._over.wait()

    async def aclose(self) -> None:
        """End the calls that are still open."""
        self._over.set()
        if self._running is not None:
            await asyncio.wait([self._running])


class _Handed(Response):
    """The answer of another application to a request whose body has been read."""

    def __init__(self, app: ASGIApp, body: bytes) -> None:
        super().__init__()
        self._app = app
        self._sent_body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages: list[Message] = [{"type": "http.request", "body": self._sent_body, "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, receive_again, send)


@upload_router.post(PREFIX)
async def mcp(request: Request) -> Response:
    """One message of a client. The answer is JSON, or a stream with notifications of progress before it."""
    endpoint: Any = request.app.state.mcp
    assert isinstance(endpoint, McpEndpoint)
    return _Handed(await endpoint.app(), await request.body())
