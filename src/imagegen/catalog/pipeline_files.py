"""Which files of a repository a diffusers pipeline needs, and whether a set of files is complete. Pure."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

#: The file that names the parts of a pipeline. It is linked into a snapshot last.
INDEX = "model_index.json"

#: `torch_dtype` of an entry.
Dtype = Literal["auto", "float32", "float16", "bfloat16"]

#: The copies of weights that a dtype can be read from, best first. None: the files without a variant in their names,
#: which mostly have full precision. A copy in the entry's own dtype is half as large and gives the same numbers.
_COPIES: Mapping[Dtype, tuple[str | None, ...]] = MappingProxyType(
    {
        "auto": (None, "bf16", "fp16"),
        "float32": (None, "bf16", "fp16"),
        "float16": ("fp16", None, "bf16"),
        "bfloat16": ("bf16", None, "fp16"),
    }
)

#: Words in the names of classes that have no weights, in every version of the libraries.
_WEIGHTLESS = ("Tokenizer", "Scheduler", "Processor", "FeatureExtractor")

#: The configuration files of models; a part that has one of them is read from weights.
_OF_MODELS = frozenset({"config.json", "generation_config.json"})

#: Suffixes of weights in all formats.
_ALL_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf")

#: Suffixes of a part's small files: configurations, vocabularies, chat templates.
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".tiktoken")

_STEM = r"(?P<stem>model|diffusion_pytorch_model)"
_SHARD = r"(?:-(?P<number>\d{5})-of-(?P<count>\d{5}))"
#: model.safetensors, model.fp16.safetensors, model-00001-of-00002.safetensors, and both combinations of these.
_WEIGHTS = re.compile(
    rf"{_STEM}(?:\.(?P<early>fp16|bf16))?{_SHARD}?(?:\.(?P<late>fp16|bf16))?\.safetensors"
    r"(?P<index>\.index(?:\.(?P<last>fp16|bf16))?\.json)?"
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


def needed(
    paths: Iterable[str], index: Mapping[str, Any], without: Collection[str] = (), dtype: Dtype = "auto"
) -> list[str]:
    """The paths of a repository that the pipeline needs. Of the parts in `without`, only the configuration."""
    folders = _by_folder(paths)
    copy = _best_copy(folders, index, without, dtype)
    chosen = [INDEX]
    for part, cls in parts_of(index).items():
        names = folders.get(part, set())
        read = part not in without and needs_weights(cls, names)
        chosen += [
            f"{part}/{name}" for name in sorted(_companions(names) | (weights_of(names, copy) if read else set()))
        ]
    return chosen


def lacking(
    paths: Iterable[str], index: Mapping[str, Any], without: Collection[str] = (), dtype: Dtype = "auto"
) -> str | None:
    """The first part of the pipeline whose files are incomplete; None: all are complete."""
    folders = _by_folder(paths)
    return _lacking(folders, index, without, _best_copy(folders, index, without, dtype))


def variant(
    paths: Iterable[str], index: Mapping[str, Any], without: Collection[str] = (), dtype: Dtype = "auto"
) -> str | None:
    """The `variant` argument of from_pretrained: `fp16`, `bf16`, or None for the files without a variant.

    Parts that do not have this copy are read from the files without a variant.
    """
    return _best_copy(_by_folder(paths), index, without, dtype)


def _best_copy(
    folders: Mapping[str, set[str]], index: Mapping[str, Any], without: Collection[str], dtype: Dtype
) -> str | None:
    """The best copy for the dtype that completes the pipeline; if there is none, the best copy that is there."""
    there = {w.variant for part in parts_of(index) if part not in without for w in _parsed(folders.get(part, ()))}
    copies = [copy for copy in _COPIES[dtype] if copy in there] or [None]
    return next((copy for copy in copies if _lacking(folders, index, without, copy) is None), copies[0])


def _lacking(
    folders: Mapping[str, set[str]], index: Mapping[str, Any], without: Collection[str], copy: str | None
) -> str | None:
    for part, cls in parts_of(index).items():
        if part not in without and not is_whole(folders.get(part, set()), cls, copy):
            return part
    return None


def is_whole(names: Collection[str], cls: str, copy: str | None) -> bool:
    """Whether the files of a part of this class are complete, with this copy of its weights."""
    return _has_all_shards(names, copy) if needs_weights(cls, names) else bool(_companions(names))


def part_files(names: Collection[str], cls: str, dtype: Dtype) -> list[str] | None:
    """The files of one folder that a part of this class needs; None: they are incomplete."""
    for copy in _COPIES[dtype]:
        if is_whole(names, cls, copy):
            return sorted(_companions(names) | (weights_of(names, copy) if needs_weights(cls, names) else set()))
    return None


def part_paths(paths: Collection[str], part: str, dtype: Dtype) -> list[str] | None:
    """The paths that one part needs, in its folder or in a repository with only this part; None: incomplete."""
    folder = f"{part}/" if any(path.startswith(f"{part}/") for path in paths) else ""
    if not folder and INDEX in paths:
        return None
    below = [path.removeprefix(folder) for path in paths if path.startswith(folder)]
    files = part_files({name for name in below if "/" not in name}, "", dtype)
    return None if files is None else [folder + name for name in files]


def _by_folder(paths: Iterable[str]) -> dict[str, set[str]]:
    """The names directly below each folder of the first level."""
    folders: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.partition("/")
        if name and "/" not in name:
            folders.setdefault(folder, set()).add(name)
    return folders


def needs_weights(cls: str, names: Collection[str]) -> bool:
    """Whether a part of this class, with these files in its folder, is read from weights.

    The name of the class decides if it is known. Otherwise a folder with neither weights nor the configuration of a
    model belongs to a part without weights.
    """
    if any(word in cls for word in _WEIGHTLESS):
        return False
    visible = [name for name in names if not name.startswith(".")]
    of_a_model = any(name in _OF_MODELS or name.endswith(_ALL_WEIGHTS) or _ANY_INDEX.search(name) for name in visible)
    return of_a_model or not _companions(visible)


def _companions(names: Collection[str]) -> set[str]:
    return {
        name
        for name in names
        if name.endswith(_COMPANIONS) and not name.startswith(".") and not _ANY_INDEX.search(name)
    }


def _parsed(names: Iterable[str]) -> Iterator[_Weights]:
    for name in names:
        if match := _WEIGHTS.fullmatch(name):
            shard = (int(match["number"]), int(match["count"])) if match["number"] else None
            variant = match["early"] or match["late"] or match["last"]
            yield _Weights(name, match["stem"], variant, (0, 0) if match["index"] else shard)


def weights_of(names: Iterable[str], copy: str | None) -> set[str]:
    """The names of the weights files that the libraries open, the index of shards included."""
    return {weights.name for weights in _opened(names, copy)}


def _opened(names: Iterable[str], copy: str | None) -> list[_Weights]:
    """The files of this copy, or those without a variant if there is no such copy; either shards or a single file.

    diffusers prefers the shards, transformers the single file.
    """
    known = list(_parsed(names))
    copies = {weights.variant for weights in known if weights.shard != (0, 0)}
    known = [weights for weights in known if weights.variant == (copy if copy in copies else None)]
    single = [weights for weights in known if weights.shard is None]
    shards = [weights for weights in known if weights.shard is not None]
    if (0, 0) not in {weights.shard for weights in shards}:
        return single
    return single if any(weights.stem == "model" for weights in single) else shards


def _has_all_shards(names: Collection[str], copy: str | None) -> bool:
    shards = {weights.shard for weights in _opened(names, copy)}
    counts = {shard[1] for shard in shards if shard and shard != (0, 0)}
    if not counts:
        return None in shards
    return len(counts) == 1 and shards == {(0, 0), *((i + 1, n) for n in counts for i in range(n))}
