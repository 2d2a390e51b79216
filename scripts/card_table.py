"""Writes docs/models.md's table of cards: for each model and size of card, the entry to write and the memory it takes.

Nothing here was measured on a card. The rule: a picture has three phases, and the one that takes most must fit.

    encode   the text encoders that are on the device
    step     the transformer, and SPARE times the activations of one step
    decode   the VAE, and SPARE times the activations of decoding

What stays on the device all the time counts in each of them. A card has USABLE of its size for it:
`gpu_memory_fraction` is 0.9 by default, and a card of 24 GB reports 23.5 GiB.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from imagegen.builtin import default_config
from imagegen.catalog.yaml import read

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- made by scripts/card_table.py -->\n", "<!-- end -->\n"

GB, GIB = 10**9, 2**30
CARDS = (8, 12, 16, 24, 48, 80)
USABLE = 0.9 * 0.98

#: Workspaces of cuDNN and cuBLAS, and what the allocator does not fill.
SPARE = 1.5

#: What the text encoders take beside their weights: 512 words, one picture.
ENCODING = 0.3 * GB

#: A measured peak instead of the computed one, in bytes: (name of the model, what the entry adds) -> bytes.
MEASURED: Mapping[tuple[str, str], int] = {}


class Gguf(NamedTuple):
    """A quantised transformer; its size is the file's."""

    repo: str
    file: str
    size: float


class Model(NamedTuple):
    """Bytes in bfloat16, counted from the classes of diffusers and transformers with the models' own configurations;
    tests/contract/test_card_table.py counts again."""

    name: str
    #: An entry of the models.yaml that ships, or one that is written here.
    entry: str | Mapping[str, Any]
    #: What makes the steps: a transformer, or the UNet of XL.
    transformer: float
    encoders: tuple[float, ...]
    vae: float
    #: The transformer with `layerwise_casting`, which leaves norms and embeddings as they are; 0: not for this model.
    cast: float
    #: The transformer with `quantize`, which rounds linear layers; 0: not for this model.
    rounded: float
    #: The largest layer of all parts.
    layer: float
    #: Activations of a step and of decoding at 1024x1024, with guidance where the model has it: the most that is alive
    #: at once, counted on torch's meta device. Edit models have a second picture in a step.
    step: float
    decode: float
    #: The largest first.
    files: Sequence[Gguf] = ()


CLIP_L, CLIP_G, T5 = 0.246 * GB, 1.389 * GB, 9.525 * GB
QWEN3_4B, QWEN_VL = 8.045 * GB, 16.584 * GB
KL_VAE = 0.168 * GB

#: Activations of decoding: of the VAEs of FLUX, Stable Diffusion and Z-Image; of that of Qwen-Image, also in tiles.
KL_DECODE, QWEN_DECODE, QWEN_TILE = 1.61 * GB, 3.63 * GB, 0.24 * GB

