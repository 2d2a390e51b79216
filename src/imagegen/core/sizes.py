"""Picture sizes: the table of aspect ratios, and the size to render for a requested size."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

AspectRatio = Literal["1:1", "16:9", "9:16", "4:3", "3:4", "21:9", "9:21"]

#: The `base_size` of the table below; a model's own one scales it.
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


def size_of(aspect_ratio: AspectRatio, base_size: int) -> Size:
    """The size of a picture of this ratio from a model with this base size, rounded half up to whole pixels."""
    width, height = SIZES[aspect_ratio]
    return Size(*(math.floor(side * base_size / TABLE_BASE + 0.5) for side in (width, height)))


def render_size(size: Size, multiple: int = SIDE_MULTIPLE) -> Size:
    """The smallest size that a model can render and that holds `size`; the caller gets its centre."""
    return Size(*(math.ceil(side / multiple) * multiple for side in size))
