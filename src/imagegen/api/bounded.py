"""Routes that refuse a body before it is parsed: one that is not JSON, has too many values, or has an odd charset."""

from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from fastapi import Request, Response, params
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException

from imagegen.api.security import KeyedRoute

#: Commas and brackets of a body. A prompt of 8192 commas must pass. Without a limit, a megabyte can hold 200,000 keys,
#: and to parse and report each of them takes a hundred times its size.
MAX_PARTS = 10_000

#: What the charset of a form may be. The parser of forms takes any codec of Python by its name, also those that take
#: minutes for a megabyte (punycode).
CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1"})

#: What a 415 adds for the two types of body that programs send by default.
_HINTS: Mapping[str, str] = MappingProxyType(
    {
        "multipart/form-data": " Pictures go into the JSON as base64 text.",
        "application/x-www-form-urlencoded": " curl sends this type unless it has -H 'Content-Type: application/json'.",
    }
)


class BoundedRoute(KeyedRoute):
    """Refuses a body of another type than JSON, and one with more values than any request has.

    The second check only counts bytes, so it is fast.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_json = self.body_field is not None and not isinstance(self.body_field.field_info, params.Form)

        async def bounded(request: Request) -> Response:
            await self.check_key(request)
            body = await request.body()
            if body and takes_json:
                _check_type(request.headers.get("content-type", ""))
            check_parts(body)
            return await handle(request)

        return bounded


class FormRoute(KeyedRoute):
    """Refuses a form with an unusual charset: browsers and SDKs name none, and others UTF-8."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            await self.check_key(request)
            _, options = parse_options_header(request.headers.get("content-type"))
            charset = options.get(b"charset", b"utf-8").decode("latin-1").lower()
            if charset not in CHARSETS:
                raise HTTPException(415, f"A form must be in UTF-8. Its charset is {charset[:100]}.")
            return await handle(request)

        return checked


def check_parts(body: bytes) -> None:
    """Raises HTTPException if a JSON body has more values than any request has."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_PARTS:
        raise HTTPException(400, "The body has too many values.")


def is_json(content_type: str) -> bool:
    """Whether a Content-Type is that of JSON."""
    kind = _kind(content_type)
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _check_type(header: str) -> None:
    if is_json(header):
        return
    kind = _kind(header)
    sent = f"Its Content-Type is {kind[:100]}." if kind else "It has no Content-Type."
    detail = f"The body must be JSON, with Content-Type: application/json. {sent}{_HINTS.get(kind, '')}"
    raise HTTPException(415, detail, {"Accept": "application/json"})
