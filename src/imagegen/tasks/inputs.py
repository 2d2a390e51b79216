"""Checks input pictures."""

import io
import struct
from typing import Any

from PIL import Image

from imagegen.core.errors import ImageTooLarge, InvalidImage
from imagegen.loaders.pictures import FORMATS, read_mask

JPEG_START = b"\xff\xd8"
JPEG_SCAN = b"\xff\xda"
#: The most scans of a JPEG. Each scan of a progressive JPEG visits every block again, and can be eight bytes long:
#: 136 KB took 12 s. Editors write 10 scans, and a thumbnail in the metadata has others.
MAX_JPEG_SCANS = 64

#: The compressions that cameras, scanners and editors use in TIFF files. For others, Pillow uses less tested libraries.
TIFF_COMPRESSIONS = frozenset(
    {"raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg", "group3", "group4", "tiff_ccitt"}
)
_TILE_WIDTH, _TILE_LENGTH = 322, 323

#: What Pillow raises for a damaged file. Some of its readers check little before they compute.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    RuntimeError,
    TypeError,
    LookupError,
    ArithmeticError,
    struct.error,
)

_EMPTY_MASK = (
    "The mask selects nothing: it must be white where the picture is repainted and black elsewhere, or of one colour "
    "and transparent where it is repainted."
)


def check_picture(data: bytes, max_pixels: int) -> None:
    """Raises InvalidImage unless the picture is complete and readable, ImageTooLarge if it has too many pixels."""
    if data.startswith(JPEG_START) and data.count(JPEG_SCAN) > MAX_JPEG_SCANS:
        raise InvalidImage("The JPEG has more scans than any camera or editor writes.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # The header is checked first: half a megabyte of PNG can decode to hundreds of megapixels.
            if image.width * image.height > max_pixels:
                raise ImageTooLarge(f"The image has more than {max_pixels} pixels.")
            _check_encoding(image, max_pixels)
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLarge from None
    except _BROKEN:
        raise InvalidImage from None


def check_mask(data: bytes, max_pixels: int) -> None:
    """Like `check_picture`, and raises InvalidImage for a mask that selects nothing."""
    check_picture(data, max_pixels)
    try:
        empty = read_mask(data).getextrema() == (0, 0)
    except _BROKEN:
        raise InvalidImage from None
    if empty:
        raise InvalidImage(_EMPTY_MASK)


def _check_encoding(image: Any, max_pixels: int) -> None:
    """Raises InvalidImage or ImageTooLarge for encodings whose cost does not depend on the number of pixels."""
    if any(tile[0] == "bmp_rle" for tile in image.tile):
        # Pillow decodes the runs in a Python loop, and any number of them can be empty.
        raise InvalidImage("A BMP picture must not be compressed.")
    if image.format == "TIFF":
        if image.info.get("compression") not in TIFF_COMPRESSIONS:
            raise InvalidImage("The compression of the TIFF picture is not supported; use LZW or Deflate.")
        if image.tag_v2.get(_TILE_WIDTH, 0) * image.tag_v2.get(_TILE_LENGTH, 0) > max_pixels:
            raise ImageTooLarge(f"The image has tiles of more than {max_pixels} pixels.")
