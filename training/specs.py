"""Owns the little world: its vocabulary, the description of one picture, and how descriptions are drawn at random.

Everything sits on a grid of 16 pixels, which is one token of the transformer. An object therefore always falls on
its tokens in the same way, so the model has to learn a few hundred crisp patches instead of a continuum of shifted
outlines. What varies from seed to seed is discrete: side, facing, place, size, variant.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field

TILE = 16
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 160, 70),
    "blue": (45, 90, 215),
    "purple": (130, 60, 170),
    "pink": (250, 150, 190),
    "brown": (125, 80, 45),
    "black": (25, 25, 30),
    "white": (246, 246, 246),
    "gray": (140, 142, 148),
    "cyan": (70, 200, 215),
}
COLOUR_NAMES = tuple(COLOURS)
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross", "moon", "hexagon")
OBJECTS = ("flower", "house", "fish", "boat", "tree", "balloon", "cat", "mushroom", "rocket", "car")
THINGS = SHAPES + OBJECTS
FACING = frozenset({"fish", "boat", "cat", "car", "moon"})
SIZES = ("small", "medium", "large")
RADIUS = {"small": 16, "medium": 30, "large": 44}
COLUMNS = ("left", "centre", "right")
ROWS = ("top", "centre", "bottom")
TIMES = ("day", "sunset", "night")
GROUNDS = ("plain", "striped", "sky", "meadow")
SCENES = ("house", "boat", "mountains", "city", "forest", "desert")
SIDES = ("left", "right")
#: The ground that a caption means when it names none; white for shapes and fish, a whole scene for house and boat.
HOME = {name: "meadow" for name in ("tree", "car", "cat", "flower", "mushroom")} | {
    "balloon": "sky",
    "rocket": "night",
}
#: The colour a caption means when it names none.
NATURAL = {
    "circle": "red",
    "square": "blue",
    "triangle": "green",
    "star": "yellow",
    "heart": "red",
    "diamond": "cyan",
    "ring": "orange",
    "cross": "red",
    "moon": "yellow",
    "hexagon": "purple",
    "flower": "pink",
    "house": "yellow",
    "fish": "orange",
    "boat": "red",
    "tree": "green",
    "balloon": "red",
    "cat": "orange",
    "mushroom": "red",
    "rocket": "white",
    "car": "red",
}
SQUARE = (128, 128)
#: The formats that the service renders (the shorter side is 128), a small one, and how often each turns up.
WIDE = {(176, 128): 0.4, (240, 128): 0.3, (304, 128): 0.12, (160, 96): 0.18}
FORMATS = {**WIDE, **{(height, width): share for (width, height), share in WIDE.items()}}


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: what it is, and its place on the grid of three columns and three rows."""

    name: str
    colour: str
    size: str = "medium"
    column: str = "centre"
    row: str = "centre"
    flip: bool = False


@dataclass(frozen=True, slots=True)
class Ground:
    """What lies behind the things; `colour` and `second` count for plain and striped, `time` for sky and meadow."""

    kind: str
    colour: str = "white"
    second: str = "white"
    time: str = "day"


@dataclass(frozen=True, slots=True)
class Scene:
    """A composed view; `side` is where the sun or moon stands, `extra` adds trees or snow, `variant` is 0 to 3."""

    name: str
    time: str
    side: str = "left"
    colour: str = "red"
    extra: bool = False
    variant: int = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """A complete description: `width` x `height` pixels, and either a scene or a ground with one or two things."""

    width: int
    height: int
    ground: Ground = field(default_factory=lambda: Ground("plain"))
    things: tuple[Thing, ...] = ()
    scene: Scene | None = None


def alike(a: str, b: str) -> bool:
    """Whether two colours are too close to tell one from the other in a picture."""
    return sum((x - y) ** 2 for x, y in zip(COLOURS[a], COLOURS[b], strict=True)) < 70**2


def held_out(thing: str, colour: str, ground: str) -> bool:
    """One in twelve combinations of thing, colour and plain ground never appears in training."""
    return zlib.crc32(f"{thing}/{colour}/{ground}".encode()) % 12 == 0


def other_colour(rng: random.Random, *taken: str) -> str:
    return rng.choice([c for c in COLOUR_NAMES if not any(alike(c, t) for t in taken)])


def layout(side: int) -> int:
    """How many pixels of a side are composed; a longer one goes on to the right or downwards.

    A transformer this small cannot tell how wide its picture is, so that the middle of a wide one is nowhere.
    """
    return min(side, SQUARE[0])


