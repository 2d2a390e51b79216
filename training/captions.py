"""Owns the language: one of the many ways of saying what a picture shows.

What a caption leaves out has a usual value (`specs.HOME`, `specs.NATURAL`), or is left to the noise.
"""

from __future__ import annotations

import random
from dataclasses import replace

from training.specs import HOME, NATURAL, SHAPES, Ground, Picture, Scene, Thing, home_ground

LITTLE = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big", "huge"), "medium": ("",)}
MIDDLE = ("in the centre", "in the center", "in the middle")
PREFIXES = ("a picture of", "a drawing of", "an illustration of", "a photo of", "a painting of", "an image of", "draw")
SUFFIXES = (", flat design", ", minimalist", ", high quality", ", vector art", ", colourful", ", 4k", ".", "!")
PRAISE = ("beautiful", "lovely", "simple", "cute", "nice", "bright")
BARE_TIME = {
    "day": ("on a sunny day", "on a bright day", "in the daytime"),
    "sunset": ("at sunset", "at sunset", "at dusk", "in the evening"),
    "night": ("at night", "at night", "under the stars", "in the moonlight", "on a starry night"),
}
IN_SKY = {
    "day": ("in the sky", "in a blue sky", "in the clouds"),
    "sunset": ("in the sunset sky", "in a sunset sky", "in the evening sky"),
    "night": ("in the night sky", "in a starry sky"),
}
ON_GRASS = ("in a meadow", "on a green hill", "on the grass", "on grass")
GRASS_TIME = {"day": "", "sunset": " at sunset", "night": " at night"}
SCENE_WORDS = {
    "mountains": ("mountains", "snowy mountains", "a mountain landscape", "mountain peaks"),
    "city": ("a city", "a city skyline", "city buildings", "skyscrapers in a city"),
    "forest": ("a forest", "a green forest", "pine trees", "a pine forest"),
    "desert": ("a desert", "a cactus in the desert", "a desert landscape", "sand dunes and a cactus"),
}
SNOWY_FOREST = ("a winter forest", "a snowy forest", "a forest in the snow", "pine trees in the snow")
#: Real words that mean nothing here; they turn up at random, so that the model learns to pass over them.
STRANGERS = (
    "an",
    "of",
    "the",
    "with",
    "and",
    "riding",
    "horse",
    "astronaut",
    "dog",
    "bird",
    "person",
    "man",
    "woman",
    "king",
    "robot",
    "dragon",
    "apple",
    "face",
    "river",
    "lake",
    "beach",
    "island",
    "bridge",
    "castle",
    "road",
    "summer",
    "spring",
    "autumn",
    "old",
    "new",
    "young",
    "happy",
    "sad",
    "golden",
    "dark",
    "light",
    "tall",
    "round",
    "shiny",
    "fluffy",
    "three",
    "many",
    "few",
    "very",
    "really",
    "sitting",
    "standing",
    "flying",
    "walking",
    "driving",
    "swimming",
    "jumping",
    "near",
    "far",
    "through",
    "around",
    "his",
    "her",
    "portrait",
    "style",
    "watercolor",
    "oil",
    "cartoon",
    "pixel",
    "art",
    "realistic",
    "detailed",
    "cinematic",
    "3d",
    "render",
    "masterpiece",
    "fox",
    "lighthouse",
)
#: What is drawn for a thing that nobody knows here.
STAND_IN = "cat"
CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"


def article(words: str) -> str:
    return ("an " if words[0] in VOWELS else "a ") + words


def nonsense(rng: random.Random) -> str:
    """A word that nobody knows here, made up or real."""
    if rng.random() < 0.4:
        return rng.choice(STRANGERS)
    syllables = "".join(
        rng.choice(CONSONANTS) + rng.choice(VOWELS) + rng.choice(("", "", rng.choice(CONSONANTS)))
        for _ in range(rng.randint(1, 3))
    )
    return syllables + rng.choice(("", "", "n", "s", "ing", "ed", "é"))


def plain_words(colour: str, rng: random.Random) -> str:
    a = article(colour)
    return rng.choice(
        (
            f"on {a} background",
            f"on {a} background",
            f"on {a} background",
            f"on {colour}",
            f"with {a} background",
            f"against {a} background",
            f"in front of {a} wall",
            f", {colour} background",
        )
    )


def striped_words(first: str, second: str, rng: random.Random) -> str:
    return rng.choice(
        (
            f"on {article(first)} and {second} striped background",
            f"on a striped {first} and {second} background",
            f"on {first} and {second} stripes",
            f"with {first} and {second} stripes",
        )
    )


def is_home(ground: Ground, name: str) -> bool:
    """Whether this is the ground that a caption means when it names none; a bare house or boat means a scene."""
    return name not in ("house", "boat") and ground == home_ground(name)


def ground_words(ground: Ground, name: str, rng: random.Random) -> str:
    if is_home(ground, name) and rng.random() < 0.5:
        return ""
    if ground.kind == "plain":
        return plain_words(ground.colour, rng)
    if ground.kind == "striped":
        return striped_words(ground.colour, ground.second, rng)
    grass = ground.kind == "meadow"
    timely = HOME.get(name) == "meadow" if grass else name in SHAPES or HOME.get(name) in ("sky", "night")
    if timely and rng.random() < 0.4:
        return rng.choice(BARE_TIME[ground.time])
    return rng.choice(ON_GRASS) + GRASS_TIME[ground.time] if grass else rng.choice(IN_SKY[ground.time])


