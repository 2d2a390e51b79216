"""Decodes and checks the input pictures of a body."""

import asyncio
import binascii
import re

from imagegen.core.errors import InvalidImage
from imagegen.tasks.inputs import check_picture

_DATA_URL = re.compile(r"data:[\w.+/-]{0,100}(;[\w.=+-]{1,100}){0,4},")


async def decode_image(text: str, max_pixels: int) -> bytes:
    """The bytes of a readable picture in base64, with or without a `data:` prefix. Runs in a thread.

    Raises InvalidImage or ImageTooLarge.
    """
    return await asyncio.to_thread(_decode, text, max_pixels)


def _decode(text: str, max_pixels: int) -> bytes:
    prefix = _DATA_URL.match(text)
    encoded = text[prefix.end() :] if prefix else text
    try:
        data = binascii.a2b_base64("".join(encoded.split()).encode("ascii"), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise InvalidImage("The image is not valid base64.") from None
    check_picture(data, max_pixels)
    return data
