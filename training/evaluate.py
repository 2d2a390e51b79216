"""Owns the examination: fresh prompts with the pictures they ask for, scores over them, and contact sheets.

Every combination of thing, colour and plain ground asked for here is one that training never saw.
"""

from __future__ import annotations

import argparse
import json
import random
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image, ImageDraw

from training.captions import article
from training.draw import draw
from training.judge import Finding, Judge
from training.specs import (
    COLOUR_NAMES,
    COLUMNS,
    FORMATS,
    OBJECTS,
    ROWS,
    SCENES,
    SHAPES,
    SIZES,
    SQUARE,
    TIMES,
    Ground,
    Picture,
    Scene,
    Thing,
    held_out,
    other_colour,
)

Format = tuple[int, int]
SHEET = (
    "a red circle on a blue background",
    "a large yellow star on a purple background",
    "a small green heart on a white background",
    "a cyan diamond on a pink background",
    "an orange ring on a black background",
    "a white cross on a red background",
    "a purple hexagon on a yellow background",
    "a yellow moon in the night sky",
    "a cat",
    "a black cat on the grass",
    "a blue car on a yellow background",
    "a red car in a meadow at sunset",
    "a fish on a cyan background",
    "a purple fish on a white background",
    "a pink flower on a green hill",
    "a red mushroom on the grass at night",
    "a rocket in the night sky",
    "a yellow balloon in the sky",
    "a green tree on a pink background",
    "a brown house on an orange background",
    "a blue heart on a red and white striped background",
    "a red balloon at sunset",
    "a small white star at the top right on a blue background",
    "a large green triangle on the left on a gray background",
    "a red house on a sunny day",
    "a blue house and a tree at night",
    "a boat with red sails on the sea",
    "a yellow boat at sunset",
    "snowy mountains on a sunny day",
    "mountains and pine trees at night",
    "a city at night",
    "a city skyline at sunset",
    "a forest on a sunny day",
    "a snowy forest at night",
    "a cactus in the desert",
    "a desert at sunset",
    "a red square to the left of a blue circle",
    "a yellow star above a purple heart on a black background",
    "a green cross and a pink moon on a brown background",
    "an astronaut riding a red horse",
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to ask for, the picture that answers it, and which of column, row and size the words name."""

    text: str
    picture: Picture
    asked: frozenset[str] = frozenset()


def unseen(rng: random.Random, name: str) -> tuple[str, str]:
    """Colour and ground that training never combined with this thing, where there are any."""
    pairs = [(c, g) for c in COLOUR_NAMES for g in COLOUR_NAMES if held_out(name, c, g) and g in clear_of(c)]
    return rng.choice(pairs)


def clear_of(colour: str) -> set[str]:
    return {other_colour(random.Random(seed), colour) for seed in range(200)}


def plain_prompt(rng: random.Random, name: str, size: Format = SQUARE) -> Prompt:
    colour, ground = unseen(rng, name)
    text = f"{article(colour)} {name} on {article(ground)} background"
    return Prompt(text, Picture(*size, Ground("plain", ground), (Thing(name, colour),)))


def placed_prompt(rng: random.Random, name: str) -> Prompt:
    """ "{size} {colour} {shape} {position} on {background}", with size and place each left out one time in three."""
    plain = plain_prompt(rng, name)
    (thing,) = plain.picture.things
    size = rng.choice(("", *SIZES[::2]))
    place = rng.choice(("", "", "left", "right", "top", "bottom", "centre"))
    thing = replace(thing, size=size or "medium")
    if place in COLUMNS:
        thing = replace(thing, column=place)
    elif place in ROWS:
        thing = replace(thing, row=place)
    words = article(" ".join(w for w in (size, thing.colour, name) if w))
    where = {"": "", "centre": " in the centre", "left": " on the left", "right": " on the right"}.get(
        place, f" at the {place}"
    )
    text = f"{words}{where} on {article(plain.picture.ground.colour)} background"
    asked = {"size"} if size else set()
    asked |= {"column", "row"} if place == "centre" else {"column"} if place in COLUMNS else {"row"} if place else set()
    return Prompt(text, replace(plain.picture, things=(thing,)), frozenset(asked))


def striped_prompt(rng: random.Random, name: str) -> Prompt:
    plain = plain_prompt(rng, name)
    (thing,), first = plain.picture.things, plain.picture.ground.colour
    second = other_colour(rng, first, thing.colour)
    text = f"{article(thing.colour)} {name} on {article(first)} and {second} striped background"
    return Prompt(text, replace(plain.picture, ground=Ground("striped", first, second)))


def two_prompt(rng: random.Random) -> Prompt:
    ground = rng.choice(COLOUR_NAMES)
    first = other_colour(rng, ground)
    second = other_colour(rng, ground, first)
    names = rng.choices(SHAPES, k=2)
    a, b = (f"{article(c)} {n}" for c, n in zip((first, second), names, strict=True))
    beside = rng.random() < 0.6
    places = (("left", "centre"), ("right", "centre")) if beside else (("centre", "top"), ("centre", "bottom"))
    things = tuple(
        Thing(name, colour, "medium", *place)
        for name, colour, place in zip(names, (first, second), places, strict=True)
    )
    relation = "to the left of" if beside else "above"
    text = f"{a} {relation} {b} on {article(ground)} background"
    return Prompt(text, Picture(*SQUARE, Ground("plain", ground), things))


def scene_prompt(rng: random.Random, index: int) -> Prompt:
    name, time_of_day = SCENES[index % 6], TIMES[index // 6 % 3]
    colour = rng.choice(COLOUR_NAMES)
    subject = {
        "house": f"{article(colour)} house",
        "boat": f"{article(colour)} boat on the sea",
        "mountains": "mountains",
    }
    when = {"day": "on a sunny day", "sunset": "at sunset", "night": "at night"}[time_of_day]
    text = f"{subject.get(name, f'a {name}')} {when}"
    return Prompt(text, Picture(*SQUARE, scene=Scene(name, time_of_day, colour=colour)))


def prompts(kind: str, count: int, seed: int = 20260) -> list[Prompt]:
    """`count` prompts of a kind: plain, placed, objects, striped, two, scenes or formats."""
    rng = random.Random(f"{kind}/{seed}")
    shapes = [SHAPES[i % len(SHAPES)] for i in range(count)]
    if kind == "placed":
        return [placed_prompt(rng, name) for name in shapes]
    if kind == "objects":
        return [plain_prompt(rng, OBJECTS[i % len(OBJECTS)]) for i in range(count)]
    if kind == "striped":
        return [striped_prompt(rng, name) for name in shapes]
    if kind == "two":
        return [two_prompt(rng) for _ in range(count)]
    if kind == "scenes":
        return [scene_prompt(rng, i) for i in range(count)]
    if kind == "formats":
        formats = [f for f in FORMATS if max(f) < 300]
        return [plain_prompt(rng, name, formats[i // 2 % len(formats)]) for i, name in enumerate(shapes)]
    return [plain_prompt(rng, name) for name in shapes]


def generate(
    pipe: FluxPipeline, texts: Sequence[str], size: Format = SQUARE, steps: int = 8, seed: int = 1000, batch: int = 10
) -> list[Image.Image]:
    made: list[Image.Image] = []
    for start in range(0, len(texts), batch):
        made += pipe(
            list(texts[start : start + batch]),
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            max_sequence_length=64,
            generator=torch.Generator().manual_seed(seed + start),
        ).images
    return made


def pictures_for(pipe: FluxPipeline, asked: Sequence[Prompt], steps: int = 8, seed: int = 1000) -> list[Image.Image]:
    """One picture a prompt, each in its own format, in the order of the prompts."""
    made: dict[int, Image.Image] = {}
    for size in {(p.picture.width, p.picture.height) for p in asked}:
        rows = [i for i, p in enumerate(asked) if (p.picture.width, p.picture.height) == size]
        images = generate(pipe, [asked[i].text for i in rows], size, steps, seed)
        made.update(zip(rows, images, strict=True))
    return [made[i] for i in range(len(asked))]


def score(judge: Judge, images: Sequence[Image.Image], asked: Sequence[Prompt]) -> dict[str, float]:
    """Shares of right answers, and the mean overlap of outlines, over prompts of one kind."""
    if asked[0].picture.scene is not None:
        views = [judge.view_of(i) for i in images]
        wanted = [(p.picture.scene.name, p.picture.scene.time) for p in asked if p.picture.scene]
        both = [a == b for a, b in zip(views, wanted, strict=True)]
        return {"scene": mean([a[0] == b[0] for a, b in zip(views, wanted, strict=True)]), "scene and time": mean(both)}
    if len(asked[0].picture.things) == 2:
        return {"both": mean([judge.two(i, p.picture) for i, p in zip(images, asked, strict=True)])}
    found = [judge.one(i, p.picture, p.asked) for i, p in zip(images, asked, strict=True)]
    names = ("ground", "colour", "thing", "place", "size", "outline")
    return {n: mean([getattr(f, n) for f in found]) for n in names} | {"all": mean([right(f) for f in found])}


def mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 3)


def right(found: Finding) -> bool:
    return found.ground and found.colour and found.thing and found.place and found.size


def edits(pipe: FluxPipeline, judge: Judge, strength: float, count: int, seed: int = 7) -> dict[str, float]:
    """Image-to-image from drawings off the centre: at 0.6 to another colour, at 0.9 to another shape."""
    editor = FluxImg2ImgPipeline(**pipe.components)
    editor.set_progress_bar_config(disable=True)
    rng, found = random.Random(seed), []
    for i in range(count):
        plain = plain_prompt(rng, SHAPES[i % 10])
        (thing,) = plain.picture.things
        thing = replace(thing, column=rng.choice(COLUMNS), row=rng.choice(ROWS))
        ground = plain.picture.ground
        if strength < 0.8:
            before = replace(thing, colour=other_colour(rng, thing.colour, ground.colour))
        else:
            before = replace(thing, name=rng.choice([s for s in SHAPES if s != thing.name]))
        wanted = replace(plain.picture, things=(thing,))
        image = editor(
            plain.text,
            image=draw(replace(wanted, things=(before,))),
            strength=strength,
            width=SQUARE[0],
            height=SQUARE[1],
            num_inference_steps=12,
            max_sequence_length=64,
            generator=torch.Generator().manual_seed(i),
        ).images[0]
        found.append(judge.one(image, wanted, frozenset({"column", "row"})))
    names = ("ground", "colour", "thing", "place", "outline")
    return {n: mean([getattr(f, n) for f in found]) for n in names}


def contact_sheet(
    images: Sequence[Image.Image], texts: Sequence[str], columns: int = 8, side: int = 128
) -> Image.Image:
    """Pictures with their prompts below, on white."""
    cell, text_height = side + 12, 40
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell + 12, rows * (cell + text_height) + 12), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        x, y = 12 + i % columns * cell, 12 + i // columns * (cell + text_height)
        sheet.paste(image, (x, y))
        for line, words in enumerate(textwrap.wrap(text, 24)[:3]):
            pen.text((x, y + side + 3 + 11 * line), words, fill=(60, 60, 60), font_size=10)
    return sheet


def seconds_a_picture(pipe: FluxPipeline, steps: int = 8) -> float:
    generate(pipe, ["a red circle"], steps=steps)
    start = time.perf_counter()
    for i in range(5):
        generate(pipe, ["a red circle"], steps=steps, seed=i)
    return round((time.perf_counter() - start) / 5, 3)


def examine(pipe: FluxPipeline, judge: Judge, scale: float = 1.0) -> dict[str, dict[str, float]]:
    """The whole table; `scale` shortens it."""
    kinds = {"plain": 200, "placed": 300, "objects": 200, "striped": 60, "two": 100, "scenes": 90, "formats": 100}
    table: dict[str, dict[str, float]] = {}
    for kind, count in kinds.items():
        asked = prompts(kind, max(10, int(count * scale)))
        table[kind] = score(judge, pictures_for(pipe, asked), asked)
        print(kind, table[kind], flush=True)
    for steps in (4, 20):
        asked = prompts("plain", max(10, int(100 * scale)))
        table[f"plain, {steps} steps"] = score(judge, pictures_for(pipe, asked, steps), asked)
        print(f"plain, {steps} steps", table[f"plain, {steps} steps"], flush=True)
    for strength in (0.6, 0.9):
        table[f"image-to-image {strength}"] = edits(pipe, judge, strength, max(10, int(40 * scale)))
        print(f"image-to-image {strength}", table[f"image-to-image {strength}"], flush=True)
    return table


def brief(pipe: FluxPipeline, judge: Judge, count: int = 60) -> dict[str, float]:
    """The short form for a test suite: a third each of plain, placed and object prompts, as shares of all."""
    asked = [p for kind in ("plain", "placed", "objects") for p in prompts(kind, count // 3)]
    return score(judge, pictures_for(pipe, asked), asked)


def ceiling(judge: Judge) -> dict[str, dict[str, float]]:
    """What the drawings themselves score: the most that any model can."""
    table = {}
    for kind in ("placed", "objects", "two", "scenes", "formats"):
        asked = prompts(kind, 120)
        table[kind] = score(judge, [draw(p.picture) for p in asked], asked)
    return table


def open_pipeline(folder: Path) -> FluxPipeline:
    pipe = FluxPipeline.from_pretrained(folder, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the prompts")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    parser.add_argument("--table", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--only-sheet", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    pipe = open_pipeline(args.model)
    print(f"loaded in {time.perf_counter() - start:.2f} s, {seconds_a_picture(pipe)} s a picture", flush=True)
    if args.sheet:
        contact_sheet(generate(pipe, SHEET, seed=77), SHEET).save(args.sheet)
    if not args.only_sheet:
        table = examine(pipe, Judge.load(), args.scale)
        if args.table:
            args.table.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
