"""Pictures that requests of other APIs start from: base64, data URLs, and pictures of this service."""

import re
from urllib.parse import urlsplit

from imagegen.api.dependencies import Services, settings_of
from imagegen.api.native.images.uploads import decode_image
from imagegen.api.synchronous import read_picture
from imagegen.core.errors import InvalidRequest
from imagegen.core.owner import Owner
from imagegen.core.sizes import Size

_PATH = re.compile(r"/images/([^/]+/[^/]+)")


async def input_picture(
    text: str, services: Services, who: Owner, base_url: str, *, mask: bool = False
) -> tuple[bytes, Size]:
    """The bytes and the size of a picture in base64, of a data URL, or at `/images/...` of this service.

    `base_url`: the address under which the caller reaches the service; empty: none. Nothing is fetched from elsewhere.
    Raises InvalidImage, ImageTooLarge, TooManyUploads, InvalidRequest, ImageNotFound, StorageFailed.
    """
    most, checks = settings_of(services).max_input_pixels, services.checks
    if not text.startswith(("http://", "https://", "/images/")):
        return await decode_image(text, most, checks, mask=mask)
    url = urlsplit(text)
    path = _PATH.fullmatch(url.path)
    if path is None or (url.netloc and url.netloc != urlsplit(base_url).netloc):
        raise InvalidRequest("A picture must be base64, a data URL, or the URL of a picture of this service.")
    data = await read_picture(services.images, await services.service.picture(who, path[1]))
    return data, await checks.check(data, most, mask=mask)
