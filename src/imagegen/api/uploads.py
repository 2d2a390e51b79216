"""Input pictures: base64 to checked bytes."""

import asyncio
import binascii
import io
import re

from PIL import Image, UnidentifiedImageError

from imagegen.core.errors import ImageTooLarge, InvalidImage

FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:[\w.+/-]{0,100}(;[\w.=+-]{1,100}){0,4},")


async def decode_image(text: str, max_pixels: int) -> bytes:
    """The bytes of a whole, readable picture, from base64 with or without a `data:` prefix. Off the loop."""
    return await asyncio.to_thread(_decode, text, max_pixels)


def _decode(text: str, max_pixels: int) -> bytes:
    prefix = _DATA_URL.match(text)
    encoded = text[prefix.end() :] if prefix else text
    try:
        data = binascii.a2b_base64("".join(encoded.split()).encode("ascii"), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise InvalidImage("The image is not valid base64.") from None
    _check(data, max_pixels)
    return data


def _check(data: bytes, max_pixels: int) -> None:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # The header first: half a megabyte of PNG can unfold to hundreds of megapixels.
            if image.width * image.height > max_pixels:
                raise ImageTooLarge(f"The image has more than {max_pixels} pixels.")
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLarge from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError):
        raise InvalidImage from None
