"""The PNG encoder: every reader gets the original pixels."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from imagegen.storage.png import encode_png

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3))
PICTURES = SHAPES.flatmap(lambda shape: arrays.arrays(np.uint8, shape))


def encoded(pixels: Pixels, text: dict[str, str] | None = None) -> bytes:
    height, width, _ = pixels.shape
    return encode_png(pixels.tobytes(), width, height, text=text)


def decoded(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.load()
        return image


def noise(width: int, height: int) -> Pixels:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(PICTURES)
def test_every_pixel_is_the_same_after_decoding(pixels: Pixels) -> None:
    image = decoded(encoded(pixels))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (255, 3), (257, 2), (1365, 4), (768, 9), (1, 1024), (8192, 1)],
)
def test_every_size_is_the_same_after_decoding(width: int, height: int) -> None:
    pixels = noise(width, height)
    image = decoded(encoded(pixels))
    assert image.size == (width, height)
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255])
def test_differences_wrap_around(value: int) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, ::2] = value
    assert np.array_equal(np.asarray(decoded(encoded(pixels))), pixels)


def test_every_chunk_has_its_checksum() -> None:
    with Image.open(io.BytesIO(encoded(noise(9, 5), {"seed": "7"}))) as image:
        image.verify()


def test_a_flipped_bit_shows() -> None:
    png = bytearray(encoded(noise(9, 5)))
    png[len(png) // 2] ^= 1
    with pytest.raises((OSError, SyntaxError)):
        decoded(bytes(png))


def test_texts_come_back_in_any_script() -> None:
    text = {"prompt": "ein roter Kreis, 红色圆圈, 🟥", "seed": "7", "Größe": "", "lines": "a\nb"}
    assert decoded(encoded(noise(3, 3), text)).text == text  # type: ignore[attr-defined]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200))
def test_any_prompt_comes_back(prompt: str) -> None:
    assert decoded(encoded(noise(1, 1), {"prompt": prompt})).text == {"prompt": prompt}  # type: ignore[attr-defined]


def test_texts_change_no_pixel() -> None:
    pixels = noise(5, 4)
    assert np.array_equal(np.asarray(decoded(encoded(pixels, {"a": "b"}))), pixels)


def test_the_same_pixels_give_the_same_file() -> None:
    assert encoded(noise(64, 48)) == encoded(noise(64, 48))


def test_a_smooth_picture_is_about_as_small_as_pillow_makes_it() -> None:
    y, x = np.mgrid[0:384, 0:512] / 80
    waves = [np.sin(x + channel) * np.cos(y - channel) for channel in range(3)]
    pixels = ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)
    theirs = io.BytesIO()
    Image.fromarray(pixels).save(theirs, "PNG")
    assert len(encoded(pixels)) <= 1.5 * len(theirs.getvalue())


@pytest.mark.parametrize("size", [11, 13])
def test_bytes_that_do_not_fill_the_picture_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="reshape"):
        encode_png(bytes(size), 2, 2)
