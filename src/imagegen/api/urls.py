"""Absolute URLs for APIs whose clients do not know where the service is."""

import time

from fastapi import Request

from imagegen.api.dependencies import services_of

#: Seconds for which a URL needs no key, as long as those of OpenAI.
SIGNED_S = 3600


def base_url(request: Request) -> str:
    """The address under which the caller reaches the service, without a slash at its end."""
    return str(request.base_url).rstrip("/")


async def open_url(path: str, request: Request) -> str:
    """An absolute URL. If the service has keys, its token opens this path without a key for SIGNED_S."""
    access = services_of(request).access
    if not await access.closed():
        return f"{base_url(request)}{path}"
    return f"{base_url(request)}{path}?token={await access.sign(path, int(time.time()) + SIGNED_S)}"
