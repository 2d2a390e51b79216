"""Checks input pictures."""

import io

from PIL import Image, UnidentifiedImageError

from imagegen.core.errors import ImageTooLarge, InvalidImage

#: Pillow opens 43 formats by default; these are the ones that callers send.
FORMATS = ("PNG", "JPEG", "WEBP")

JPEG_START = b"\xff\xd8"
JPEG_SCAN = b"\xff\xda"
#: Each scan of a progressive JPEG visits every block again, and a scan can be eight bytes long: 136 KB took 12 s.
#: Editors write 10 scans; a thumbnail in the metadata has its own.
MAX_JPEG_SCANS = 64


def check_picture(data: bytes, max_pixels: int) -> None:
    """Raises InvalidImage unless the picture is complete and readable, ImageTooLarge if it has too many pixels."""
    if data.startswith(JPEG_START) and data.count(JPEG_SCAN) > MAX_JPEG_SCANS:
        raise InvalidImage("The JPEG has more scans than any camera or editor writes.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # The header is checked first: half a megabyte of PNG can decode to hundreds of megapixels.
            if image.width * image.height > max_pixels:
                raise ImageTooLarge(f"The image has more than {max_pixels} pixels.")
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLarge from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError):
        raise InvalidImage from None
