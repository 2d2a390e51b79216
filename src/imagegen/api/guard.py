"""Who may call: no web page of another origin, and on a local address nobody under a foreign host name."""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from imagegen.api.problems import problem

#: What changes nothing may be asked for by any page: the browser does not let it read the answer.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Middleware: a page that the operator merely visits must not fill the queue or read what is in it.

    A browser says where a request comes from (Sec-Fetch-Site, Origin); programs say nothing and pass. A page can have
    its own name resolve to 127.0.0.1 and is then of the same origin; there the host name gives it away.
    """

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: Collection[str]) -> None:
        """`host` is the address listened on; if it is a local one, callers must call it so, or by an allowed name."""
        self._app = app
        self._hosts = {"localhost", "127.0.0.1", "::1", host, *allowed_hosts} if is_local(host) else set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if self._hosts and host_name(headers.get("host", "")) not in self._hosts:
            refusal = problem("unknown_host", "The service does not go by this host name; see IMAGEGEN_ALLOWED_HOSTS.")
            return await refusal(scope, receive, send)
        if scope["method"] not in SAFE_METHODS and is_cross_origin(headers):
            refusal = problem("cross_origin", "Pages of another origin may not do this.")
            return await refusal(scope, receive, send)
        await self._app(scope, receive, send)


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_name(authority: str) -> str:
    """`[::1]:5050` -> `::1`; empty if it is none."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def is_cross_origin(headers: Headers) -> bool:
    """Whether a browser sent this for a page that did not come from here."""
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    if origin := headers.get("origin"):
        return origin.lower().partition("://")[2] != headers.get("host", "").lower()
    return False