MODELS = (
    Model(
        name="FLUX.1 dev, schnell, Kontext, Fill",
        entry="flux.1-dev",
        transformer=23.803 * GB,
        encoders=(CLIP_L, T5),
        vae=KL_VAE,
        cast=15.149 * GB,
        rounded=11.904 * GB,
        layer=0.263 * GB,
        step=0.92 * GB,
        decode=KL_DECODE,
        files=(
            Gguf("city96/FLUX.1-dev-gguf", "flux1-dev-Q8_0.gguf", 12.708 * GB),
            Gguf("city96/FLUX.1-dev-gguf", "flux1-dev-Q4_K_S.gguf", 6.81 * GB),
        ),
    ),
    Model(
        name="FLUX.1 dev and Kontext, by Nunchaku",
        entry="flux.1-dev-nunchaku",
        transformer=6.77 * GB,
        encoders=(CLIP_L, T5),
        vae=KL_VAE,
        cast=0,
        rounded=0,
        layer=0,
        step=0.92 * GB,
        decode=KL_DECODE,
    ),
    Model(
        name="FLUX.2 klein 4B",
        entry="flux.2-klein-4b",
        transformer=7.751 * GB,
        encoders=(QWEN3_4B,),
        vae=KL_VAE,
        cast=3.895 * GB,
        rounded=3.876 * GB,
        layer=0.778 * GB,
        step=0.62 * GB,
        decode=KL_DECODE,
    ),
    Model(
        name="Stable Diffusion 3.5 Large",
        entry={
            "name": "Stable Diffusion 3.5 Large",
            "type": "stable_diffusion",
            "pipeline_class": "StableDiffusion3Pipeline",
            "hf_path": "stabilityai/stable-diffusion-3.5-large",
            "base_size": 1024,
        },
        transformer=16.293 * GB,
        encoders=(CLIP_L, CLIP_G, T5),
        vae=KL_VAE,
        cast=10.923 * GB,
        rounded=8.239 * GB,
        layer=0.263 * GB,
        step=0.53 * GB,
        decode=KL_DECODE,
        files=(
            Gguf("city96/stable-diffusion-3.5-large-gguf", "sd3.5_large-Q8_0.gguf", 8.78 * GB),
            Gguf("city96/stable-diffusion-3.5-large-gguf", "sd3.5_large-Q4_0.gguf", 4.772 * GB),
        ),
    ),
    Model(
        name="Stable Diffusion 3.5 Medium",
        entry="stable-diffusion-3.5-medium",
        transformer=4.939 * GB,
        encoders=(CLIP_L, CLIP_G, T5),
        vae=KL_VAE,
        cast=3.463 * GB,
        rounded=2.697 * GB,
        layer=0.263 * GB,
        step=0.37 * GB,
        decode=KL_DECODE,
    ),
    Model(
        name="Stable Diffusion XL",
        entry="sdxl",
        transformer=5.135 * GB,
        encoders=(CLIP_L, CLIP_G),
        vae=KL_VAE,
        cast=0,
        rounded=0,
        layer=0.127 * GB,
        step=0.33 * GB,
        decode=KL_DECODE,
    ),
    Model(
        name="Qwen-Image, Qwen-Image-Edit",
        entry="qwen-image",
        transformer=40.861 * GB,
        encoders=(QWEN_VL,),
        vae=0.254 * GB,
        cast=20.450 * GB,
        rounded=20.436 * GB,
        layer=1.090 * GB,
        step=0.79 * GB,
        decode=QWEN_DECODE,
        files=(Gguf("city96/Qwen-Image-gguf", "qwen-image-Q4_K_S.gguf", 12.1 * GB),),
    ),
    Model(
        name="Z-Image Turbo",
        entry="z-image-turbo",
        transformer=12.310 * GB,
        encoders=(QWEN3_4B,),
        vae=KL_VAE,
        cast=6.166 * GB,
        rounded=6.156 * GB,
        layer=0.778 * GB,
        step=0.56 * GB,
        decode=KL_DECODE,
    ),
)

#: Fields that stand in the table as they are.
WORDS = ("layerwise_casting", "quantize", "cpu_offload", "enable_vae_tiling")


class Way(NamedTuple):
    """A way to load a model: what its entry adds, and the bytes that it takes."""

    adds: Mapping[str, Any]
    takes: float

    @property
    def words(self) -> str:
        """As a cell of the table."""
        words = [f"`{name}: {str(value).lower()}`" for name, value in self.adds.items() if name in WORDS]
        if "gguf_file" in self.adds:
            words.insert(0, f"`type: gguf`, `{self.adds['gguf_file']}` of {self.adds['hf_path']}")
        return ", ".join(words) or "nothing"


