"""Owns the stored training pictures: draws the pictures of one stage, encodes them, and reads them back with captions.

Only latents are stored. Which picture belongs to a row follows from the seed in the file's name, and every odd row
is a sibling of the row before: the same picture with another colour, thing or ground. Siblings teach image-to-image.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.draw import draw
from training.specs import (
    FACING,
    SQUARE,
    THINGS,
    TIMES,
    Ground,
    Picture,
    is_held_out,
    is_settled,
    kind_of,
    other_colour,
    random_picture,
)
from training.vae import encode

Format = tuple[int, int]


def sibling(picture: Picture, rng: random.Random) -> Picture:
    """The same layout with one thing changed: its colour, what it is, the ground's colour, or the scene's time."""
    if picture.scene is not None:
        time_of_day = rng.choice([t for t in TIMES if t != picture.scene.time])
        return replace(picture, scene=replace(picture.scene, time=time_of_day))
    while is_held_out(changed := change(picture, rng)):
        pass
    return changed


def change(picture: Picture, rng: random.Random) -> Picture:
    q, first = rng.random(), picture.things[0]
    colours = [t.colour for t in picture.things]
    if q < 0.2 and picture.ground.kind == "plain":
        ground = Ground("plain", other_colour(rng, picture.ground.colour, *colours))
        return replace(picture, ground=ground)
    if q < 0.6:
        other = replace(first, colour=other_colour(rng, *colours, *ground_colours(picture.ground)))
    else:
        name = rng.choice([n for n in THINGS if n != first.name])
        other = replace(first, name=name, flip=first.flip and name in FACING)
    return replace(picture, things=(other, *picture.things[1:]))


def ground_colours(ground: Ground) -> list[str]:
    if ground.kind == "plain":
        return [ground.colour]
    return [ground.colour, ground.second] if ground.kind == "striped" else []


def stage_pictures(stage: str, count: int, seed: int) -> Iterator[Picture]:
    """`count` pictures, each second one a sibling; the same for the same arguments."""
    rng = random.Random(f"{stage}/{seed}")
    for _ in range(count // 2):
        picture = random_picture(rng, stage)
        yield picture
        yield sibling(picture, rng)


def by_format(pictures: Iterator[Picture]) -> dict[Format, list[Picture]]:
    groups: dict[Format, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault((picture.width, picture.height), []).append(picture)
    return groups


def pack(latent: Tensor) -> Tensor:
    """(n, channels, height, width) -> (n, tokens, 4 * channels), in the order of FluxPipeline."""
    n, channels, height, width = latent.shape
    tiles = latent.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(n, height * width // 4, channels * 4)


@torch.inference_mode()
def encode_pictures(vae: AutoencoderKL, pictures: list[Picture], batch: int = 32) -> Tensor:
    """Normalised and packed latents, float16."""
    parts = []
    for group in batches(pictures, batch):
        images = np.stack([np.asarray(draw(p)) for p in group]).astype(np.float32)
        pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).to(vae.device)
        latent = encode(vae, pixels.contiguous(memory_format=torch.channels_last))
        parts.append(pack((latent - vae.config.shift_factor) * vae.config.scaling_factor).half().cpu())
    return torch.cat(parts)


def batches(pictures: list[Picture], size: int) -> Iterator[list[Picture]]:
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


@dataclass(frozen=True, slots=True)
class Shelf:
    """All pictures of one format, with their latents (n, tokens, channels).

    `settled` has a row for each row: itself, or in place of a picture with another facing, side or variant than the
    first one a settled picture of the same kind. A model this small otherwise draws the blurred mean of all of them.
    """

    pictures: list[Picture]
    latents: Tensor
    settled: list[int]


def settle(pictures: list[Picture], rng: random.Random) -> list[int]:
    rows: dict[int, list[int]] = {}
    for row, picture in enumerate(pictures):
        if is_settled(picture):
            rows.setdefault(kind_of(picture), []).append(row)
    return [
        row if is_settled(picture) else rng.choice(rows.get(kind_of(picture), [row]))
        for row, picture in enumerate(pictures)
    ]


def file_name(stage: str, count: int, seed: int) -> str:
    return f"{stage}-{count}-{seed}.safetensors"


def load(path: Path) -> dict[Format, Shelf]:
    stage, count, seed = path.stem.split("-")
    groups = by_format(stage_pictures(stage, int(count), int(seed)))
    tensors = load_file(path)
    rng = random.Random(path.stem)
    return {
        size: Shelf(group, tensors[name], settle(group, rng))
        for size, group in groups.items()
        if (name := f"{size[0]}x{size[1]}") in tensors
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--square", action="store_true", help="store only the square ones of them")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = AutoencoderKL.from_pretrained(args.vae).to(device, torch.bfloat16, memory_format=torch.channels_last).eval()
    groups = by_format(stage_pictures(args.stage, args.count, args.seed))
    wanted = {SQUARE: groups[SQUARE]} if args.square else groups
    tensors = {f"{size[0]}x{size[1]}": encode_pictures(vae, group) for size, group in wanted.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out / file_name(args.stage, args.count, args.seed))
    shares = {key: len(value) for key, value in tensors.items()}
    print(f"{shares} in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
