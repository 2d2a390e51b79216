"""Refuses changes by web pages of other origins and requests for a foreign host name.

No page may be framed, and no shared cache may keep an answer that does not say so itself.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagegen.api.forwarding import REPLACED_HOST
from imagegen.api.problems import error_response, problem

#: Headers that front ends of other origins (IMAGEGEN_CORS_ORIGINS) may send, and read in an answer.
ASKED_HEADERS = [
    *("Authorization", "X-API-Key", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID"),
    *("Prefer", "Range", "If-Range"),
    # What the SDK of OpenAI sends with each request.
    *("OpenAI-Organization", "OpenAI-Project"),
    *(
        f"X-Stainless-{it}"
        for it in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Retry-Count", "Timeout")
    ),
    *("MCP-Protocol-Version", "Mcp-Method", "Mcp-Name"),
]
ANSWERED_HEADERS = [
    *("ETag", "Link", "Location", "Content-Location", "Content-Range", "Content-Disposition", "Retry-After"),
    *("RateLimit", "RateLimit-Policy", "Idempotency-Replayed", "Preference-Applied"),
    *("X-Request-ID", "X-Imagegen-Model", "X-Imagegen-Task"),
]

#: These methods change nothing, so any page may use them: the browser does not let it read the answer.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Middleware against web pages that the operator visits: they must not submit tasks or read them.

    A browser tells which origin a request comes from (Sec-Fetch-Site, Origin). Programs send neither header, and pass.
    A page can make its own host name resolve to 127.0.0.1, and then has the same origin as the service: such requests
    have a foreign name in the Host header. Its scripts can send X-Forwarded-Host as well, from an address that may be
    that of a trusted proxy; so the Host header that it replaces must be known, too.
    """

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: Collection[str], origins: Collection[str] = ()) -> None:
        """The Host header must name this machine, `host`, the address that the request arrived at, or be allowed.

        `host`: the address to listen on. `allowed_hosts`: more names; `*` allows all of them. `origins`: pages of these
        origins may change things.
        """
        self._origins = frozenset(origins)
        self._app = app
        self._hosts = {"localhost", "127.0.0.1", "::1", host.lower(), *allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if len(headers.getlist("host")) > 1:
            refusal = problem("malformed_request", "The request has more than one Host header.")
            return await error_response(scope, refusal)(scope, receive, send)
        host = headers.get("host", "")
        if not all(self._is_for_us(host_name(it), scope) for it in (host, scope.get(REPLACED_HOST, host))):
            refusal = problem("unknown_host", "This host name is not allowed; see IMAGEGEN_ALLOWED_HOSTS.")
            return await error_response(scope, refusal)(scope, receive, send)
        allowed = headers.get("origin", "").lower() in self._origins
        if scope["method"] not in SAFE_METHODS and not allowed and is_cross_origin(headers):
            refusal = problem("cross_origin", "Web pages of another origin may not do this.")
            return await error_response(scope, refusal)(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                # A cache knows that an answer is the caller's own by `Authorization`, but not by `X-API-Key`.
                answer.setdefault("Cache-Control", "private, no-cache")
                if answer.get("content-type", "").startswith("text/html"):
                    answer.append("Content-Security-Policy", "frame-ancestors 'none'")
                    answer["X-Frame-Options"] = "DENY"
            await send(message)

        await self._app(scope, receive, send_guarded)

    def _is_for_us(self, name: str, scope: Scope) -> bool:
        address = scope["server"][0] if scope.get("server") else ""
        return "*" in self._hosts or name in self._hosts or (name == address and _is_address(name))


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def host_name(authority: str) -> str:
    """The host without the port: `[::1]:5050` -> `::1`; empty if the text is not valid."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def is_cross_origin(headers: Headers) -> bool:
    """Whether a browser sent this request for a page of another origin."""
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    if origin := headers.get("origin"):
        return origin.lower().partition("://")[2] != headers.get("host", "").lower()
    return False
