"""Pictures on their way into a pipeline and out of it."""

import io
from typing import Any

from imagegen.core.sizes import Size
from imagegen.core.task import Pixels

FORMATS = ("PNG", "JPEG", "WEBP")


def fit_image(encoded: bytes, size: Size) -> Any:
    """Decode a picture, turn it upright and fill `size` with its centre."""
    return _fit(encoded, size, "RGB")


def fit_mask(encoded: bytes, size: Size) -> Any:
    """The same for a mask: 8-bit grey, white where the picture is to be drawn."""
    return _fit(encoded, size, "L")


def _fit(encoded: bytes, size: Size, mode: str) -> Any:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        turn = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_270,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90,
        }.get(_orientation(image))
        upright = image.convert(mode) if turn is None else image.convert(mode).transpose(turn)
    return ImageOps.fit(upright, size, Image.Resampling.LANCZOS)


def _orientation(image: Any) -> Any:
    """The EXIF orientation, 1 to 8. Not by exif_transpose, which writes the other tags anew and fails on odd ones."""
    try:
        return image.getexif().get(0x0112)
    except (SyntaxError, ValueError, OSError):  # broken metadata; the picture itself has been checked
        return None


def pad(image: Any, size: Size) -> Any:
    """The picture in the middle of a larger one, where `crop` finds it. The border repeats its outermost pixels."""
    import numpy as np
    from PIL import Image

    width, height = size.width - image.width, size.height - image.height
    if not width and not height:
        return image
    sides = [(height // 2, height - height // 2), (width // 2, width - width // 2)]
    pixels = np.asarray(image)
    return Image.fromarray(np.pad(pixels, [*sides, (0, 0)][: pixels.ndim], mode="edge"))


def paste(picture: Any, image: Any, mask: Any) -> Any:
    """The centre of the picture where the mask is white, the image itself where it is black.

    `picture`: a tensor, height x width x 3 or 4, 0..1, at least as large as the image. No pipeline gives the kept part
    back as it was, because all of it has been through the VAE.
    """
    import numpy as np

    share = np.asarray(mask, dtype=np.float32)[..., None] / 255
    drawn = centre(picture, Size(*image.size))[..., :3].cpu().numpy()
    return drawn * share + np.asarray(image, dtype=np.float32) / 255 * (1 - share)


def centre(picture: Any, size: Size) -> Any:
    """The middle of a rendered picture, height x width x channels, in the asked size."""
    height, width, _ = picture.shape
    left, top = (width - size.width) // 2, (height - size.height) // 2
    return picture[top : top + size.height, left : left + size.width]


def crop(picture: Any, size: Size, seed: int) -> Pixels:
    """The centre of a rendered picture as 8-bit pixels of the asked size.

    `picture`: float32, height x width x 3 or 4, 0..1; an array, or a tensor, of which only bytes leave its device.
    """
    rounded = (centre(picture, size) * 255).round().clip(0, 255)
    on_device = hasattr(rounded, "cpu")
    samples = rounded.byte().contiguous().cpu().numpy() if on_device else rounded.astype("uint8")
    alpha = samples[..., 3].tobytes() if picture.shape[-1] == 4 else None
    return Pixels(width=size.width, height=size.height, seed=seed, rgb=samples[..., :3].tobytes(), alpha=alpha)