def centre(side: int) -> int:
    """The grid line nearest to the middle of what is composed."""
    return TILE * -(-layout(side) // (2 * TILE))


def along(place: str, side: int, size: str) -> int:
    """Pixel coordinate of a column or row."""
    margin = 48 if size == "large" else 32
    if place in ("left", "top"):
        return margin
    return layout(side) - margin if place in ("right", "bottom") else centre(side)


def position(picture: Picture, thing: Thing) -> tuple[int, int]:
    return along(thing.column, picture.width, thing.size), along(thing.row, picture.height, thing.size)


def sizes_for(width: int, height: int) -> tuple[str, ...]:
    return SIZES if min(width, height) >= 96 else ("small", "medium")


def can_shift(side: int, size: str) -> bool:
    """Whether the outer places of a side differ from its middle, and the thing fits there."""
    return side >= (112 if size == "large" else 96)


def is_settled(picture: Picture) -> bool:
    """Whether what no caption tells (facing, side, variant) has its first value."""
    if (scene := picture.scene) is not None:
        return scene.side == SIDES[0] and scene.variant == 0
    return not any(thing.flip for thing in picture.things)


def kind_of(picture: Picture) -> int:
    """0 for a scene, else the number of things."""
    return len(picture.things)


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of a stage of the curriculum; what `one` leaves of 1 is divided between `two` and scenes."""

    one: float
    two: float = 0.0
    objects: float = 0.5
    plain: float = 0.6
    striped: float = 0.0
    placed: float = 0.0
    sized: float = 0.35
    formats: float = 0.0
    #: How often a thing stands on the ground that a caption means when it names none.
    home: float = 0.1


STAGES = {
    "shapes": Mix(one=1.0, objects=0.0, plain=0.9, sized=0.2),
    "things": Mix(one=0.94, objects=0.55, plain=0.62, striped=0.05, placed=0.25, formats=0.1),
    "formats": Mix(one=0.72, objects=0.5, plain=0.5, striped=0.04, formats=1.0),
    "home": Mix(one=1.0, objects=0.9, sized=0.15, home=1.0),
    "placed": Mix(one=1.0, objects=0.25, plain=0.8, striped=0.15, placed=0.8, sized=0.8),
    "pairs": Mix(one=0.5, two=0.5, objects=0.3, plain=0.75, striped=0.15, placed=0.85, sized=0.6),
    "full": Mix(one=0.6, two=0.2, objects=0.5, plain=0.55, striped=0.1, placed=0.4, formats=0.25),
}


def home_ground(name: str) -> Ground:
    home = HOME.get(name, "white")
    if home == "white":
        return Ground("plain", "white")
    return Ground("meadow") if home == "meadow" else Ground("sky", time="night" if home == "night" else "day")


def random_ground(rng: random.Random, mix: Mix, name: str, colour: str) -> Ground:
    if rng.random() < mix.home and not (colour == "white" and home_ground(name).kind == "plain"):
        return home_ground(name)
    q = rng.random()
    if q < mix.plain:
        return Ground("plain", other_colour(rng, colour))
    if q < mix.plain + mix.striped:
        first = other_colour(rng, colour)
        return Ground("striped", first, other_colour(rng, colour, first))
    return Ground(rng.choice(("sky", "meadow")), time=rng.choice(TIMES))


def random_thing(rng: random.Random, mix: Mix, width: int, height: int) -> Thing:
    name = rng.choice(OBJECTS if rng.random() < mix.objects else SHAPES)
    size = rng.choice(sizes_for(width, height)) if rng.random() < mix.sized else "medium"
    placed = rng.random() < mix.placed
    column = rng.choice(COLUMNS) if placed and can_shift(width, size) else "centre"
    row = rng.choice(ROWS) if placed and can_shift(height, size) else "centre"
    colour = NATURAL[name] if rng.random() < 0.12 else rng.choice(COLOUR_NAMES)
    return Thing(name, colour, size, column, row, name in FACING and rng.random() < 0.5)


def random_one(rng: random.Random, mix: Mix, width: int, height: int) -> Picture:
    thing = random_thing(rng, mix, width, height)
    return Picture(width, height, random_ground(rng, mix, thing.name, thing.colour), (thing,))


def random_two(rng: random.Random, width: int, height: int) -> Picture:
    """Two things, side by side or one above the other, whichever the format has room for."""
    ground = Ground("plain", rng.choice(COLOUR_NAMES))
    first = other_colour(rng, ground.colour)
    second = other_colour(rng, ground.colour, first)
    names = [rng.choice(SHAPES if rng.random() < 0.7 else OBJECTS) for _ in range(2)]
    beside = width >= 128 and (height < 128 or rng.random() < 0.6)
    places = (("left", "centre"), ("right", "centre")) if beside else (("centre", "top"), ("centre", "bottom"))
    things = tuple(
        Thing(name, colour, "medium", column, row, name in FACING and rng.random() < 0.5)
        for name, colour, (column, row) in zip(names, (first, second), places, strict=True)
    )
    return Picture(width, height, ground, things)


def random_scene(rng: random.Random, width: int, height: int) -> Picture:
    scene = Scene(
        rng.choice(SCENES),
        rng.choice(TIMES),
        rng.choice(SIDES),
        rng.choice(COLOUR_NAMES),
        rng.random() < 0.4,
        rng.randrange(4),
    )
    return Picture(width, height, scene=scene)


def is_held_out(picture: Picture) -> bool:
    if len(picture.things) != 1 or picture.ground.kind != "plain":
        return False
    return held_out(picture.things[0].name, picture.things[0].colour, picture.ground.colour)


def random_picture(rng: random.Random, stage: str) -> Picture:
    """A picture of one stage of the curriculum, never one that is held out."""
    while True:
        picture = any_picture(rng, STAGES[stage])
        if not is_held_out(picture):
            return picture


def random_format(rng: random.Random) -> tuple[int, int]:
    return rng.choices(tuple(FORMATS), tuple(FORMATS.values()))[0]


def any_picture(rng: random.Random, mix: Mix) -> Picture:
    width, height = random_format(rng) if rng.random() < mix.formats else SQUARE
    q = rng.random()
    if q < mix.one:
        return random_one(rng, mix, width, height)
    if q < mix.one + mix.two and max(width, height) >= 128:
        return random_two(rng, width, height)
    return random_scene(rng, width, height)
