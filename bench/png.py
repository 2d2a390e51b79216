"""The PNG encoder against Pillow: time, size, pixels; drawings, soft pictures with more and less grain, extremes.

python -m bench.png [--rounds 7] [--side 1024]
"""

import argparse
import io
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from imagegen.builtin import default_config
from imagegen.catalog.loading import load_catalog
from imagegen.catalog.sources import Folders
from imagegen.core.task import GenerationRequest
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Generate, Generated, Load
from imagegen.loaders import SPECS
from imagegen.storage.png import encode_png


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()
    print("| picture | encoder | ms | times Pillow's default | bytes / Pillow's default |\n|---|---|---|---|---|")
    for name, image in pictures(options.side).items():
        for row in compare(image, options.rounds):
            print(f"| {name} | {row}")


def pictures(side: int) -> dict[str, Image.Image]:
    """What models make lies between the drawing and the grain of 4; the last two are the ends of what can be."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    y, x = np.mgrid[0:side, 0:side] * 255 / side
    gradient = np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)
    made = {"drawing": draw().resize((side, side), Image.Resampling.BICUBIC)}
    made |= {f"soft, grain {grain}": soft(side, grain) for grain in (0, 1, 2, 4)}
    made |= {"gradient": Image.fromarray(gradient), "noise": Image.fromarray(noise)}
    return {f"{name} {side}x{side}": image for name, image in made.items()}


def soft(side: int, grain: float) -> Image.Image:
    """Blurred spots of all colours, as a decoder leaves them, with normal noise of so many levels."""
    rng = np.random.default_rng(1)
    spots = Image.fromarray(rng.integers(0, 256, (side // 32, side // 32, 3), np.uint8))
    smooth = np.asarray(spots.resize((side, side), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(4)))
    return Image.fromarray((smooth + rng.normal(0, grain, smooth.shape)).clip(0, 255).astype(np.uint8))


def draw() -> Image.Image:
    """A picture of the embedded model."""
    catalog = load_catalog(default_config(), SPECS)
    engine = LocalEngine(EngineOptions(device="cpu"))
    engine.load(Load.entry(catalog, "tiny", Folders(Path(), Path())))
    request = GenerationRequest(prompt="mountains at sunset", width=128, height=128, steps=8, guidance_scale=0, seed=1)
    outcome = engine.generate(Generate(model="tiny", request=request), threading.Event(), lambda *step: None)
    assert isinstance(outcome, Generated)
    return Image.frombytes("RGB", (128, 128), outcome.images[0].rgb)


def compare(image: Image.Image, rounds: int) -> list[str]:
    """Interleaved rounds; one line for each encoder."""
    rgb = image.tobytes()
    encoders: dict[str, Callable[[], bytes]] = {
        "Pillow, default": lambda: pillow(image, 6),
        "Pillow, level 1": lambda: pillow(image, 1),
        "imagegen": lambda: encode_png(rgb, image.width, image.height),
    }
    times: dict[str, list[float]] = {name: [] for name in encoders}
    sizes: dict[str, int] = {}
    for _ in range(rounds):
        for name, encode in encoders.items():
            began = time.perf_counter()
            data = encode()
            times[name].append(time.perf_counter() - began)
            sizes[name] = len(data)
            assert Image.open(io.BytesIO(data)).convert("RGB").tobytes() == rgb
    median = {name: statistics.median(values) for name, values in times.items()}
    base = median["Pillow, default"], sizes["Pillow, default"]
    return [
        f"{name} | {median[name] * 1000:.1f} | {base[0] / median[name]:.1f} | {sizes[name] / base[1]:.2f} |"
        for name in encoders
    ]


def pillow(image: Image.Image, level: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=level)
    return file.getvalue()


if __name__ == "__main__":
    main()
