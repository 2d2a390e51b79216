"""Owns the measures: colours, place, size and outline of what was drawn, and two small classifiers for what it is.

The judge knows the ground that a prompt asks for and looks at what differs from it. The classifiers are trained on
drawings of other seeds, bent, blurred and noised, and see a thing without its colour, cropped to its outline.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.draw import draw
from training.specs import (
    COLOUR_NAMES,
    COLOURS,
    COLUMNS,
    ROWS,
    SCENES,
    THINGS,
    TIMES,
    Picture,
    Thing,
    can_shift,
    position,
    random_picture,
    sizes_for,
)

SIDE = 32
PALETTE = np.array([COLOURS[name] for name in COLOUR_NAMES], dtype=np.float32)
VIEWS = tuple((scene, time) for scene in SCENES for time in TIMES)
WEIGHTS = Path(__file__).with_name("judge.safetensors")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def without_things(picture: Picture) -> np.ndarray:
    """The ground that the picture should have, as pixels."""
    return pixels(draw(replace(picture, things=())))


def difference(image: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """(height, width) in 0..1: how far each pixel is from the ground, colour left aside."""
    distance = np.linalg.norm(image - ground, axis=-1)
    share: np.ndarray = np.clip(distance / max(40.0, float(np.quantile(distance, 0.98))), 0, 1)
    return share


def outline_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of what stands out, without stray pixels; None if nothing does."""
    solid = mask > 0.4
    columns, rows = np.flatnonzero(solid.sum(0) > 1), np.flatnonzero(solid.sum(1) > 1)
    if len(columns) < 4 or len(rows) < 4:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def cut_out(mask: np.ndarray) -> Tensor:
    """(1, SIDE, SIDE): the thing alone, centred and scaled to the same size whatever its place and size."""
    box = outline_box(mask)
    if box is None:
        return torch.zeros(1, SIDE, SIDE)
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    side = max(width, height) + 4
    square = torch.zeros(1, 1, side, side)
    y, x = (side - height) // 2, (side - width) // 2
    square[0, 0, y : y + height, x : x + width] = torch.from_numpy(mask[top:bottom, left:right])
    return F.interpolate(square, (SIDE, SIDE), mode="bilinear", antialias=True)[0]


def thumbnail(image: np.ndarray) -> Tensor:
    """(3, SIDE, SIDE) in -1..1."""
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    return F.interpolate(tensor, (SIDE, SIDE), mode="bilinear", antialias=True)[0]


