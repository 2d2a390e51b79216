"""Input pictures: whole PNG, JPEG and WebP files come through as they are; everything else has a stable code."""

import asyncio
import base64
import io
import struct
import zlib
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from imagegen.api.native.images.uploads import decode_image
from imagegen.core.errors import ImageTooLarge, InvalidImage

MAX_PIXELS = 24_000_000


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """A small picture that is not all of one colour."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((33, 17)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


PNG, JPEG, WEBP = encoded("PNG"), encoded("JPEG"), encoded("WEBP")


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that says it is that large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again, each time for a few bytes."""
    progressive = encoded("JPEG", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    return progressive[:-2] + last * (count - progressive.count(b"\xff\xda")) + progressive[-2:]


# -- what is taken -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", [PNG, JPEG, WEBP], ids=["PNG", "JPEG", "WebP"])
async def test_a_picture_comes_through_byte_for_byte(picture: bytes) -> None:
    assert await decode_image(text_of(picture), MAX_PIXELS) == picture


@pytest.mark.parametrize(
    "picture",
    [
        encoded("PNG", "RGBA"),
        encoded("PNG", "L"),
        encoded("PNG", "P"),
        encoded("PNG", "1"),
        encoded("JPEG", "CMYK"),
        encoded("JPEG", "L"),
        encoded("JPEG", progressive=True),
        encoded("WEBP", "RGBA", lossless=True),
    ],
)
async def test_all_colour_modes_of_these_formats_are_taken(picture: bytes) -> None:
    assert await decode_image(text_of(picture), MAX_PIXELS) == picture


@pytest.mark.parametrize(
    "prefix",
    [
        "data:image/png;base64,",
        "data:image/jpeg;base64,",
        "data:;base64,",
        "data:application/octet-stream;base64,",
        "data:image/png;charset=utf-8;base64,",
        "data:image/svg+xml;base64,",
    ],
)
async def test_a_data_url_is_read_whatever_type_it_claims(prefix: str) -> None:
    assert await decode_image(prefix + text_of(PNG), MAX_PIXELS) == PNG


@pytest.mark.parametrize("separator", ["\n", "\r\n", " ", "\t"])
async def test_lines_and_blanks_do_not_matter(separator: str) -> None:
    encoded_text = text_of(PNG)
    lines = [encoded_text[start : start + 76] for start in range(0, len(encoded_text), 76)]
    assert await decode_image(separator + separator.join(lines) + separator, MAX_PIXELS) == PNG


async def test_a_picture_may_have_as_many_pixels_as_the_limit_says_and_not_one_more() -> None:
    assert await decode_image(text_of(PNG), 33 * 17) == PNG
    with pytest.raises(ImageTooLarge, match="more than 560 pixels"):
        await decode_image(text_of(PNG), 33 * 17 - 1)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "not base64!",
        "data:image/png;base64,",
        "data:image/png;base64",
        "data:",
        text_of(PNG)[:-3],
        text_of(PNG) + "=",
        text_of(PNG) + "AAAA",
        "%" + text_of(PNG),
        text_of(PNG).replace("+", "-").replace("/", "_") + "-_",
        "bild: " + text_of(PNG),
        "\ud800",
        "é" + text_of(PNG),
        "\0",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
    ],
)
async def test_broken_base64_is_no_image(text: str) -> None:
    with pytest.raises(InvalidImage):
        await decode_image(text, MAX_PIXELS)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'


@pytest.mark.parametrize(
    "data",
    [
        encoded("GIF"),
        encoded("BMP"),
        encoded("TIFF"),
        encoded("ICO"),
        encoded("PPM"),
        SVG,
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<!doctype html><title>404</title>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"RIFF\x00\x00\x00\x00WEBP",
        b"x",
        bytes(1000),
    ],
)
async def test_no_other_kind_of_file_is_opened(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        await decode_image(text_of(data), MAX_PIXELS)


@pytest.mark.parametrize("picture", [PNG, JPEG, WEBP], ids=["PNG", "JPEG", "WebP"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
async def test_a_truncated_picture_is_no_image(picture: bytes, share: float) -> None:
    with pytest.raises(InvalidImage):
        await decode_image(text_of(picture[: int(len(picture) * share)]), MAX_PIXELS)


def undecoded(*_: object) -> NoReturn:
    raise AssertionError("the picture was decoded")


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (5000, 5000), (2**31 - 1, 1), (1, 30_000_000)])
async def test_a_bomb_is_known_by_its_header(monkeypatch: pytest.MonkeyPatch, width: int, height: int) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", undecoded)
    with pytest.raises(ImageTooLarge):
        await decode_image(text_of(png_claiming(width, height)), MAX_PIXELS)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
async def test_pillows_own_bound_need_not_be_a_warning_to_count() -> None:
    with pytest.raises(ImageTooLarge):
        await decode_image(text_of(png_claiming(10_000, 10_000)), MAX_PIXELS)


async def test_a_picture_that_claims_more_than_it_holds_is_no_image() -> None:
    with pytest.raises(InvalidImage):
        await decode_image(text_of(png_claiming(1000, 1000)), MAX_PIXELS)


@pytest.mark.parametrize("data", [encoded("GIF"), png_claiming(20_000, 20_000)])
async def test_a_refusal_repeats_nothing_of_what_was_sent(data: bytes) -> None:
    with pytest.raises((InvalidImage, ImageTooLarge)) as raised:
        await decode_image(text_of(data), MAX_PIXELS)
    assert text_of(data)[:8] not in raised.value.detail
    assert len(raised.value.detail) < 100


# -- anything ----------------------------------------------------------------------------------------------------------


def outcome(text: str) -> str:
    try:
        asyncio.run(decode_image(text, 10_000))
    except (InvalidImage, ImageTooLarge) as error:
        return error.code
    return "taken"


@given(st.text(max_size=100))
def test_any_text_is_answered_with_a_code(text: str) -> None:
    assert outcome(text) == "invalid_image"


def _damaged(picture: bytes) -> st.SearchStrategy[bytes]:
    places = st.lists(st.tuples(st.integers(0, len(picture) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    return places.map(lambda changes: _with(picture, changes))


def _with(picture: bytes, changes: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(picture)
    for place, value in changes:
        damaged[place] = value
    return bytes(damaged)


# Pillow warns of odd metadata; the service does not make errors of warnings.
@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.sampled_from([PNG, JPEG, WEBP]).flatmap(_damaged))
def test_any_damage_is_answered_with_a_code_or_does_not_matter(data: bytes) -> None:
    assert outcome(text_of(data)) in {"taken", "invalid_image", "image_too_large"}


async def test_a_jpeg_that_is_drawn_over_and_over_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await decode_image(text_of(jpeg_of_scans(20)), MAX_PIXELS)

    def never(*args: Any, **options: Any) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(Image, "open", never)
    with pytest.raises(InvalidImage, match="scans"):
        await decode_image(text_of(jpeg_of_scans(1000)), MAX_PIXELS)