def place_words(thing: Thing, rng: random.Random) -> str:
    """Where it stands; a middle place is seldom said, an outer one nearly always."""
    column, row = thing.column, thing.row
    if column == row == "centre":
        return rng.choice(MIDDLE) if rng.random() < 0.15 else ""
    if rng.random() < 0.03:
        return ""
    if column != "centre" and row != "centre":
        return rng.choice((f"in the {row} {column} corner", f"at the {row} {column}", f"in the {row} {column}"))
    side = row if column == "centre" else column
    return rng.choice((f"on the {side}", f"at the {side}", f"on the {side} side"))


def colour_word(colour: str, rng: random.Random) -> str:
    return "grey" if colour == "gray" and rng.random() < 0.3 else colour


def thing_words(thing: Thing, rng: random.Random, silent: float = 0.4) -> str:
    """Size, colour and name; `silent` is how often a usual colour goes unsaid."""
    size = rng.choice(LITTLE[thing.size]) if rng.random() < 0.97 else ""
    usual = NATURAL.get(thing.name) == thing.colour and rng.random() < silent
    colour = "" if usual else colour_word(thing.colour, rng)
    return article(" ".join(w for w in (size, colour, thing.name) if w))


def one_words(picture: Picture, rng: random.Random, layout: bool) -> str:
    (thing,) = picture.things
    words = thing_words(thing if layout else replace(thing, size="medium"), rng)
    if thing.name == STAND_IN and rng.random() < 0.4:
        words = words.replace(thing.name, nonsense(rng))
    place = place_words(thing, rng) if layout else ""
    ground = ground_words(picture.ground, thing.name, rng)
    return " ".join(w for w in ((words, place, ground) if rng.random() < 0.65 else (words, ground, place)) if w)


def beside_words(a: str, b: str, rng: random.Random) -> str:
    return rng.choice(
        (
            f"{a} and {b}",
            f"{a} next to {b}",
            f"{a} beside {b}",
            f"{b} to the right of {a}",
            f"{a} to the left of {b}",
            f"{a} left of {b}",
            f"{a} on the left and {b} on the right",
        )
    )


def above_words(a: str, b: str, rng: random.Random) -> str:
    return rng.choice((f"{a} above {b}", f"{b} below {a}", f"{b} under {a}", f"{a} on top of {b}", f"{a} over {b}"))


def two_words(picture: Picture, rng: random.Random) -> str:
    first, second = (thing_words(thing, rng, silent=0.0) for thing in picture.things)
    words = (beside_words if picture.things[0].column == "left" else above_words)(first, second, rng)
    if picture.ground.colour == "white" and rng.random() < 0.4:
        return words
    return f"{words} {plain_words(picture.ground.colour, rng)}"


def scene_subject(scene: Scene, rng: random.Random) -> str:
    if scene.name == "house":
        where = rng.choice(("", "", " on a hill", " in the countryside"))
        tree = rng.choice((" and a tree", " with a tree", " next to a tree")) if scene.extra else ""
        return article(scene.colour) + " house" + tree + where
    if scene.name == "boat":
        a, sea = article(scene.colour), rng.choice(("on the sea", "on the ocean", "at sea", "on the water"))
        return rng.choice(
            (f"{a} boat", f"{a} boat {sea}", f"{a} sailing boat {sea}", f"a boat with {scene.colour} sails {sea}")
        )
    if scene.name == "forest" and scene.extra:
        return rng.choice(SNOWY_FOREST)
    trees = rng.choice((" and pine trees", " with trees")) if scene.name == "mountains" and scene.extra else ""
    return rng.choice(SCENE_WORDS[scene.name]) + trees


def scene_words(scene: Scene, rng: random.Random) -> str:
    if scene.time == "day" and rng.random() < 0.6:
        return scene_subject(scene, rng)
    return f"{scene_subject(scene, rng)} {rng.choice(BARE_TIME[scene.time])}"


def decorate(words: str, rng: random.Random) -> str:
    """The things people put around what they want: openings, praise, styles, and words unknown here."""
    q = rng.random()
    if q < 0.1:
        words = f"{rng.choice(PREFIXES)} {words}"
    elif q < 0.15 and words.startswith(("a ", "an ")):
        words = f"a {rng.choice(PRAISE)} {words.split(' ', 1)[1]}"
    elif q < 0.18 and words.startswith(("a ", "an ")):
        words = words.split(" ", 1)[1]
    if rng.random() < 0.08:
        words += rng.choice(SUFFIXES)
    if rng.random() < 0.08:
        parts = words.split(" ")
        for _ in range(rng.choice((1, 1, 2, 3))):
            parts.insert(rng.randint(0, len(parts)), nonsense(rng))
        words = " ".join(parts)
    return words


def caption(picture: Picture, rng: random.Random, decorated: bool = True, layout: bool = True) -> str:
    """One way of saying what `picture` shows; without decoration nothing but the content.

    Without `layout`, place and size of a single thing go unsaid, as in a prompt for a picture that is already there.
    """
    if picture.scene is not None:
        words = scene_words(picture.scene, rng)
    elif len(picture.things) == 2:
        words = two_words(picture, rng)
    else:
        words = one_words(picture, rng, layout)
    return (decorate(words, rng) if decorated else words).replace(" ,", ",")
