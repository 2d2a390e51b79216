"""Reading pictures: transparency, masks, deep greys, colour profiles, formats."""

import io
import struct
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from imagegen.core.errors import InvalidImage
from imagegen.core.sizes import Size
from imagegen.loaders.pictures import picture_size, read_image, read_mask, transparent_part


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image: Any) -> Any:
    return np.asarray(image)


# -- transparency ------------------------------------------------------------------------------------------------------


def cut_out() -> Image.Image:
    """Left: an opaque red. Middle: half transparent. Right: a fully transparent hidden colour."""
    image = Image.new("RGBA", (9, 3), (200, 0, 0, 255))
    image.paste((200, 0, 0, 128), (3, 0, 6, 3))
    image.paste((1, 2, 3, 0), (6, 0, 9, 3))
    return image


def palette_with(transparency: Any) -> bytes:
    """Left: red. Right: black, which is transparent in the palette."""
    image = Image.new("P", (6, 3), 0)
    image.putpalette([200, 0, 0, 0, 0, 0])
    image.paste(1, (3, 0, 6, 3))
    return file_of(image, transparency=transparency)


def test_transparent_pixels_become_white() -> None:
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        read = pixels(read_image(file_of(cut_out(), kind, **options)))
        assert read[0, [0, 4, 8]].tolist() == [[200, 0, 0], [227, 127, 127], [255, 255, 255]], kind


@pytest.mark.parametrize("transparency", [1, b"\xff\0"])
def test_a_palette_may_be_transparent(transparency: Any) -> None:
    read = pixels(read_image(palette_with(transparency)))
    assert read[0, [0, 5]].tolist() == [[200, 0, 0], [255, 255, 255]]


def test_grey_may_be_transparent() -> None:
    image = Image.new("LA", (2, 1), (90, 255))
    image.putpixel((1, 0), (90, 0))
    assert pixels(read_image(file_of(image)))[0].tolist() == [[90] * 3, [255] * 3]
    palette = image.convert("PA")
    palette.putpixel((1, 0), (90, 0))
    assert pixels(read_image(file_of(palette, "TIFF")))[0].tolist() == [[90] * 3, [255] * 3]


@pytest.mark.parametrize(("mode", "key"), [("RGB", (1, 2, 3)), ("L", 7), ("1", 0), ("I;16", 7)])
def test_one_colour_may_be_the_transparent_one(mode: str, key: Any) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), (200, 0, 0) if mode == "RGB" else 255)
    read = pixels(read_image(file_of(image, transparency=key)))
    assert read[0, 0].tolist() == [255, 255, 255]


def test_an_opaque_alpha_changes_no_pixel() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    noise[..., 3] = 255
    assert np.array_equal(pixels(read_image(file_of(Image.fromarray(noise)))), noise[..., :3])


# -- masks -------------------------------------------------------------------------------------------------------------


def test_a_mask_is_its_brightness_times_its_alpha() -> None:
    mask = Image.new("RGBA", (3, 1), (255, 255, 255, 255))
    mask.putpixel((1, 0), (0, 0, 0, 255))
    mask.putpixel((2, 0), (255, 255, 255, 0))
    assert pixels(read_mask(file_of(mask)))[0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("colour", ["white", "black", (90, 30, 200)])
def test_a_mask_of_one_brightness_is_repainted_where_it_is_transparent(colour: Any) -> None:
    mask = Image.new("RGB", (3, 1), colour)
    mask.putalpha(Image.fromarray(np.array([[255, 0, 127]], np.uint8)))
    assert pixels(read_mask(file_of(mask)))[0].tolist() == [0, 255, 128]


@pytest.mark.parametrize("alpha", [255, 254])
def test_a_mask_of_one_brightness_and_one_alpha_is_its_brightness(alpha: int) -> None:
    assert pixels(read_mask(file_of(Image.new("RGBA", (1, 1), (255, 255, 255, alpha))))).item() == alpha


def test_a_mask_may_be_a_palette_with_a_hole() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 255, 255, 255, 255, 255])
    image.putpixel((1, 0), 1)
    assert pixels(read_mask(file_of(image, transparency=1)))[0].tolist() == [0, 255]


