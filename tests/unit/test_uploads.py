"""Input pictures: complete files of the supported formats are accepted; others get a stable code."""

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

from imagegen.api.native.images.uploads import decode_base64
from imagegen.core.errors import ImageTooLarge, InvalidImage
from imagegen.tasks.inputs import check_mask, check_picture

MAX_PIXELS = 24_000_000


async def decode_image(text: str, max_pixels: int, *, mask: bool = False) -> bytes:
    """What the service does with a picture, in this process."""
    data = decode_base64(text)
    (check_mask if mask else check_picture)(data, max_pixels)
    return data


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """A small picture with several colours."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((33, 17)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


PNG, JPEG, WEBP = encoded("PNG"), encoded("JPEG"), encoded("WEBP")
AVIF, GIF, BMP, TIFF = encoded("AVIF"), encoded("GIF"), encoded("BMP"), encoded("TIFF", compression="tiff_lzw")
READ = {"PNG": PNG, "JPEG": JPEG, "WebP": WEBP, "AVIF": AVIF, "GIF": GIF, "BMP": BMP, "TIFF": TIFF}


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes whose header has this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated many times, each time in a few bytes."""
    progressive = encoded("JPEG", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    return progressive[:-2] + last * (count - progressive.count(b"\xff\xda")) + progressive[-2:]


# -- what is taken -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", READ.values(), ids=READ)
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


@pytest.mark.parametrize("picture", [PNG, encoded("BMP")[:-1] + b"\xfb", encoded("BMP")[:-1] + b"\xff"], ids=len)
async def test_base64_may_lack_its_padding_and_use_the_alphabet_of_urls(picture: bytes) -> None:
    usual = text_of(picture)
    for text in (usual.rstrip("="), base64.urlsafe_b64encode(picture).decode(), usual[:5] + " \n" + usual[5:] + "\n"):
        assert await decode_image(text, MAX_PIXELS) == picture


@pytest.mark.parametrize("prefix", ["DATA:IMAGE/PNG;BASE64,", "Data:image/png;Base64,", " \n\tdata:image/png;base64, "])
async def test_a_data_url_may_be_in_capitals_and_after_blanks(prefix: str) -> None:
    assert await decode_image(prefix + text_of(PNG), MAX_PIXELS) == PNG


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("AAAA%AAA", "character 5 is '%'"),
        ("data:image/png;base64,AA AA\n*AAA", "character 29 is '*'"),
        ("AA=A", "character 3 is '='"),
        ("AAé", "character 3 is '\\xe9'"),
        ("https://example.org/a.png", "character 6 is ':'"),
        ("AAAAA", "5 characters are cut off"),
        ("AAA==", "padded wrongly"),
    ],
)
async def test_a_wrong_character_is_named_with_its_place(text: str, said: str) -> None:
    with pytest.raises(InvalidImage) as raised:
        await decode_image(text, MAX_PIXELS)
    assert said in raised.value.detail


async def test_padding_without_end_takes_no_time() -> None:
    with pytest.raises(InvalidImage, match="padded wrongly"):
        await decode_image("A" + "=" * 1_000_000, MAX_PIXELS)


async def test_a_picture_may_have_as_many_pixels_as_the_limit_and_not_one_more() -> None:
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
        text_of(PNG).rstrip("=") + "===",
        text_of(PNG) + "AAAA",
        "%" + text_of(PNG),
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
        encoded("ICO"),
        encoded("TGA"),
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


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("picture", READ.values(), ids=READ)
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


@pytest.mark.parametrize("data", [encoded("ICO"), png_claiming(20_000, 20_000)])
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
@given(st.sampled_from(list(READ.values())).flatmap(_damaged))
def test_any_damage_is_answered_with_a_code_or_does_not_matter(data: bytes) -> None:
    assert outcome(text_of(data)) in {"taken", "invalid_image", "image_too_large"}


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask", [Image.new("L", (8, 8)), Image.new("1", (8, 8)), Image.new("RGBA", (8, 8))], ids=["L", "1", "RGBA"]
)
async def test_a_mask_that_selects_nothing_is_refused_with_advice(mask: Image.Image) -> None:
    mask.putalpha(255)
    mask.save(file := io.BytesIO(), "PNG")
    with pytest.raises(InvalidImage, match="white where the picture is repainted and black elsewhere, or"):
        await decode_image(text_of(file.getvalue()), MAX_PIXELS, mask=True)
    assert await decode_image(text_of(file.getvalue()), MAX_PIXELS)


async def test_a_mask_that_is_all_hole_or_has_one_is_taken() -> None:
    for colours, alpha in ((0, 128), (255, 255)):
        mask = Image.merge("LA", (Image.new("L", (8, 8), colours), Image.new("L", (8, 8), alpha)))
        if alpha == 128:
            mask.putpixel((0, 0), (colours, 0))
        mask.save(file := io.BytesIO(), "PNG")
        assert await decode_image(text_of(file.getvalue()), MAX_PIXELS, mask=True)


# -- files that cost more than they seem to ----------------------------------------------------------------------------


async def test_a_bmp_of_runs_is_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bytes that end a line draw nothing: 100 MB of them need 50 million iterations of a Python loop."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", undecoded)
    header = struct.pack("<IiiHHIIiiII", 40, 33, 17, 1, 8, 1, 0, 0, 0, 256, 0)
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + header + bytes(range(256)) * 4 + b"\0\0" * 1000
    with pytest.raises(InvalidImage, match="must not be compressed"):
        await decode_image(text_of(data), MAX_PIXELS)


async def test_a_tiff_in_a_rare_encoding_is_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("TIFF", compression="zstd")
    monkeypatch.setattr(ImageFile.ImageFile, "load", undecoded)
    with pytest.raises(InvalidImage, match="use LZW or Deflate"):
        await decode_image(text_of(data), MAX_PIXELS)


async def test_a_tiff_of_huge_tiles_is_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", undecoded)
    entries = {256: 33, 257: 17, 258: 8, 259: 8, 262: 1, 277: 1, 322: 60_000, 323: 60_000, 324: 8, 325: 100}
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    data = b"II*\0" + struct.pack("<I", 108) + bytes(100) + struct.pack("<H", len(entries)) + packed + bytes(4)
    with pytest.raises(ImageTooLarge, match="tiles"):
        await decode_image(text_of(data), MAX_PIXELS)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
async def test_a_bomb_of_another_format_is_known_by_its_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = {
        "GIF": b"GIF89a" + struct.pack("<HH", 20_000, 20_000) + GIF[10:],
        "BMP": BMP[:18] + struct.pack("<ii", 20_000, 20_000) + BMP[26:],
        "TIFF": encoded("TIFF").replace(struct.pack("<HHII", 256, 4, 1, 33), struct.pack("<HHII", 256, 4, 1, 2**28)),
    }
    monkeypatch.setattr(ImageFile.ImageFile, "load", undecoded)
    with pytest.raises(ImageTooLarge):
        await decode_image(text_of(claims[kind]), MAX_PIXELS)


async def test_a_jpeg_that_is_drawn_over_and_over_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await decode_image(text_of(jpeg_of_scans(20)), MAX_PIXELS)

    def never(*args: Any, **options: Any) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(Image, "open", never)
    with pytest.raises(InvalidImage, match="scans"):
        await decode_image(text_of(jpeg_of_scans(1000)), MAX_PIXELS)
