"""Refuses changes by web pages of other origins and, on a local address, requests for a foreign host name."""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from imagegen.api.problems import error_response, problem

#: Headers that front ends of other origins (IMAGEGEN_CORS_ORIGINS) may send, and read in an answer.
ASKED_HEADERS = [
    *("Authorization", "X-API-Key", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID"),
    *("Prefer", "Range", "If-Range"),
]
ANSWERED_HEADERS = [
    *("ETag", "Link", "Location", "Content-Location", "Content-Range", "Content-Disposition", "Retry-After"),
    *("RateLimit", "RateLimit-Policy", "Idempotency-Replayed", "Preference-Applied"),
]

#: These methods change nothing, so any page may use them: the browser does not let it read the answer.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Middleware against web pages that the operator visits: they must not submit tasks or read them.

    A browser sends where a request comes from (Sec-Fetch-Site, Origin). Programs send neither header, and pass. A page
    can make its own host name resolve to 127.0.0.1, and is then of the same origin: its requests have a foreign name
    in the Host header.
    """

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: Collection[str], origins: Collection[str] = ()) -> None:
        """`host`: the address to listen on. If it is local, the Host header must be local or one of `allowed_hosts`.

        `origins`: pages of these origins may change things.
        """
        self._origins = frozenset(origins)
        self._app = app
        self._hosts = {"localhost", "127.0.0.1", "::1", host, *allowed_hosts} if is_local(host) else set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if self._hosts and host_name(headers.get("host", "")) not in self._hosts:
            refusal = problem("unknown_host", "This host name is not allowed; see IMAGEGEN_ALLOWED_HOSTS.")
            return await error_response(scope, refusal)(scope, receive, send)
        allowed = headers.get("origin", "").lower() in self._origins
        if scope["method"] not in SAFE_METHODS and not allowed and is_cross_origin(headers):
            refusal = problem("cross_origin", "Web pages of another origin may not do this.")
            return await error_response(scope, refusal)(scope, receive, send)
        await self._app(scope, receive, send)


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