def ways(model: Model) -> Iterator[Way]:
    """In the order of preference: weights as they are before smaller ones, on the device before moved about."""
    smaller: list[tuple[float, dict[str, Any]]] = [(model.transformer, {})]
    if model.cast:
        smaller.append((model.cast, {"layerwise_casting": "float8_e4m3fn"}))
        smaller.append((model.rounded, {"quantize": "float8"}))
    files = [(file.size, _gguf(model, file)) for file in model.files]
    for size, adds in (*smaller, *files):
        yield Way(adds, resident(model, size))
        yield Way({**adds, "cpu_offload": "encoders"}, without_encoders(model, size))
    for size, adds in (smaller[0], *files):
        yield Way({**adds, "cpu_offload": "model"}, by_part(model, size))
    if model.layer:
        yield Way({"cpu_offload": "group"}, by_layer(model, model.decode))
    if model.layer and model.decode == QWEN_DECODE:  # tiles of the others are as large as the picture
        yield Way({"cpu_offload": "group", "enable_vae_tiling": True}, by_layer(model, QWEN_TILE))


def resident(model: Model, transformer: float) -> float:
    """All weights stay."""
    return transformer + sum(model.encoders) + model.vae + max(ENCODING, _working(model))


def without_encoders(model: Model, transformer: float) -> float:
    """`cpu_offload: encoders`: transformer and VAE stay, the encoders come one by one."""
    return transformer + model.vae + max(max(model.encoders) + ENCODING, _working(model))


def by_part(model: Model, transformer: float) -> float:
    """`cpu_offload: model`: one part at a time."""
    phases = [encoder + ENCODING for encoder in model.encoders]
    return max(*phases, transformer + SPARE * model.step, model.vae + SPARE * model.decode)


def by_layer(model: Model, decode: float) -> float:
    """`cpu_offload: group`: one layer runs while the next one arrives."""
    return 2 * model.layer + SPARE * max(model.step, decode)


def _working(model: Model) -> float:
    return SPARE * max(model.step, model.decode)


def _gguf(model: Model, file: Gguf) -> dict[str, Any]:
    base = entry_of(model)["hf_path"]
    return {"type": "gguf", "hf_path": file.repo, "gguf_file": file.file, "base_model": base}


def entry_of(model: Model) -> dict[str, Any]:
    """The entry that a way adds to."""
    if not isinstance(model.entry, str):
        return dict(model.entry)
    return dict(_shipped()[model.entry])


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    models: dict[str, dict[str, Any]] = read(default_config().read_text()).data["models"]
    return models


def best(model: Model, card: int) -> Way | None:
    """The first way that fits a card of so many GB."""
    return next((way for way in ways(model) if way.takes <= USABLE * card * GIB), None)


def written(model: Model, way: Way) -> dict[str, Any]:
    """The whole entry."""
    entry = {**entry_of(model), **way.adds}
    if "gguf_file" in entry:
        entry.pop("local_path", None)  # of the weights that the file replaces
    return entry


def entries() -> Iterator[dict[str, Any]]:
    """Every entry that the table speaks of."""
    for model in MODELS:
        yield from (written(model, way) for card in CARDS if (way := best(model, card)) is not None)


def table() -> str:
    """The table; neighbouring cards with the same way share a row."""
    lines = ["| model | card | the entry adds | takes | how known |", "|---|---|---|---|---|"]
    for model in MODELS:
        rows: dict[str, tuple[list[int], float]] = {}
        for card in CARDS:
            way = best(model, card)
            words, takes = ("none that was computed", 0.0) if way is None else (way.words, way.takes)
            rows.setdefault(words, ([], takes))[0].append(card)
        for number, (words, (cards, takes)) in enumerate(rows.items()):
            measured = MEASURED.get((model.name, words))
            size = f"{(measured or takes) / GB:.1f} GB" if takes else ""
            known = ("measured" if measured else "computed") if takes else ""
            name = model.name if number == 0 else ""
            lines.append(f"| {name} | {', '.join(map(str, cards))} GB | {words} | {size} | {known} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/models.md with the table of today."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
