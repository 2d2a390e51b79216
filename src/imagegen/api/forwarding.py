"""Forwarding: the address, the host and the path prefix at which a caller reaches the service through a proxy."""

import re
from collections.abc import Collection, MutableMapping
from typing import Any

from pydantic import IPvAnyNetwork
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from imagegen.settings import PATH_PREFIX

_PREFIX = re.compile(PATH_PREFIX)
#: Where a scope has the Host header that X-Forwarded-Host has replaced.
REPLACED_HOST = "imagegen.replaced_host"

_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")


class Forwarding:
    """Middleware: applies what trusted proxies say about a request, and the path prefix.

    `X-Forwarded-For` and `-Proto` replace the caller's address and the scheme, `-Host` replaces the Host header, and
    `-Prefix` is the prefix if none is configured. They are ignored from any other address, and if their form is wrong.
    Of several values of `-Host` and `-Prefix` the last counts, which the nearest proxy has set.

    A path is the same with the prefix and without it, so a proxy may remove the prefix or not.
    """

    def __init__(self, app: ASGIApp, proxies: Collection[IPvAnyNetwork] = (), prefix: str = "") -> None:
        """`proxies`: the networks of trusted proxies. `prefix`: as `/imagegen`; empty: the proxy names it."""
        self._app = app
        self._prefix = prefix
        # uvicorn's own, which finds the caller behind several proxies: the last address that is not trusted.
        self._by_proxy = ProxyHeadersMiddleware(self._prefixed, [str(network) for network in proxies])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        scope["root_path"] = self._prefix
        if (scope.get("client") or ("", 0))[0] in self._by_proxy.trusted_hosts:
            self._apply(Headers(scope=scope), scope)
            return await self._by_proxy(scope, receive, send)  # type: ignore[arg-type]
        await self._prefixed(scope, receive, send)

    def _apply(self, headers: Headers, scope: MutableMapping[str, Any]) -> None:
        host, prefix = _last(headers, "x-forwarded-host"), _last(headers, "x-forwarded-prefix").rstrip("/")
        if _HOST.fullmatch(host):
            encoded = host.encode("ascii")
            scope[REPLACED_HOST] = headers.get("host", "")
            scope["headers"] = [(name, encoded if name == b"host" else value) for name, value in scope["headers"]]
        if not self._prefix and _PREFIX.fullmatch(prefix):
            scope["root_path"] = prefix

    async def _prefixed(self, scope: Any, receive: Any, send: Any) -> None:
        prefix, path = scope["root_path"], scope["path"]
        if prefix and path != prefix and not path.startswith(f"{prefix}/"):
            scope["path"] = prefix + path
            if raw := scope.get("raw_path"):
                scope["raw_path"] = prefix.encode("ascii") + raw
        await self._app(scope, receive, send)


def _last(headers: Headers, name: str) -> str:
    values = headers.getlist(name)
    return values[-1].rpartition(",")[2].strip() if values else ""


def path_in(scope: Scope) -> str:
    """The path of a request without the prefix."""
    return str(scope["path"]).removeprefix(scope.get("root_path", "")) or "/"
