"""Encoded pictures: their pixels, and the receipt inside."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagegen.core.errors import EncodingFailed
from imagegen.core.task import ImageFormat, Output, Pixels
from imagegen.storage.encoding import encode, encoder_of, read_receipt
from imagegen.testing.engine import SCRIPTED
from tests.unit.conftest import grey, task_of

RECEIPT = {"model": "tiny", "request": {"prompt": 'ein Kreis, 红色圆圈, 🟥\n"quoted"', "seed": 7}}
LOSSY = [ImageFormat.JPEG, ImageFormat.WEBP, ImageFormat.AVIF]
ALPHA = [ImageFormat.PNG, ImageFormat.WEBP, ImageFormat.AVIF]


def drawing(width: int = 48, height: int = 32, *, transparent: bool = False) -> Pixels:
    """Soft colours; the left half is transparent."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 4, y * 6, 255 - x * 3], axis=-1).astype(np.uint8)
    alpha = np.where(x < width // 2, 0, 255).astype(np.uint8).tobytes() if transparent else None
    return Pixels(width=width, height=height, seed=7, rgb=rgb.tobytes(), alpha=alpha)


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def array(image: Image.Image) -> Any:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ImageFormat)
def test_a_file_is_of_its_format_and_shows_the_picture(kind: ImageFormat) -> None:
    pixels = drawing()
    image = opened(encode(pixels, Output(format=kind), RECEIPT))
    assert image.format == kind.upper()
    seen = array(image.convert("RGB"))
    assert np.abs(seen - np.frombuffer(pixels.rgb, np.uint8).reshape(32, 48, 3)).mean() < 4


def test_png_is_lossless() -> None:
    assert opened(encode(drawing(), Output(), RECEIPT)).tobytes() == drawing().rgb


@pytest.mark.parametrize("kind", LOSSY)
def test_quality_is_a_matter_of_bytes(kind: ImageFormat) -> None:
    low, high = (len(encode(drawing(), Output(format=kind, quality=quality), {})) for quality in (5, 95))
    assert low < high


@pytest.mark.parametrize("kind", ALPHA)
def test_transparent_pixels_stay_transparent(kind: ImageFormat) -> None:
    image = opened(encode(drawing(transparent=True), Output(format=kind), {}))
    assert image.mode == "RGBA"
    alpha = array(image)[..., 3]
    assert (alpha[:, :20] < 8).all()
    assert (alpha[:, 28:] > 247).all()


def test_a_jpeg_is_white_where_it_is_transparent() -> None:
    image = opened(encode(drawing(transparent=True), Output(format=ImageFormat.JPEG), {}))
    assert image.mode == "RGB"
    assert (array(image)[:, :16] > 240).all()


@pytest.mark.parametrize("kind", ImageFormat)
def test_a_receipt_can_be_read_from_every_format(kind: ImageFormat) -> None:
    assert read_receipt(encode(drawing(), Output(format=kind), RECEIPT)) == RECEIPT


@pytest.mark.parametrize("kind", ImageFormat)
def test_without_metadata_a_file_has_no_receipt(kind: ImageFormat) -> None:
    data = encode(drawing(), Output(format=kind, metadata=False), RECEIPT)
    assert read_receipt(data) is None
    assert b"tiny" not in data
    assert b"t\0i\0n\0y" not in data


@pytest.mark.parametrize("kind", ImageFormat)
def test_a_receipt_changes_no_pixel(kind: ImageFormat) -> None:
    bare, noted = (encode(drawing(), Output(format=kind, metadata=it), RECEIPT) for it in (False, True))
    assert opened(bare).tobytes() == opened(noted).tobytes()


@pytest.mark.parametrize("kind", ImageFormat)
def test_the_longest_prompts_of_any_script_break_no_file(kind: ImageFormat) -> None:
    receipt = {"prompt": "🟥" * 8192, "negative_prompt": "🟦" * 8192}
    data = encode(drawing(), Output(format=kind), receipt)
    opened(data)
    # A JPEG segment ends at 64 KiB: that one file does without.
    assert read_receipt(data) == (None if kind is ImageFormat.JPEG else receipt)


def test_the_receipt_of_each_picture_is_for_that_picture_alone() -> None:
    request = task_of(1).request.evolve(seed=7, batch_size=2)
    encoded = encoder_of(task_of(1, request=request, provenance=SCRIPTED))
    receipts = [read_receipt(encoded(grey(seed))) for seed in (7, 8)]
    assert [(it["request"]["seed"], it["request"]["batch_size"]) for it in receipts if it] == [(7, 1), (8, 1)]
    assert all(it and it["pixels_sha256"] == grey().sha256 for it in receipts)


def test_a_picture_that_its_format_cannot_store_is_an_error_with_a_code() -> None:
    too_wide = Pixels(width=16_384, height=1, seed=7, rgb=bytes(3 * 16_384))
    with pytest.raises(EncodingFailed):
        encode(too_wide, Output(format=ImageFormat.WEBP), RECEIPT)


@pytest.mark.parametrize("note", ["", "null", "[]", "{}", '{"imagegen": 7}', "{" * 5000, "[" * 100_000, '"imagegen"'])
def test_a_note_that_is_no_receipt_is_none(note: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    (info := PngInfo()).add_itxt("imagegen", note)
    Image.new("RGB", (2, 2)).save(file := io.BytesIO(), "PNG", pnginfo=info)
    assert read_receipt(file.getvalue()) is None


def test_the_hash_of_pixels_includes_transparency() -> None:
    solid, clear = drawing(), drawing(transparent=True)
    assert solid.rgb == clear.rgb
    assert solid.sha256 != clear.sha256
