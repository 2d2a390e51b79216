"""Draws docs/tiny.png: what the embedded model makes of eighteen prompts.

python scripts/contact_sheet.py [OUTPUT]
"""

import sys
import textwrap
import threading
from pathlib import Path

from PIL import Image, ImageDraw

from imagegen.builtin import default_config
from imagegen.catalog.loading import load_catalog
from imagegen.catalog.sources import Folders
from imagegen.core.task import GenerationRequest
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Generate, Generated, Load, Loaded
from imagegen.loaders import SPECS

PROMPTS = (
    "a black cat on the grass",
    "a boat with red sails on the sea",
    "a rocket in the night sky",
    "a red house on a sunny day",
    "a purple fish on a cyan background",
    "snowy mountains on a sunny day",
    "a red mushroom on the grass at night",
    "a yellow balloon at sunset",
    "a cactus in the desert at sunset",
    "a pink flower on a green hill",
    "a city at night",
    "a snowy forest at night",
    "a red square to the left of a blue circle",
    "a small white star at the top right on a blue background",
    "a blue heart on a red and white striped background",
    "a yellow star above a purple heart on a black background",
    "a red car in a meadow at sunset",
    "a blue house and a tree at night",
)
COLUMNS = 6
SIDE = 128
GAP = 10
CAPTION = 38


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "tiny.png"
    cells = [(prompt, draw(engine, prompt)) for engine in [load()] for prompt in PROMPTS]
    rows = -(-len(cells) // COLUMNS)
    width, height = GAP + COLUMNS * (SIDE + GAP), GAP + rows * (SIDE + CAPTION + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (prompt, picture) in enumerate(cells):
        x = GAP + number % COLUMNS * (SIDE + GAP)
        y = GAP + number // COLUMNS * (SIDE + CAPTION + GAP)
        sheet.paste(picture, (x, y))
        pen.multiline_text((x, y + SIDE + 2), textwrap.fill(prompt, 24), fill="black", font_size=10, spacing=1)
    sheet.save(output, optimize=True)
    print(output)


def load() -> LocalEngine:
    """An engine with the embedded model in it."""
    catalog = load_catalog(default_config(), SPECS)
    engine = LocalEngine(EngineOptions(device="cpu"))
    assert isinstance(engine.load(Load.entry(catalog, "tiny", Folders(Path(), Path()))), Loaded)
    return engine


def draw(engine: LocalEngine, prompt: str) -> Image.Image:
    request = GenerationRequest(prompt=prompt, width=SIDE, height=SIDE, steps=8, guidance_scale=0, seed=1)
    command = Generate(model="tiny", request=request)
    outcome = engine.generate(command, threading.Event(), lambda step, total, *preview: None)
    assert isinstance(outcome, Generated)
    return Image.frombytes("RGB", (SIDE, SIDE), outcome.images[0].rgb)


if __name__ == "__main__":
    main()
