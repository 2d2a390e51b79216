"""HeadAsGet: answers HEAD wherever there is a GET, with the same headers and no body (RFC 9110, section 9.3.2)."""

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """Middleware: a HEAD that a route refuses with 405 is answered by the GET of the path.

    A route with its own HEAD, such as that of pictures, keeps it. A stream of events ends after its headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        refused = False

        async def send_unless_refused(message: Message) -> None:
            nonlocal refused
            refused = refused or message.get("status") == 405
            if not refused:
                await send(message)

        await self._app(scope, receive, send_unless_refused)
        if refused:
            await self._get(scope, receive, send)

    async def _get(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def send_headers(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                await send(message)
                await send({"type": "http.response.body", "body": b""})
            elif message.get("more_body"):
                raise OSError  # as a server does when the client has disconnected, so that a stream ends

        async def receive_until_answered() -> Message:
            return {"type": "http.disconnect"} if answered else await receive()

        try:
            # A copy, because the server must still see a HEAD.
            await self._app({**scope, "method": "GET"}, receive_until_answered, send_headers)
        except (ClientDisconnect, OSError):
            if not answered:
                raise
