"""Absolute URLs for APIs whose clients do not know where the service is."""

import time
from urllib.parse import urlsplit

from fastapi import Request

from imagegen.api.dependencies import services_of

#: Seconds for which a URL needs no key, as long as those of OpenAI.
SIGNED_S = 3600


def base_url(request: Request) -> str:
    """The address under which callers reach the service, without a slash at its end: that of the settings if any."""
    return services_of(request).settings.public_url or _asked_at(request)


def _asked_at(request: Request) -> str:
    return str(request.base_url).rstrip("/")


async def open_url(path: str, request: Request) -> str:
    """An absolute URL. If the service has keys, its token opens this path without a key for SIGNED_S."""
    access = services_of(request).access
    if not await access.closed():
        return f"{base_url(request)}{path}"
    return f"{base_url(request)}{path}?token={await access.sign(path, int(time.time()) + SIGNED_S)}"


def path_within(url: str, request: Request | None) -> str | None:
    """The path of a URL or path of this service, without the prefix; None: the URL is of another host.

    `request`: None if there is none, and so no host.
    """
    parts = urlsplit(url)
    if request is None:
        return None if parts.netloc else parts.path
    bases = [urlsplit(base) for base in (base_url(request), _asked_at(request))]
    if parts.netloc and parts.netloc not in [base.netloc for base in bases]:
        return None
    within = (parts.path.removeprefix(f"{base.path}/") for base in bases if parts.path.startswith(f"{base.path}/"))
    return f"/{next(within, parts.path.removeprefix('/'))}"
