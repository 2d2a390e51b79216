"""Encodes pictures as PNG, JPEG, WebP or AVIF files, with the receipt in their metadata."""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image, PngImagePlugin

from imagegen.core.errors import EncodingFailed
from imagegen.core.receipt import receipt_of
from imagegen.core.task import GenerationTask, ImageFormat, Output, Pixels
from imagegen.storage.png import encode_png

#: Marks the receipt: the keyword of a PNG text chunk, or the beginning of an EXIF comment.
KEYWORD = "imagegen"

#: Default quality of lossy formats. Pillow's default of 75 is visible in flat colours.
QUALITY: Mapping[ImageFormat, int] = {ImageFormat.JPEG: 90, ImageFormat.WEBP: 90, ImageFormat.AVIF: 75}

#: The EXIF directory, its tag UserComment, and the prefix of a comment in UTF-16 (EXIF 2.3).
_EXIF_IFD, _USER_COMMENT, _UNICODE = 0x8769, 0x9286, b"UNICODE\0"

#: Bytes of EXIF that fit into a JPEG segment of 64 KiB. In some scripts the longest prompts need more; the receipt is
#: then left out.
_MAX_JPEG_EXIF = 65_000


def encoder_of(task: GenerationTask) -> Callable[[Pixels], bytes]:
    """The function that encodes the task's pictures, each with its own receipt."""
    receipt = receipt_of(task)
    assert receipt is not None  # its pictures are made

    def encoded(pixels: Pixels) -> bytes:
        own = receipt.of_picture(pixels.seed, pixels.sha256)
        return encode(pixels, task.output, own.model_dump(mode="json", exclude_none=True))

    return encoded


def encode(pixels: Pixels, output: Output, receipt: Mapping[str, Any]) -> bytes:
    """The bytes of a picture's file, in the requested format. Raises EncodingFailed."""
    note = json.dumps({KEYWORD: receipt}, ensure_ascii=False, separators=(",", ":")) if output.metadata else None
    if output.format is ImageFormat.PNG:
        text = {KEYWORD: note} if note else None
        return encode_png(pixels.rgb, pixels.width, pixels.height, pixels.alpha, text)
    return _LOSSY[output.format](_image(pixels), output.quality or QUALITY[output.format], note)


def _image(pixels: Pixels) -> Image.Image:
    size = (pixels.width, pixels.height)
    image = Image.frombytes("RGB", size, pixels.rgb)
    if pixels.alpha is not None:
        image.putalpha(Image.frombytes("L", size, pixels.alpha))
    return image


def _jpeg(image: Image.Image, quality: int, note: str | None) -> bytes:
    if image.mode == "RGBA":  # JPEG has no alpha channel: transparent parts become white
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    exif = _exif(note)
    return _saved(image, "JPEG", quality=quality, exif=exif if len(exif) <= _MAX_JPEG_EXIF else b"")


def _webp(image: Image.Image, quality: int, note: str | None) -> bytes:
    return _saved(image, "WEBP", quality=quality, exif=_exif(note))


def _avif(image: Image.Image, quality: int, note: str | None) -> bytes:
    # Speed 8 of 10 takes half the time of Pillow's default of 6; the file is 2 % larger.
    return _saved(image, "AVIF", quality=quality, speed=8, max_threads=1, exif=_exif(note))


_LOSSY: Mapping[ImageFormat, Callable[[Image.Image, int, str | None], bytes]] = {
    ImageFormat.JPEG: _jpeg,
    ImageFormat.WEBP: _webp,
    ImageFormat.AVIF: _avif,
}


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    try:
        image.save(file := io.BytesIO(), kind, **options)
    except (OSError, ValueError) as error:
        raise EncodingFailed from error
    return file.getvalue()


def _exif(note: str | None) -> bytes:
    if note is None:
        return b""
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _UNICODE + note.encode("utf-16-be")
    return exif.tobytes()


def read_receipt(data: bytes) -> dict[str, Any] | None:
    """The receipt that `encode` wrote into a file; None: it has none. Raises OSError if it is not a picture."""
    note = read_text(data, KEYWORD)
    try:
        receipt = json.loads(note)[KEYWORD] if note else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return receipt if isinstance(receipt, dict) else None


def read_text(data: bytes, keyword: str) -> str | None:
    """The text chunk of a PNG with this keyword, or the EXIF comment of another file; None if there is none.

    Raises OSError if it is not a picture of one of our formats.
    """
    with Image.open(io.BytesIO(data), formats=[word.upper() for word in ImageFormat]) as image:
        return image.text.get(keyword) if isinstance(image, PngImagePlugin.PngImageFile) else _comment(image)


def _comment(image: Image.Image) -> str | None:
    comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if not isinstance(comment, bytes) or not comment.startswith(_UNICODE):
        return None
    return comment.removeprefix(_UNICODE).decode("utf-16-be", errors="replace")
