"""Pictures that requests of other APIs start from: base64, data URLs, and pictures of this service."""

import re

from fastapi import Request

from imagegen.api.dependencies import Services, settings_of
from imagegen.api.native.images.uploads import decode_image
from imagegen.api.synchronous import read_picture
from imagegen.api.urls import path_within
from imagegen.core.errors import InvalidRequest
from imagegen.core.owner import Owner
from imagegen.core.sizes import Size

_PATH = re.compile(r"/images/([^/]+/[^/]+)")


async def input_picture(
    text: str, services: Services, who: Owner, request: Request | None, *, mask: bool = False
) -> tuple[bytes, Size]:
    """The bytes and the size of a picture in base64, of a data URL, or at `/images/...` of this service.

    `request`: tells the URLs of this service; None: there is none. Nothing is fetched from elsewhere.
    Raises InvalidImage, ImageTooLarge, TooManyUploads, InvalidRequest, ImageNotFound, StorageFailed.
    """
    most, checks = settings_of(services).max_input_pixels, services.checks
    prefix = request.scope["root_path"] if request else ""
    if not text.startswith(("http://", "https://", "/images/", f"{prefix}/images/")):
        return await decode_image(text, most, checks, mask=mask)
    path = _PATH.fullmatch(path_within(text, request) or "")
    if path is None:
        raise InvalidRequest("A picture must be base64, a data URL, or the URL of a picture of this service.")
    data = await read_picture(services.images, await services.service.picture(who, path[1]))
    return data, await checks.check(data, most, mask=mask)