def network(channels: int, classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((channels, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 16, classes))


@dataclass(frozen=True, slots=True)
class Finding:
    """What one picture got right; `outline` is the overlap (IoU) of its thing's outline with the drawn one."""

    ground: bool
    colour: bool
    thing: bool
    place: bool
    size: bool
    outline: float


class Judge:
    def __init__(self) -> None:
        self.things = network(1, len(THINGS)).eval()
        self.views = network(3, len(VIEWS)).eval()

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Judge:
        judge = cls()
        state = load_file(path)
        for name in ("things", "views"):
            part = {k.removeprefix(name + "."): v.float() for k, v in state.items() if k.startswith(name)}
            getattr(judge, name).load_state_dict(part, strict=False)
        return judge

    def save(self, path: Path) -> None:
        state = {
            f"{name}.{key}": value.contiguous()
            for name in ("things", "views")
            for key, value in getattr(self, name).state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        save_file(state, path)

    @torch.inference_mode()
    def name_of(self, mask: np.ndarray) -> str:
        return THINGS[int(self.things(cut_out(mask)[None]).argmax())]

    @torch.inference_mode()
    def view_of(self, image: Image.Image) -> tuple[str, str]:
        """Scene and time of day."""
        return VIEWS[int(self.views(thumbnail(pixels(image))[None]).argmax())]

    def one(self, image: Image.Image, wanted: Picture, asked: frozenset[str] = frozenset()) -> Finding:
        """Judge a picture of one thing; of `asked` (column, row, size), what was not asked for counts as right."""
        (thing,) = wanted.things
        made, ground = pixels(image), without_things(wanted)
        mask, target = difference(made, ground), difference(pixels(draw(wanted)), ground)
        column, row = place_of(mask, wanted)
        return Finding(
            ground=ground_right(made, ground),
            colour=colour_right(made, mask, pixels(draw(wanted)), target, thing.colour),
            thing=self.name_of(mask) == thing.name,
            place=("column" not in asked or column == thing.column) and ("row" not in asked or row == thing.row),
            size="size" not in asked or size_of(mask, wanted) == thing.size,
            outline=overlap(cut_out(mask), cut_out(target)),
        )

    def two(self, image: Image.Image, wanted: Picture) -> bool:
        """Whether both things are there, each in its half of the picture, with its colour."""
        made, ground, drawn = pixels(image), without_things(wanted), pixels(draw(wanted))
        beside = wanted.things[0].column == "left"
        middle = made.shape[1] // 2 if beside else made.shape[0] // 2
        before, after, every = slice(None, middle), slice(middle, None), slice(None)
        halves = ((every, before), (every, after)) if beside else ((before, every), (after, every))
        return ground_right(made, ground) and all(
            self._half(made[half], drawn[half], ground[half], thing)
            for half, thing in zip(halves, wanted.things, strict=True)
        )

    def _half(self, made: np.ndarray, drawn: np.ndarray, ground: np.ndarray, thing: Thing) -> bool:
        mask, target = difference(made, ground), difference(drawn, ground)
        return self.name_of(mask) == thing.name and colour_right(made, mask, drawn, target, thing.colour)


def ground_right(made: np.ndarray, ground: np.ndarray) -> bool:
    """At least three of the four corners have the colour they should have."""
    corners = [np.s_[a, b] for a in (slice(0, 10), slice(-10, None)) for b in (slice(0, 10), slice(-10, None))]
    far = [np.linalg.norm(made[c].mean((0, 1)) - ground[c].mean((0, 1))) for c in corners]
    return sum(bool(d < 45) for d in far) >= 3


def colour_share(image: np.ndarray, mask: np.ndarray, colour: str) -> float:
    """The share of a colour, out of the twelve, in what stands out."""
    inside = image[mask > 0.4]
    if len(inside) < 30:
        return 0.0
    names = ((inside[:, None] - PALETTE) ** 2).sum(-1).argmin(-1)
    return float((names == COLOUR_NAMES.index(colour)).mean())


def colour_right(made: np.ndarray, mask: np.ndarray, drawn: np.ndarray, target: np.ndarray, colour: str) -> bool:
    """The colour covers at least six tenths of what it covers in the drawing."""
    return colour_share(made, mask, colour) >= 0.6 * colour_share(drawn, target, colour)


def place_of(mask: np.ndarray, wanted: Picture) -> tuple[str, str]:
    """The column and row nearest to the middle of what stands out."""
    box = outline_box(mask)
    if box is None:
        return "", ""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    thing, size = wanted.things[0], wanted.things[0].size
    columns = COLUMNS if can_shift(wanted.width, size) else ("centre",)
    rows = ROWS if can_shift(wanted.height, size) else ("centre",)
    column = min(columns, key=lambda c: abs(position(wanted, replace(thing, column=c))[0] - x))
    row = min(rows, key=lambda r: abs(position(wanted, replace(thing, row=r))[1] - y))
    return column, row


def size_of(mask: np.ndarray, wanted: Picture) -> str:
    """The size whose drawing has the nearest extent."""
    box = outline_box(mask)
    extent = max(box[2] - box[0], box[3] - box[1]) if box else 0

    def gap(size: str) -> float:
        thing = replace(wanted.things[0], size=size, column="centre", row="centre")
        drawn = outline_box(difference(pixels(draw(replace(wanted, things=(thing,)))), without_things(wanted)))
        return abs(extent - max(drawn[2] - drawn[0], drawn[3] - drawn[1])) if drawn else 1e9

    return min(sizes_for(wanted.width, wanted.height), key=gap)


def overlap(a: Tensor, b: Tensor) -> float:
    first, second = a > 0.5, b > 0.5
    return float((first & second).sum() / (first | second).sum().clamp(min=1))


def bend(images: Tensor, strength: float) -> Tensor:
    """Shift everything along a smooth random field; `strength` in units of half the picture."""
    coarse = torch.randn(len(images), 2, 5, 5) * strength * torch.rand(len(images), 1, 1, 1)
    field = F.interpolate(coarse, images.shape[-2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    lines = torch.linspace(-1, 1, images.shape[-1])
    grid = torch.stack(torch.meshgrid(lines, lines, indexing="xy"), -1) * (1 + 0.08 * torch.randn(len(images), 1, 1, 2))
    return F.grid_sample(images, grid + field, align_corners=True, padding_mode="border")


def spoil(images: Tensor, strength: float) -> Tensor:
    images = bend(images, strength)
    soft = F.avg_pool2d(images, 3, 1, 1)
    images = torch.lerp(images, soft, torch.rand(len(images), 1, 1, 1))
    return images + 0.06 * torch.rand(len(images), 1, 1, 1) * torch.randn_like(images)


def thing_examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = random.Random(seed)
    rows: list[Tensor] = []
    labels: list[int] = []
    while len(rows) < count:
        picture = random_picture(rng, "things")
        if len(picture.things) == 1:
            made, ground = pixels(draw(picture)), without_things(picture)
            rows.append(cut_out(difference(made, ground)))
            labels.append(THINGS.index(picture.things[0].name))
    return torch.stack(rows), torch.tensor(labels)


def view_examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = random.Random(seed)
    rows: list[Tensor] = []
    labels: list[int] = []
    while len(rows) < count:
        picture = random_picture(rng, "full")
        if picture.scene is not None:
            rows.append(thumbnail(pixels(draw(picture))))
            labels.append(VIEWS.index((picture.scene.name, picture.scene.time)))
    return torch.stack(rows), torch.tensor(labels)


def fit(model: nn.Module, images: Tensor, labels: Tensor, strength: float, epochs: int) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(spoil(images[rows], strength)), labels[rows]).backward()
            optimiser.step()
        schedule.step()
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(1) == labels).float().mean())


def train(count: int, epochs: int, seed: int) -> Judge:
    torch.manual_seed(seed)
    judge = Judge()
    for name, examples, strength in (("things", thing_examples, 0.05), ("views", view_examples, 0.03)):
        model = getattr(judge, name)
        fit(model, *examples(count, seed), strength, epochs)
        plain, labels = examples(1000, seed + 1)
        right, bent = accuracy(model, plain, labels), accuracy(model, spoil(plain, strength), labels)
        print(f"{name}: {right:.3f} of other drawings, {bent:.3f} of spoiled ones", flush=True)
    return judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train(args.examples, args.epochs, args.seed).save(args.out)


if __name__ == "__main__":
    main()
