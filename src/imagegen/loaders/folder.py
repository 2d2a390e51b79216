"""What a pipeline's folder must hold, read before any library touches it."""

import json
from collections.abc import Collection, Iterator
from math import prod
from pathlib import Path
from typing import Any

from imagegen.catalog.pipeline_files import has_weights
from imagegen.core.errors import WeightsCorrupt, WeightsMissing, WeightsRefused

#: What a model_index.json may name; anything else would be imported by diffusers from wherever it lies.
TRUSTED_LIBRARIES = frozenset({"diffusers", "transformers"})

#: Classes of diffusers that it names by the module of their pipeline.
TRUSTED_PARTS = frozenset(
    {
        ("stable_diffusion", "StableDiffusionSafetyChecker"),
        ("kolors", "ChatGLMModel"),
        ("kolors", "ChatGLMTokenizer"),
    }
)

#: Bytes of the elements that stay as narrow as they are; the others become what the entry says, or less.
_WIDTHS = {"F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}

#: Bytes of a safetensors header, at most: the bound of the safetensors library.
MAX_HEADER = 100_000_000


def check_folder(folder: Path, pipeline_class: str, without: Collection[str] = ()) -> None:
    """Refuse a folder of another pipeline, of foreign code, or whose weights are missing or cut off.

    `without`: parts that come from elsewhere. Raises WeightsMissing, WeightsRefused or WeightsCorrupt.
    """
    for name, part in read_index(folder, pipeline_class).items():
        if name in without or part == [None, None] or not has_weights(part[1]):
            continue
        for file in weight_files(folder, name):
            check_safetensors(file, file.relative_to(folder))


def read_index(folder: Path, pipeline_class: str) -> dict[str, list[Any]]:
    """The parts of a pipeline: name -> [library, class]."""
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
    except FileNotFoundError:
        raise WeightsMissing("The model's folder has no model_index.json: it is no diffusers pipeline.") from None
    except (ValueError, RecursionError):
        raise WeightsRefused("The model's model_index.json is not JSON.") from None
    if not isinstance(index, dict) or index.get("_class_name") != pipeline_class:
        raise WeightsRefused(f"The model's model_index.json does not describe a {pipeline_class}.")
    parts = {name: part for name, part in index.items() if not name.startswith("_") and _is_part(part)}
    for name, part in parts.items():
        if not _trusted(part):
            raise WeightsRefused(f"The model's model_index.json names code that is not allowed, for '{name}'.")
    return parts


def _is_part(value: Any) -> bool:
    """Not a setting of the pipeline, which may be a list of numbers, too."""
    return isinstance(value, list) and not (value and all(isinstance(item, int | float) for item in value))


def _trusted(part: list[Any]) -> bool:
    if part == [None, None]:
        return True
    if len(part) != 2 or not all(isinstance(word, str) for word in part):
        return False
    return part[0] in TRUSTED_LIBRARIES or tuple(part) in TRUSTED_PARTS


def weight_files(folder: Path, part: str) -> Iterator[Path]:
    """The safetensors files of a part, by its index where it is cut into several. Raises WeightsMissing."""
    home = folder / part
    whole = sorted(home.glob("*.safetensors"))
    indexes = sorted(home.glob("*.safetensors.index.json"))
    if not whole:
        raise WeightsMissing(f"The model's folder has no safetensors weights for '{part}'.")
    yield from whole
    for index in indexes:
        for name in sorted(_shards(index)):
            if not (home / name).is_file():
                raise WeightsMissing(f"The model's folder lacks {part}/{name}.")


def _shards(index: Path) -> set[str]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise WeightsCorrupt(f"{index.parent.name}/{index.name} is not an index of weights.") from None
    return {str(name) for name in names}


def check_safetensors(file: Path, name: Path | str) -> None:
    """Compare what a file says of itself with its size. Raises WeightsCorrupt, which tells `name` and no path."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = _json(stream.read(min(length, MAX_HEADER)))
    if not isinstance(header, dict):
        raise WeightsCorrupt(f"{name} is not a safetensors file.")
    ends = [part["data_offsets"][1] for key, part in header.items() if key != "__metadata__" and _has_offsets(part)]
    if max(ends, default=0) != file.stat().st_size - 8 - length:
        raise WeightsCorrupt(f"{name} is cut off or damaged; fetch it again.")


def header_bytes(file: Path, width: int) -> int:
    """What a safetensors file's tensors take once its floats are `width` bytes wide; 8-bit ones stay what they are."""
    with file.open("rb") as stream:
        header = _json(stream.read(min(int.from_bytes(stream.read(8), "little"), MAX_HEADER)))
    tensors = [part for part in (header or {}).values() if _has_offsets(part)]
    return sum(prod(part["shape"]) * min(width, _WIDTHS.get(part["dtype"], 8)) for part in tensors)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _has_offsets(part: Any) -> bool:
    offsets = part.get("data_offsets") if isinstance(part, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(offset, int) for offset in offsets)
