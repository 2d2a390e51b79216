"""Which files of a repository a diffusers pipeline needs, and whether a set of files is complete. Pure."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

#: Names the parts of a pipeline. It is linked into a snapshot last.
INDEX = "model_index.json"

#: Suffixes of classes without weights. transformers 5 saves tokenizers and processors under new names.
_WEIGHTLESS = (
    *("Tokenizer", "TokenizerFast", "TokenizersBackend", "Scheduler"),
    *("Processor", "ProcessorFast", "ProcessorPil", "Extractor"),
)

#: Suffixes of a part's small files: configurations, vocabularies, chat templates.
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".tiktoken")

_STEM = r"(?P<stem>model|diffusion_pytorch_model)"
_SHARD = r"(?:-(?P<number>\d{5})-of-(?P<count>\d{5}))"
#: model.safetensors, model.fp16.safetensors, model-00001-of-00002.safetensors, and both combinations of these.
_WEIGHTS = re.compile(
    rf"{_STEM}(?:\.(?P<early>fp16))?{_SHARD}?(?:\.(?P<late>fp16))?\.safetensors(?P<index>\.index(?:\.(?P<last>fp16))?\.json)?"
)
_ANY_INDEX = re.compile(r"\.index(\.[a-z0-9]+)?\.json$")


class _Weights(NamedTuple):
    """The parts of a weights file's name."""

    name: str
    stem: str
    variant: str | None
    #: (i, n) for shard i of n; (0, 0) for the index of shards; None for a single file.
    shard: tuple[int, int] | None


def parts_of(index: Mapping[str, Any]) -> dict[str, str]:
    """The parts in a model_index.json, with their classes. Parts that are null are left out."""
    return {
        name: part[1]
        for name, part in index.items()
        if not name.startswith("_") and isinstance(part, list) and len(part) == 2 and isinstance(part[1], str)
    }


def needed(paths: Iterable[str], index: Mapping[str, Any], without: Collection[str] = ()) -> list[str]:
    """The paths of a repository that the pipeline needs. Of the parts in `without`, only the configuration."""
    folders = _by_folder(paths)
    chosen = [INDEX]
    for part, cls in parts_of(index).items():
        names = folders.get(part, set())
        weights = _chosen_weights(names) if part not in without and has_weights(cls) else []
        chosen += [f"{part}/{name}" for name in sorted(_companions(names) | {w.name for w in weights})]
    return chosen


def lacking(paths: Iterable[str], index: Mapping[str, Any], without: Collection[str] = ()) -> str | None:
    """The first part of the pipeline whose files are incomplete; None: all are complete."""
    folders = _by_folder(paths)
    for part, cls in parts_of(index).items():
        names = folders.get(part, set())
        if part not in without and not (_is_whole(names) if has_weights(cls) else _companions(names)):
            return part
    return None


def variant(paths: Iterable[str], index: Mapping[str, Any], without: Collection[str] = ()) -> str | None:
    """`fp16` if some part has no other weights: from_pretrained must be told so. Else None."""
    folders = _by_folder(paths)
    weights = (w for part in parts_of(index) if part not in without for w in _chosen_weights(folders.get(part, set())))
    return next((w.variant for w in weights if w.variant), None)


def _by_folder(paths: Iterable[str]) -> dict[str, set[str]]:
    """The names directly below each folder of the first level."""
    folders: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.partition("/")
        if name and "/" not in name:
            folders.setdefault(folder, set()).add(name)
    return folders


def has_weights(cls: str) -> bool:
    """Whether a part of this class is read from weights, beside its configuration."""
    return not cls.endswith(_WEIGHTLESS)


def _companions(names: Collection[str]) -> set[str]:
    return {name for name in names if name.endswith(_COMPANIONS) and not _ANY_INDEX.search(name)}


def _parse(name: str) -> _Weights | None:
    match = _WEIGHTS.fullmatch(name)
    if match is None:
        return None
    variant = match["early"] or match["late"] or match["last"]
    if match["index"]:
        return _Weights(name, match["stem"], variant, (0, 0))
    shard = (int(match["number"]), int(match["count"])) if match["number"] else None
    return _Weights(name, match["stem"], variant, shard)


def _chosen_weights(names: Collection[str]) -> list[_Weights]:
    """The weights files that the libraries open: full precision before fp16; of shards and a single file, one.

    diffusers prefers the shards, transformers the single file.
    """
    known = [weights for weights in map(_parse, names) if weights]
    plain = [weights for weights in known if weights.variant is None]
    known = plain if any(weights.shard != (0, 0) for weights in plain) else [w for w in known if w.variant]
    whole = [weights for weights in known if weights.shard is None]
    cut = [weights for weights in known if weights.shard is not None]
    if (0, 0) not in {weights.shard for weights in cut}:
        return whole
    return whole if any(weights.stem == "model" for weights in whole) else cut


def _is_whole(names: Collection[str]) -> bool:
    """Whether a part's folder holds all its weights."""
    shards = {weights.shard for weights in _chosen_weights(names)}
    counts = {shard[1] for shard in shards if shard and shard != (0, 0)}
    if not counts:
        return None in shards
    return len(counts) == 1 and shards == {(0, 0), *((i + 1, n) for n in counts for i in range(n))}
