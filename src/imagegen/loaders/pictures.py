"""Converts encoded pictures to the input of a pipeline, and its output to pixels."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from imagegen.core.errors import InvalidImage
from imagegen.core.sizes import Size
from imagegen.core.task import Pixels

#: The formats that are read, by Pillow's names. Of an animation or a document only the first frame or page is read.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")

#: The most bytes of a colour profile; a larger one is ignored. Profiles of printing presses have about 3 MB.
MAX_PROFILE_BYTES = 8 * 2**20

#: A profile that changes no colour by more than this counts as sRGB, and the pixels are not converted.
_SAME_LEVELS = 2


def fit_image(encoded: bytes, size: Size) -> Any:
    """Decode a picture like `read_image`, then scale and crop it to `size` around its centre."""
    return _fill(read_image(encoded), size)


def fit_mask(encoded: bytes, size: Size) -> Any:
    """Like `fit_image`, for a mask that `read_mask` decodes."""
    return _fill(read_mask(encoded), size)


def _fill(image: Any, size: Size) -> Any:
    from PIL import Image, ImageOps

    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def read_image(encoded: bytes) -> Any:
    """Decode a picture: upright, 8-bit RGB, in sRGB, on a white background where it is transparent."""
    from PIL import Image

    with _opened(encoded) as image:
        colours, alpha = _colours_and_alpha(image)
        picture = _in_srgb(colours, image.info.get("icc_profile"))
        if alpha is not None:
            picture = Image.composite(picture, Image.new("RGB", picture.size, "white"), alpha)
        return _turned(picture, image)


def read_mask(encoded: bytes) -> Any:
    """Decode a mask: upright, 8-bit grey, white where the picture is repainted.

    The grey is its brightness times its alpha. A mask of uniform brightness whose alpha varies is read the other way
    round: its transparent part is repainted.
    """
    from PIL import ImageChops

    with _opened(encoded) as image:
        colours, alpha = _colours_and_alpha(image)
        grey = colours.convert("L")
        if alpha is not None:
            marks = _is_flat(grey) and not _is_flat(alpha)
            grey = ImageChops.invert(alpha) if marks else ImageChops.multiply(grey, alpha)
        return _turned(grey, image)


def transparent_part(encoded: bytes) -> bytes:
    """A mask for `read_mask`, as PNG, from one whose transparent part is repainted, whatever its colours are.

    Raises InvalidImage if nothing of it is transparent.
    """
    from PIL import ImageChops

    with _opened(encoded) as image:
        _, alpha = _colours_and_alpha(image)
        if alpha is None or alpha.getextrema() == (255, 255):
            raise InvalidImage("The mask has no transparent part; its transparent part is what is repainted.")
        mask = _turned(ImageChops.invert(alpha), image)
    mask.save(file := io.BytesIO(), "PNG", compress_level=1)
    return file.getvalue()


def picture_size(encoded: bytes) -> Size:
    """Width and height of the upright picture, in pixels."""
    with _opened(encoded) as image:
        sideways = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)  # Pillow's size of a TIFF is upright
        return Size(*reversed(image.size)) if sideways else Size(*image.size)


@contextmanager
def _opened(encoded: bytes) -> Iterator[Any]:
    from PIL import Image

    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        yield image


def _colours_and_alpha(image: Any) -> tuple[Any, Any | None]:
    """The picture in 8 bits without its alpha (RGB, grey or CMYK), and its alpha; None: the picture is opaque."""
    image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _in_8_bits(image)
    if image.has_transparency_data:
        # Pillow cannot convert La to L directly.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB"), None


def _in_8_bits(image: Any) -> Any:
    """Scale grey of 16 or 32 bits or of floats to 8 bits. Pillow's own conversion makes all values above 255 white."""
    import numpy as np
    from PIL import Image

    samples = np.asarray(image)
    values = np.nan_to_num(samples.astype(np.float64))
    highest = values.max(initial=0)
    if image.mode == "F":
        white = 1.0 if highest <= 1 else 255.0
    else:
        white = 65535.0 if image.mode != "I" or highest <= 65535 else 2.0**31 - 1
    grey = Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))
    if isinstance(key := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8)))
    return grey


def _in_srgb(image: Any, profile: bytes | None) -> Any:
    """Convert the picture to sRGB. A profile that is broken or for another colour space is ignored."""
    from PIL import ImageCms

    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return image.convert("RGB")
    try:
        source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, image.mode, "RGB")
        if image.mode == "RGB" and _changes_nothing(transform):
            return image
        return ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB")


def _changes_nothing(transform: Any) -> bool:
    """Whether a transform changes no colour by more than _SAME_LEVELS."""
    import numpy as np
    from PIL import Image, ImageCms

    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    swatches = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(9, 81, 3)
    converted = np.asarray(ImageCms.applyTransform(Image.fromarray(swatches), transform))
    return bool(np.abs(converted.astype(int) - swatches).max() <= _SAME_LEVELS)


def _is_flat(channel: Any) -> bool:
    low, high = channel.getextrema()
    return bool(low == high)


def _turned(picture: Any, image: Any) -> Any:
    """Turn `picture`, which is a channel or a conversion of `image`, upright."""
    from PIL import Image

    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(_orientation(image))
    return picture if turn is None else picture.transpose(turn)


def _orientation(image: Any) -> Any:
    """The EXIF orientation, 1 to 8. Pillow's exif_transpose also rewrites the other tags, and fails on invalid ones."""
    try:
        return image.getexif().get(0x0112)
    except (SyntaxError, ValueError, OSError):  # broken metadata; the picture itself has been checked
        return None


def pad(image: Any, size: Size) -> Any:
    """Put the picture in the middle of a larger one, for `crop`. The border repeats its outermost pixels."""
    import numpy as np
    from PIL import Image

    width, height = size.width - image.width, size.height - image.height
    if not width and not height:
        return image
    sides = [(height // 2, height - height // 2), (width // 2, width - width // 2)]
    pixels = np.asarray(image)
    return Image.fromarray(np.pad(pixels, [*sides, (0, 0)][: pixels.ndim], mode="edge"))


def paste(picture: Any, image: Any, mask: Any) -> Any:
    """Take the centre of the picture where the mask is white, and the original image where it is black.

    `picture`: a tensor, height x width x 3 or 4, 0..1, at least as large as the image. Without this the kept part would
    change slightly, because pipelines pass it through the VAE.
    """
    import numpy as np

    share = np.asarray(mask, dtype=np.float32)[..., None] / 255
    repainted = centre(picture, Size(*image.size))[..., :3].cpu().numpy()
    return repainted * share + np.asarray(image, dtype=np.float32) / 255 * (1 - share)


def centre(picture: Any, size: Size) -> Any:
    """The centre of a rendered picture, height x width x channels, in the requested size."""
    height, width, _ = picture.shape
    left, top = (width - size.width) // 2, (height - size.height) // 2
    return picture[top : top + size.height, left : left + size.width]


def crop(picture: Any, size: Size, seed: int) -> Pixels:
    """The centre of a rendered picture as 8-bit pixels, in the requested size.

    `picture`: float32, height x width x 3 or 4, 0..1; an array, or a tensor, which is converted to bytes on its device.
    """
    rounded = (centre(picture, size) * 255).round().clip(0, 255)
    on_device = hasattr(rounded, "cpu")
    samples = rounded.byte().contiguous().cpu().numpy() if on_device else rounded.astype("uint8")
    alpha = samples[..., 3].tobytes() if picture.shape[-1] == 4 else None
    return Pixels(width=size.width, height=size.height, seed=seed, rgb=samples[..., :3].tobytes(), alpha=alpha)