# -- greys of more than 8 bits -----------------------------------------------------------------------------------------

LEVELS = np.array([[0, 257, 32_896, 65_535]])
EIGHT_BITS = [0, 1, 128, 255]


def test_of_a_mask_with_a_picture_the_transparent_part_is_repainted() -> None:
    read = pixels(read_mask(transparent_part(file_of(cut_out()))))
    assert read[0, [0, 4, 8]].tolist() == [0, 127, 255]
    turned = Image.new("RGBA", (2, 1), (9, 9, 9, 255))
    turned.putpixel((1, 0), (200, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    assert pixels(read_mask(transparent_part(file_of(turned, exif=exif)))).tolist() == [[0], [255]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_mask_without_a_transparent_part_is_refused(mode: str) -> None:
    with pytest.raises(InvalidImage, match="no transparent part"):
        transparent_part(file_of(Image.new(mode, (2, 2), "white")))


@pytest.mark.parametrize("read", [lambda data: read_image(data).convert("L"), read_mask], ids=["image", "mask"])
@pytest.mark.parametrize(
    ("dtype", "kind"), [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF"), ("<i4", "TIFF")], ids=str
)
def test_deep_greys_are_scaled(read: Callable[[bytes], Any], dtype: str, kind: str) -> None:
    data = file_of(Image.fromarray(LEVELS.astype(dtype)), kind)
    assert pixels(read(data))[0].tolist() == EIGHT_BITS


def test_greys_of_32_bits_are_scaled() -> None:
    data = file_of(Image.fromarray((LEVELS << 15).astype("<i4")), "TIFF")
    assert pixels(read_mask(data))[0].tolist() == EIGHT_BITS


def test_floats_are_scaled() -> None:
    for white, odd in ((1, np.nan), (255, -7)):
        data = file_of(Image.fromarray(np.array([[0, 0.5 * white, white, odd]], np.float32)), "TIFF")
        assert pixels(read_mask(data))[0].tolist() == [0, 128, 255, 0]


# -- colour profiles ---------------------------------------------------------------------------------------------------


def profile_of(red: Any, green: Any, blue: Any, gamma: float = 0) -> bytes:
    """An ICC profile of three primaries (CIE XYZ under D50). `gamma` 0: the curve of sRGB."""

    def fixed(*numbers: float) -> bytes:
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    def xyz(*numbers: float) -> bytes:
        return b"XYZ \0\0\0\0" + fixed(*numbers)

    def text(words: str) -> bytes:
        encoded = words.encode("utf-16-be")
        return b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(encoded), 28) + encoded

    curve = [gamma] if gamma else [2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045]
    kind = 0 if gamma else 3
    tone = b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + fixed(*curve)
    tags = {
        b"desc": text("a test"),
        b"cprt": text("none"),
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(*red),
        b"gXYZ": xyz(*green),
        b"bXYZ": xyz(*blue),
        b"rTRC": tone,
        b"gTRC": tone,
        b"bTRC": tone,
    }
    table, data = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(value))
        data += value
    size = struct.pack(">I", 128 + len(table) + len(data))
    header = size + b"\0\0\0\0\4\x30\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + table + data


DISPLAY_P3 = profile_of((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

#: What a phone writes for the red that sRGB calls (250, 60, 30).
P3_RED = (230, 78, 50)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), *product(["PNG", "WEBP", "AVIF", "TIFF"], ["RGB", "RGBA"])],
)
def test_a_photo_of_a_wider_gamut_is_converted(kind: str, mode: str) -> None:
    options = {"quality": 100} if kind in ("JPEG", "WEBP", "AVIF") else {}
    photo = Image.new("RGB", (16, 16), P3_RED).convert(mode)
    read = pixels(read_image(file_of(photo, kind, icc_profile=DISPLAY_P3, **options)))
    assert np.abs(read.astype(int) - (250, 60, 30)).max() <= 4


def test_a_palette_is_converted_as_well() -> None:
    photo = Image.new("RGB", (16, 16), P3_RED).convert("P", palette=Image.Palette.ADAPTIVE)
    read = pixels(read_image(file_of(photo, icc_profile=DISPLAY_P3)))
    assert np.abs(read.astype(int) - (250, 60, 30)).max() <= 2


def test_grey_is_converted_by_its_curve() -> None:
    """A picture of linear grey: half of the light is level 188 of sRGB."""
    grey = ImageCms.ImageCmsProfile(io.BytesIO(grey_profile(1.0)))
    data = file_of(Image.new("L", (4, 4), 128), icc_profile=grey.tobytes())
    assert np.abs(pixels(read_image(data)).astype(int) - 188).max() <= 1


def grey_profile(gamma: float) -> bytes:
    """The same for one channel: the red curve of `profile_of`, and no primaries."""
    data = profile_of((0.4, 0.2, 0), (0.4, 0.7, 0.1), (0.1, 0.1, 0.7), gamma)
    return data[:16] + b"GRAY" + data[20:].replace(b"rTRC", b"kTRC")


SRGB_BY_HAND = profile_of((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))


@pytest.mark.parametrize("profile", [SRGB, SRGB_BY_HAND], ids=["of lcms", "by hand"])
def test_a_photo_in_srgb_keeps_every_pixel(profile: bytes) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(pixels(read_image(file_of(Image.fromarray(noise), icc_profile=profile))), noise)


@pytest.mark.parametrize(
    "profile",
    [b"x", b"not a profile" * 40, DISPLAY_P3[:200], SRGB[:128], grey_profile(1.0), DISPLAY_P3 + bytes(9 * 2**20)],
    ids=["a byte", "text", "cut off", "a header", "of grey", "huge"],
)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_broken_profile_is_ignored(profile: bytes, kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True}
    plain, tagged = file_of(noise, kind, **options), file_of(noise, kind, icc_profile=profile, **options)
    assert np.array_equal(pixels(read_image(tagged)), pixels(read_image(plain)))


def test_cmyk_without_a_profile_is_read() -> None:
    data = file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(pixels(read_image(data)).astype(int) - (255, 0, 0)).max() <= 3


# -- formats -----------------------------------------------------------------------------------------------------------


def scene() -> Image.Image:
    """A picture without any symmetry."""
    image = Image.new("RGB", (24, 16), "red")
    image.paste("blue", (12, 0, 24, 16))
    image.paste("lime", (0, 0, 12, 5))
    return image


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_each_format_is_read_pixel_for_pixel(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(read_image(file_of(scene(), kind, **options))), pixels(scene()))


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_each_lossy_format_is_read(kind: str) -> None:
    read = pixels(read_image(file_of(scene(), kind, quality=100, subsampling="4:4:4" if kind == "AVIF" else 0)))
    assert np.abs(read.astype(int) - pixels(scene())).mean() < 3


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_tiff_is_read_as_programs_write_it(compression: str) -> None:
    read = pixels(read_image(file_of(scene(), "TIFF", compression=compression)))
    assert np.abs(read.astype(int) - pixels(scene())).mean() < (6 if compression == "jpeg" else 0.001)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "AVIF"])
def test_the_first_frame_or_page_is_read(kind: str) -> None:
    black = Image.new("RGB", (24, 16), "black")
    read = pixels(read_image(file_of(scene(), kind, save_all=True, append_images=[black])))
    assert np.abs(read.astype(int) - pixels(scene())).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_every_format_is_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind in ("JPEG", "AVIF") else {"lossless": True} if kind == "WEBP" else {}
    with Image.open(io.BytesIO(file_of(scene(), "PNG", exif=exif))) as image:
        expected = ImageOps.exif_transpose(image)
    data = file_of(scene(), kind, exif=exif, **options)
    assert picture_size(data) == Size(*expected.size)
    assert np.abs(pixels(read_image(data)).astype(int) - pixels(expected)).mean() < 12
    assert read_mask(data).size == expected.size
