"""Picture sizes: for an aspect ratio, for the shape of an input picture, and the size to render for a requested one."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

AspectRatio = Literal["1:1", "16:9", "9:16", "4:3", "3:4", "21:9", "9:21"]

#: What a request may ask for. `input`: the shape of its input picture.
Shape = AspectRatio | Literal["input"]

#: What a model's `base_size` means: the side of a square that has the area of its pictures, or their short side.
Sizing = Literal["area", "short_side"]

#: The longest side that a request may ask for, in pixels.
MAX_SIDE = 8192

#: The `base_size` that SIZES is for. For another `base_size` its sizes are scaled.
TABLE_BASE = 768

#: FLUX and Stable Diffusion 3 pack 2x2 latents of 8x8 pixels: a side must be a multiple of 16.
SIDE_MULTIPLE = 16


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "1:1": Size(768, 768),
        "16:9": Size(1365, 768),
        "9:16": Size(768, 1365),
        "4:3": Size(1024, 768),
        "3:4": Size(768, 1024),
        "21:9": Size(1792, 768),
        "9:21": Size(768, 1792),
    }
)


def size_of(
    aspect_ratio: AspectRatio, base_size: int, sizing: Sizing = "short_side", multiple: int = SIDE_MULTIPLE
) -> Size:
    """The size of a picture of this ratio from a model with this base size.

    `short_side`: the table, scaled and rounded half up to whole pixels. `area`: as `size_like`.
    """
    if sizing == "area":
        width, height = map(int, aspect_ratio.split(":"))
        return size_like(Size(width, height), base_size, multiple)
    width, height = SIZES[aspect_ratio]
    return Size(*(math.floor(side * base_size / TABLE_BASE + 0.5) for side in (width, height)))


def size_like(
    shape: Size, base_size: int, multiple: int, *, most_pixels: int | None = None, most_side: int = MAX_SIDE
) -> Size:
    """The size of this shape with about the area of a square of `base_size`; both sides are multiples of `multiple`.

    If the long side would exceed `most_side`, it is cut to that. The size has at most `most_pixels` pixels, unless a
    square of one `multiple` has more.
    """
    factor = base_size / math.sqrt(shape.pixels)
    longest = most_side // multiple
    sides = [min(max(round(side * factor / multiple), 1), longest) for side in shape]
    while most_pixels is not None and max(sides) > 1 and math.prod(sides) * multiple**2 > most_pixels:
        sides[sides.index(max(sides))] -= 1
    return Size(*(side * multiple for side in sides))


def render_size(size: Size, multiple: int = SIDE_MULTIPLE) -> Size:
    """The smallest size that the model can render and that contains `size`; the picture is cropped to the centre."""
    return Size(*(math.ceil(side / multiple) * multiple for side in size))
