"""Owns the pictures: turns a description into pixels, the same pixels every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from training.specs import COLOURS, RADIUS, TILE, Ground, Picture, Scene, Thing, centre, layout, position

Colour = tuple[int, int, int]
Point = tuple[float, float]
#: Everything is drawn this many times larger and then averaged down, which smooths the edges.
SUPERSAMPLE = 3

SKY: dict[str, tuple[Colour, Colour]] = {
    "day": ((95, 175, 240), (205, 234, 250)),
    "sunset": ((95, 60, 130), (255, 150, 80)),
    "night": ((12, 16, 48), (40, 50, 105)),
}
GRASS: dict[str, Colour] = {"day": (90, 180, 80), "sunset": (95, 110, 60), "night": (25, 65, 55)}
SEA: dict[str, Colour] = {"day": (40, 125, 195), "sunset": (120, 70, 120), "night": (18, 36, 88)}
SHADE = {"day": 0.0, "sunset": 0.22, "night": 0.5}
WHITE: Colour = (250, 250, 250)
INK: Colour = (30, 30, 36)
WOOD: Colour = (112, 70, 42)
SUN: Colour = (255, 214, 60)
MOONLIGHT: Colour = (250, 240, 200)
LAMP: Colour = (255, 226, 120)
GLASS: Colour = (190, 225, 240)
#: Stars of the night sky, in pixels within a block of 64 x 48 that repeats.
STARS = ((8, 9), (27, 24), (41, 6), (56, 19), (13, 38), (36, 41), (57, 43))


def mix(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def contrast(colour: Colour) -> Colour:
    """A light tone on dark colours, a dark one on light colours."""
    return mix(colour, WHITE, 0.8) if sum(colour) < 330 else mix(colour, INK, 0.85)


def shade(colour: Colour, time: str) -> Colour:
    return mix(colour, (20, 20, 50), SHADE[time])


class Pen:
    """Draws in the units of one thing: (0, 0) is its centre, 1 its radius, y points down, `flip` mirrors it."""

    def __init__(self, image: Image.Image, at: Point, radius: float, flip: bool = False) -> None:
        self._draw = ImageDraw.Draw(image)
        self._x, self._y = at[0] * SUPERSAMPLE, at[1] * SUPERSAMPLE
        self._scale = radius * SUPERSAMPLE
        self._mirror = -1 if flip else 1

    def _point(self, x: float, y: float) -> Point:
        return self._x + self._mirror * self._scale * x, self._y + self._scale * y

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        (a, top), (b, bottom) = self._point(x0, y0), self._point(x1, y1)
        return min(a, b), top, max(a, b) - 1, bottom - 1

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._draw.polygon([self._point(x, y) for x, y in points], fill=colour)

    def disc(self, x: float, y: float, rx: float, colour: Colour, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self._draw.ellipse(self._box(x - rx, y - ry, x + rx, y + ry), fill=colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, rounded: float = 0.0) -> None:
        self._draw.rounded_rectangle(self._box(x0, y0, x1, y1), rounded * self._scale, fill=colour)

    def dome(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """The upper half of an ellipse."""
        self._draw.pieslice(self._box(x - rx, y - ry, x + rx, y + ry), 180, 360, fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        ends = [self._point(x, y) for x, y in points]
        self._draw.line(ends, fill=colour, width=max(2, round(width * self._scale)), joint="curve")


Sketch = Callable[[Pen, Colour], None]


def star_points(outer: float = 1.05, inner: float = 0.46) -> list[Point]:
    radii = [outer if i % 2 == 0 else inner for i in range(10)]
    return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]


def heart_points(count: int = 60) -> list[Point]:
    turns = [i * 2 * math.pi / count for i in range(count)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.1,
        )
        for t in turns
    ]


def moon_points(count: int = 40) -> list[Point]:
    """A crescent open to the right: the outer arc of a unit circle and back along a smaller one."""
    outer = [math.radians(50 + 260 * i / count) for i in range(count + 1)]
    x, y = math.cos(outer[0]), math.sin(outer[0])
    hollow = 0.42
    reach = math.hypot(x - hollow, y)
    edge = math.atan2(y, x - hollow)
    inner = [-edge - (2 * math.pi - 2 * edge) * i / count for i in range(count + 1)]
    return [(math.cos(t), math.sin(t)) for t in outer] + [
        (hollow + reach * math.cos(t), reach * math.sin(t)) for t in inner
    ]


def ring_points(inner: float = 0.56, count: int = 72) -> list[Point]:
    """One closed band, so that whatever lies behind shows through the middle."""
    turns = [i * 2 * math.pi / count for i in range(count + 1)]
    outer = [(math.cos(t), math.sin(t)) for t in turns]
    return outer + [(inner * math.cos(t), inner * math.sin(t)) for t in reversed(turns)]


def cross_points(arm: float = 0.34) -> list[Point]:
    corner = [(arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm), (arm, 1.0)]
    return corner + [(-x, -y) for x, y in corner]


OUTLINES: dict[str, list[Point]] = {
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0, -1), (1, 0.86), (-1, 0.86)],
    "star": star_points(),
    "heart": heart_points(),
    "diamond": [(0, -1.05), (0.78, 0), (0, 1.05), (-0.78, 0)],
    "ring": ring_points(),
    "cross": cross_points(),
    "moon": moon_points(),
    "hexagon": [(math.cos(i * math.pi / 3), math.sin(i * math.pi / 3)) for i in range(6)],
}


def flower(pen: Pen, colour: Colour) -> None:
    stem, middle = (50, 140, 60), -0.35
    pen.box(-0.07, 0.0, 0.07, 1.0, stem)
    for side in (-1, 1):
        pen.polygon([(0, 0.95), (side * 0.3, 0.85), (side * 0.62, 0.45), (side * 0.2, 0.55)], (60, 160, 70))
    for i in range(6):
        pen.disc(0.4 * math.cos(i * math.pi / 3), middle + 0.4 * math.sin(i * math.pi / 3), 0.3, colour)
    yellow = colour[0] > 200 and 120 < colour[1] < 235
    pen.disc(0, middle, 0.25, (150, 85, 35) if yellow else (252, 214, 60))


def house(pen: Pen, colour: Colour) -> None:
    pen.box(0.36, -0.95, 0.56, -0.3, mix(colour, (90, 40, 35), 0.6))
    pen.box(-0.76, -0.2, 0.76, 0.95, colour)
    pen.polygon([(-1, -0.14), (0, -1), (1, -0.14)], mix(colour, (80, 30, 30), 0.62))
    pen.box(-0.18, 0.34, 0.18, 0.95, mix(colour, (60, 35, 20), 0.75))
    for x in (-0.47, 0.47):
        pen.box(x - 0.17, 0.06, x + 0.17, 0.4, LAMP)


def fish(pen: Pen, colour: Colour) -> None:
    pen.polygon([(0.45, 0), (1.02, -0.5), (0.9, 0), (1.02, 0.5)], mix(colour, INK, 0.2))
    pen.polygon([(-0.35, -0.38), (0.3, -0.75), (0.32, -0.3)], mix(colour, INK, 0.2))
    pen.disc(-0.15, 0, 0.78, colour, 0.52)
    pen.disc(-0.52, -0.1, 0.16, WHITE)
    pen.disc(-0.56, -0.1, 0.08, INK)


def boat(pen: Pen, colour: Colour) -> None:
    pen.box(-0.05, -1.0, 0.05, 0.5, WOOD)
    pen.polygon([(0.1, -0.95), (0.88, 0.36), (0.1, 0.36)], colour)
    pen.polygon([(-0.1, -0.7), (-0.74, 0.36), (-0.1, 0.36)], mix(colour, WHITE, 0.35))
    pen.polygon([(-1, 0.48), (1, 0.48), (0.7, 0.95), (-0.7, 0.95)], WOOD)


def tree(pen: Pen, colour: Colour) -> None:
    pen.box(-0.13, 0.2, 0.13, 1.0, WOOD)
    for x, y, size in ((0, -0.46, 0.52), (-0.4, -0.05, 0.46), (0.4, -0.05, 0.46), (0, 0.05, 0.46)):
        pen.disc(x, y, size, colour)


def balloon(pen: Pen, colour: Colour) -> None:
    pen.line([(0, 0.5), (-0.08, 0.75), (0.06, 1.02)], 0.06, (90, 90, 95))
    pen.polygon([(0, 0.36), (-0.16, 0.6), (0.16, 0.6)], mix(colour, INK, 0.15))
    pen.disc(0, -0.28, 0.64, colour, 0.76)
    pen.disc(-0.24, -0.56, 0.12, mix(colour, WHITE, 0.65), 0.18)


def cat(pen: Pen, colour: Colour) -> None:
    """A sitting cat seen from the front, with the tail to one side."""
    dark = contrast(colour)
    pen.line([(0.4, 0.85), (0.85, 0.75), (0.9, 0.35), (0.7, 0.15)], 0.2, colour)
    pen.disc(0, 0.52, 0.56, colour, 0.48)
    for side in (-1, 1):
        pen.polygon([(side * 0.56, -1.0), (side * 0.6, -0.25), (side * 0.08, -0.6)], colour)
    pen.disc(0, -0.25, 0.6, colour, 0.48)
    for side in (-1, 1):
        pen.disc(side * 0.24, -0.32, 0.1, dark, 0.14)
    pen.polygon([(-0.1, -0.12), (0.1, -0.12), (0, 0)], (240, 120, 140))


def mushroom(pen: Pen, colour: Colour) -> None:
    pen.box(-0.28, -0.1, 0.28, 0.95, (240, 228, 205), 0.12)
    pen.dome(0, 0.1, 1.0, 1.05, colour)
    dots = WHITE if sum(colour) < 620 else (205, 70, 70)
    for x, y, size in ((-0.5, -0.22, 0.16), (0.06, -0.58, 0.18), (0.52, -0.2, 0.15)):
        pen.disc(x, y, size, dots)


def rocket(pen: Pen, colour: Colour) -> None:
    pen.polygon([(-0.22, 0.6), (0.22, 0.6), (0, 1.05)], (255, 150, 40))
    for side in (-1, 1):
        pen.polygon([(side * 0.25, 0.05), (side * 0.68, 0.78), (side * 0.2, 0.68)], mix(colour, (200, 50, 50), 0.6))
    pen.disc(0, -0.1, 0.4, colour, 0.92)
    pen.box(-0.3, 0.5, 0.3, 0.74, mix(colour, INK, 0.35))
    pen.disc(0, -0.28, 0.2, contrast(colour))
    pen.disc(0, -0.28, 0.13, (150, 215, 240))


def car(pen: Pen, colour: Colour) -> None:
    pen.polygon([(-0.6, 0.05), (-0.4, -0.5), (0.35, -0.5), (0.62, 0.05)], mix(colour, WHITE, 0.12))
    pen.polygon([(-0.44, 0), (-0.3, -0.38), (-0.05, -0.38), (-0.05, 0)], GLASS)
    pen.polygon([(0.06, 0), (0.06, -0.38), (0.27, -0.38), (0.44, 0)], GLASS)
    pen.box(-1.0, -0.02, 1.0, 0.48, colour, 0.16)
    for x in (-0.55, 0.55):
        pen.disc(x, 0.48, 0.27, INK)
        pen.disc(x, 0.48, 0.12, (205, 205, 210))


OBJECT_SKETCHES: dict[str, Sketch] = {
    "flower": flower,
    "house": house,
    "fish": fish,
    "boat": boat,
    "tree": tree,
    "balloon": balloon,
    "cat": cat,
    "mushroom": mushroom,
    "rocket": rocket,
    "car": car,
}


def sketch(pen: Pen, name: str, colour: Colour) -> None:
    if name in OBJECT_SKETCHES:
        OBJECT_SKETCHES[name](pen, colour)
    elif name == "circle":
        pen.disc(0, 0, 1.0, colour)
    else:
        pen.polygon(OUTLINES[name], colour)


def canvas(width: int, height: int, top: Colour, bottom: Colour | None = None) -> Image.Image:
    """A supersampled canvas of one colour, or of a vertical gradient over what is composed."""
    size = (width * SUPERSAMPLE, height * SUPERSAMPLE)
    if bottom is None:
        return Image.new("RGB", size, top)
    share = np.clip(np.arange(size[1]) / (layout(height) * SUPERSAMPLE - 1), 0, 1)[:, None, None]
    ramp = np.array(top) + share * (np.array(bottom) - np.array(top))
    return Image.fromarray(np.broadcast_to(ramp, (size[1], size[0], 3)).round().astype(np.uint8))


def reach(image: Image.Image) -> tuple[int, int]:
    """Width and height of the finished picture."""
    return image.width // SUPERSAMPLE, image.height // SUPERSAMPLE


def pixels(image: Image.Image) -> Pen:
    """A pen whose unit is one pixel of the finished picture, from the top left corner."""
    return Pen(image, (0, 0), 1.0)


def stars(image: Image.Image) -> None:
    pen, (width, height) = pixels(image), reach(image)
    for x, y in STARS:
        for dx in range(0, width, 64):
            for dy in range(0, height, 48):
                pen.disc(x + dx, y + dy, 1.3, (255, 250, 225))


def clouds(image: Image.Image, width: int, rows: Sequence[int] = (24, 40)) -> None:
    pen = pixels(image)
    for x, y in zip((24, width - 24), rows, strict=True):
        for dx, dy, size in ((-9, 2, 6), (0, -2, 8), (9, 2, 6)):
            pen.disc(x + dx, y + dy, size, WHITE)
        pen.box(x - 14, y + 2, x + 14, y + 8, WHITE, 3)


def sky(width: int, height: int, time: str) -> Image.Image:
    image = canvas(width, height, *SKY[time])
    if time == "night":
        stars(image)
    return image


def hill(image: Image.Image, width: int, height: int, colour: Colour) -> None:
    top = TILE * round(0.64 * height / TILE)
    pixels(image).disc(width / 2, top + height * 0.8, width * 0.95, colour, height * 0.8)
    floor(image, height, colour)


def floor(image: Image.Image, height: int, colour: Colour) -> None:
    """The lowest row of what is composed, and all below and beside it."""
    pixels(image).box(0, height - TILE, *reach(image), colour)


def stripes(image: Image.Image, colour: Colour) -> None:
    pen, (width, height) = pixels(image), reach(image)
    for x in range(TILE, width, 2 * TILE):
        pen.box(x, 0, x + TILE, height, colour)


def draw_ground(width: int, height: int, ground: Ground) -> Image.Image:
    if ground.kind in ("plain", "striped"):
        image = canvas(width, height, COLOURS[ground.colour])
        if ground.kind == "striped":
            stripes(image, COLOURS[ground.second])
        return image
    image = sky(width, height, ground.time)
    if ground.time == "day":
        clouds(image, layout(width))
    if ground.kind == "meadow":
        hill(image, layout(width), layout(height), GRASS[ground.time])
    return image


def draw_thing(image: Image.Image, picture: Picture, thing: Thing) -> None:
    pen = Pen(image, position(picture, thing), RADIUS[thing.size], thing.flip)
    sketch(pen, thing.name, COLOURS[thing.colour])


def light(image: Image.Image, width: int, scene: Scene, horizon: int) -> None:
    """The sun with its rays, the sun on the horizon, or the moon."""
    x = 32 if scene.side == "left" else width - 32
    if scene.time == "sunset":
        Pen(image, (x, horizon), 16).disc(0, 0, 1, (255, 220, 120))
    elif scene.time == "night":
        sketch(Pen(image, (x, 32), 14), "moon", MOONLIGHT)
    else:
        pen = Pen(image, (x, 32), 13)
        for i in range(8):
            cos, sin = math.cos(i * math.pi / 4), math.sin(i * math.pi / 4)
            pen.line([(1.2 * cos, 1.2 * sin), (1.7 * cos, 1.7 * sin)], 0.2, SUN)
        pen.disc(0, 0, 1, SUN)


def mountains(image: Image.Image, width: int, height: int, scene: Scene) -> None:
    base = TILE * round(0.75 * height / TILE)
    pen, mirror, grass = pixels(image), scene.variant % 2 == 1, shade((80, 165, 90), scene.time)
    peaks = ((0.2, 0.36, (130, 140, 175)), (0.82, 0.42, (130, 140, 175)), (0.52, 0.26, (90, 105, 150)))
    for place, top, colour in peaks:
        x = TILE * round((1 - place if mirror else place) * width / TILE)
        y = TILE * round(top * height / TILE)
        rise = base + TILE - y
        pen.polygon([(x, y), (x + rise * 0.85, base + TILE), (x - rise * 0.85, base + TILE)], shade(colour, scene.time))
        cap = [(0, 0), (0.26, 0.31), (0.1, 0.24), (0, 0.34), (-0.11, 0.24), (-0.26, 0.31)]
        pen.polygon([(x + dx * rise * 0.85, y + dy * rise) for dx, dy in cap], shade(WHITE, scene.time))
    pen.disc(width / 2, base + height * 0.6, width, grass, height * 0.6)
    floor(image, height, grass)
    if scene.extra:
        for x in (24, 56, width - 24):
            pine(image, (x, base + 8), 16, scene, snow=False)


def pine(image: Image.Image, at: Point, radius: float, scene: Scene, snow: bool) -> None:
    pen = Pen(image, at, radius)
    green = shade((40, 115, 70), scene.time)
    pen.box(-0.12, 0.6, 0.12, 1.0, shade(WOOD, scene.time))
    for y, half in ((0.65, 0.72), (0.15, 0.56), (-0.35, 0.4)):
        pen.polygon([(0, y - 0.72), (half, y), (-half, y)], green)
        if snow:
            pen.polygon(
                [(0, y - 0.72), (half * 0.5, y - 0.36), (0, y - 0.44), (-half * 0.5, y - 0.36)],
                shade(WHITE, scene.time),
            )


def forest(image: Image.Image, width: int, height: int, scene: Scene) -> None:
    base = TILE * round(0.7 * height / TILE)
    lawn = (238, 243, 250) if scene.extra else (95, 170, 85)
    pixels(image).box(0, base, *reach(image), shade(lawn, scene.time))
    first = 8 if scene.variant % 2 else 24
    width = reach(image)[0]
    for x in range(first, width, 32):
        pine(image, (x, base - 16), 24, scene, scene.extra)
    for x in range(first - 16 + 16 * (scene.variant // 2), width + 16, 48):
        pine(image, (x, base), 32, scene, scene.extra)


def desert(image: Image.Image, width: int, height: int, scene: Scene) -> None:
    base = TILE * round(0.68 * height / TILE)
    pen, mirror = pixels(image), scene.variant % 2 == 1
    for place, rise, colour in ((0.85, 10, (228, 184, 115)), (0.15, 2, (242, 204, 135))):
        x = (1 - place if mirror else place) * width
        pen.disc(x, base - rise + height * 0.5, width * 0.8, shade(colour, scene.time), height * 0.5)
    floor(image, height, shade((242, 204, 135), scene.time))
    cactus(image, (centre(width) + (-16, 0, 16, 0)[scene.variant], base - 16), shade((55, 140, 80), scene.time))


def cactus(image: Image.Image, at: Point, colour: Colour) -> None:
    pen = Pen(image, at, 30)
    for x0, y0, x1, y1 in (
        (-0.17, -0.95, 0.17, 0.9),
        (-0.72, -0.35, -0.46, 0.25),
        (-0.72, 0.02, 0, 0.25),
        (0.46, -0.55, 0.72, 0.1),
        (0, -0.13, 0.72, 0.1),
    ):
        pen.box(x0, y0, x1, y1, colour, 0.12)


def city(image: Image.Image, width: int, height: int, scene: Scene) -> None:
    """Two rows of towers; the variant turns the list of heights, so that the skyline differs."""
    far, near = (3, 5, 4, 5, 3, 4), (2, 4, 1, 3, 4, 2, 3, 1)
    pen, (wide, tall) = pixels(image), reach(image)
    for i, x in enumerate(range(-8, wide, TILE)):
        top = height - TILE * min(far[(i + scene.variant) % 6], height // TILE - 2)
        pen.box(x, top, x + TILE, tall, shade((150, 160, 185), scene.time))
    lit = GLASS if scene.time == "day" else LAMP
    for i, x in enumerate(range(0, wide, TILE)):
        top = height - TILE * near[(i + 2 * scene.variant) % 8]
        pen.box(x, top, x + TILE - 1, tall, shade((85, 92, 122), scene.time))
        for y in range(top + 4, tall, TILE):
            for dx in (2, 9):
                pen.box(x + dx, y, x + dx + 4, y + 7, lit)


def boat_scene(image: Image.Image, width: int, height: int, scene: Scene) -> None:
    horizon = TILE * round(0.62 * height / TILE)
    sea = SEA[scene.time]
    wide, tall = reach(image)
    water = canvas(wide, tall - horizon, mix(sea, WHITE, 0.15), sea)
    image.paste(water, (0, horizon * SUPERSAMPLE))
    pen = pixels(image)
    for x, y in ((6, 22), (38, 36)):
        for dx in range(0, wide, 64):
            pen.box(x + dx, horizon + y, x + dx + 16, horizon + y + 2, mix(sea, WHITE, 0.4))
    at = (centre(width) + (-16, 0, 16, 0)[scene.variant], horizon - 16)
    sketch(Pen(image, at, 30, scene.variant == 3), "boat", COLOURS[scene.colour])


def house_scene(image: Image.Image, width: int, height: int, scene: Scene) -> None:
    hill(image, width, height, GRASS[scene.time])
    y = TILE * round(0.64 * height / TILE) - 8
    left = scene.side == "right"
    x = centre(width) + (-16 if left else 16) * (1 if width >= 112 else 0)
    if scene.extra:
        tree_x = width - 24 if left else 24
        sketch(Pen(image, (tree_x, y + 8), 24), "tree", shade((60, 150, 75), scene.time))
    sketch(Pen(image, (x, y), 30), "house", COLOURS[scene.colour])


Composition = Callable[[Image.Image, int, int, Scene], None]
COMPOSITIONS: dict[str, Composition] = {
    "mountains": mountains,
    "forest": forest,
    "desert": desert,
    "city": city,
    "boat": boat_scene,
    "house": house_scene,
}


def draw_scene(width: int, height: int, scene: Scene) -> Image.Image:
    image = sky(width, height, scene.time)
    across, down = layout(width), layout(height)
    light(image, across, scene, horizon=TILE * round(0.62 * down / TILE))
    COMPOSITIONS[scene.name](image, across, down, scene)
    return image


def draw(picture: Picture) -> Image.Image:
    """The picture as an RGB image of its own width and height."""
    if picture.scene is not None:
        image = draw_scene(picture.width, picture.height, picture.scene)
    else:
        image = draw_ground(picture.width, picture.height, picture.ground)
        for thing in picture.things:
            draw_thing(image, picture, thing)
    return image.reduce(SUPERSAMPLE)
