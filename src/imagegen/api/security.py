"""Needs: the dependency of every route but the public ones. It finds the caller and checks the key's scopes."""

import base64
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fastapi import Depends, Request, Response, params
from fastapi.openapi.models import HTTPBearer
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase

from imagegen.api.dependencies import services_of
from imagegen.api.forwarding import path_in
from imagegen.core.errors import Forbidden
from imagegen.core.keys import Scope
from imagegen.core.owner import Owner

_ABOUT = "An API key, `ig_...`. Without any keys, a service on a local address needs none. See `imagegen keys create`."

#: The name of the scheme that FastAPI is told.
_BEARER = "key"

#: The two ways to send a key, as the OpenAPI document describes them.
SCHEMES: Mapping[str, Any] = MappingProxyType(
    {
        _BEARER: {"type": "http", "scheme": "bearer", "description": _ABOUT},
        "key_header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": _ABOUT},
    }
)


class Needs(SecurityBase):
    """A dependency: the caller must have a key with one of these scopes. A key with the scope `admin` may do all."""

    def __init__(self, *scopes: Scope) -> None:
        self.scopes = frozenset(scopes) | {Scope.ADMIN}
        self.scheme_name = _BEARER
        self.model = HTTPBearer(description=_ABOUT)

    async def __call__(self, request: Request) -> Owner:
        """Raises Unauthorized or Forbidden."""
        who = request.scope["state"].get("who") if "state" in request.scope else None
        if who is None:
            who = request.state.who = await services_of(request).access.owner(key_in(request))
        if not who.scopes & self.scopes:
            raise Forbidden(f"This needs a key with the scope {' or '.join(sorted(self.scopes))}.")
        return who


class NeedsOrToken(Needs):
    """Like Needs; also takes the `token` of a signed URL, which opens one path for some minutes."""

    async def __call__(self, request: Request) -> Owner:
        token = request.query_params.get("token")
        if token and await services_of(request).access.opens(path_in(request.scope), token):
            request.state.who = SIGNED
        return await super().__call__(request)


#: The caller with a signed URL. Its path decides what it sees.
SIGNED = Owner(scopes=frozenset({Scope.READ}), changes_all=False, signed=True)

#: See what exists for the caller.
SEE: Any = Depends(Needs(Scope.GENERATE, Scope.READ))
#: The same, or with the token of a signed URL.
SEE_SIGNED: Any = Depends(NeedsOrToken(Scope.GENERATE, Scope.READ))
#: Make and change what belongs to the caller.
MAKE: Any = Depends(Needs(Scope.GENERATE))
#: Change what belongs to all.
MANAGE: Any = Depends(Needs(Scope.ADMIN))


def key_in(request: Request) -> str | None:
    """The key that a request has, as `X-API-Key`, as `Authorization: Bearer`, or as the password of `Basic`.

    `X-API-Key` comes first: behind a proxy that asks for a password, `Authorization` is for the proxy.
    """
    if key := request.headers.get("x-api-key"):
        return key
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() in ("bearer", "token") and text.strip():  # `Token`: older clients of Replicate
        return text.strip()
    if scheme.lower() == "basic" and (password := _password(text)):
        return password
    return None


def _password(credentials: str) -> str | None:
    """The password of RFC 7617, whatever the user is called. Without a colon, it is the whole text."""
    try:
        text = base64.b64decode(credentials.strip(), validate=True).decode()
    except ValueError:
        return None
    user, colon, password = text.partition(":")
    return password if colon else user


def needs_of(dependencies: Sequence[params.Depends]) -> list[Needs]:
    """The Needs among the dependencies of a route."""
    return [it.dependency for it in dependencies if isinstance(it.dependency, Needs)]


class KeyedRoute(APIRoute):
    """Checks the key before the body is read, so that a caller without one cannot make the service read it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def keyed(request: Request) -> Response:
            await self.check_key(request)
            return await handle(request)

        return keyed

    async def check_key(self, request: Request) -> None:
        """Raises Unauthorized or Forbidden."""
        for need in needs_of(self.dependencies):
            await need(request)
