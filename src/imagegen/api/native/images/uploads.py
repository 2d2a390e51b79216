"""Decodes and checks the input pictures of a body."""

import asyncio
import binascii
import re

from imagegen.core.errors import InvalidImage
from imagegen.core.sizes import Size
from imagegen.tasks.checking import PictureChecks

_DATA_URL = re.compile(r"\s{0,100}data:[\w.+/-]{0,100}(;[\w.=+-]{1,100}){0,4},", re.ASCII | re.IGNORECASE)
_BLANKS = b" \t\n\v\f\r"
#: Translates the URL-safe alphabet to the usual one.
_USUAL = bytes.maketrans(b"-_", b"+/")
_WRONG = re.compile(rb"[^A-Za-z0-9+/_\s-]")


async def decode_image(text: str, max_pixels: int, checks: PictureChecks, *, mask: bool = False) -> tuple[bytes, Size]:
    """The bytes and the size of a readable picture in base64, with or without a `data:` prefix.

    Raises InvalidImage, ImageTooLarge or TooManyUploads. `mask`: the picture is a mask, which must select something.
    """
    data = await asyncio.to_thread(decode_base64, text)
    return data, await checks.check(data, max_pixels, mask=mask)


def decode_base64(text: str) -> bytes:
    """The bytes that a text or a `data:` URL holds: padded or not, in the usual alphabet or that of URLs.

    Raises InvalidImage, which names the first wrong character.
    """
    prefix = _DATA_URL.match(text)
    start = prefix.end() if prefix else 0
    try:
        encoded = text[start:].encode("ascii")
    except UnicodeEncodeError as error:
        raise _wrong_character(text, start + error.start) from None
    if found := _WRONG.search(encoded, 0, len(encoded.rstrip(b"=" + _BLANKS))):
        raise _wrong_character(text, start + found.start())
    digits = encoded.translate(_USUAL, _BLANKS)
    unpadded = digits.rstrip(b"=")
    padding = -len(unpadded) % 4
    if padding == 3 or len(digits) - len(unpadded) not in (0, padding):
        raise InvalidImage(f"The image is not valid base64: {len(unpadded)} characters are cut off or padded wrongly.")
    try:
        return binascii.a2b_base64(unpadded + b"=" * padding, strict_mode=True)
    except binascii.Error:
        raise InvalidImage("The image is not valid base64.") from None


def _wrong_character(text: str, index: int) -> InvalidImage:
    return InvalidImage(f"The image is not valid base64: character {index + 1} is {text[index]!a}.")
