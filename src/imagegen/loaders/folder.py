"""Checks the files of a pipeline's folder before a library reads them."""

import json
import os
from codecs import BOM_UTF8
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from imagegen.catalog.fields import inside
from imagegen.catalog.hub_cache import MAX_INDEX, paths_in
from imagegen.catalog.pipeline_files import INDEX, Dtype, lacking, needed, needs_weights, weights_of
from imagegen.catalog.sources import WEIGHTS
from imagegen.core.errors import WeightsCorrupt, WeightsMissing, WeightsRefused, WeightsUnreadable
from imagegen.storage.files import open_regular

#: The middle of the name of a file that lists the shards of a part.
SHARD_INDEX = ".safetensors.index."

#: The libraries that a model_index.json may name; diffusers would import any other module that it finds.
TRUSTED_LIBRARIES = frozenset({"diffusers", "transformers"})

#: Modules of diffusers' pipelines that a model_index.json may name as the library of a class.
TRUSTED_PARTS = frozenset(
    {
        ("stable_diffusion", "StableDiffusionSafetyChecker"),
        ("kolors", "ChatGLMModel"),
        ("kolors", "ChatGLMTokenizer"),
    }
)

#: Bits of an element, by its type in a safetensors header. Other types are not checked.
_BITS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
        **dict.fromkeys(("F32", "I32", "U32"), 32),
        **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
        **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 8),
    }
)

#: The most bytes of a safetensors header: the limit of the safetensors library.
MAX_HEADER = 100_000_000


def check_folder(
    folder: Path, pipeline_class: str, without: Collection[str] = (), dtype: Dtype = "auto"
) -> dict[str, list[Any]]:
    """Check that a pipeline's folder can be loaded, and return its parts: name -> [library, class].

    Opens only files that a load reads. `without`: parts that come from elsewhere. Raises WeightsMissing,
    WeightsRefused, WeightsUnreadable or WeightsCorrupt.
    """
    _check_listable(folder, "the model")
    index = read_index(folder, pipeline_class)
    for name in index:
        _check_listable(folder / name, f"'{name}'")
        if name not in without:
            refuse_adapter(folder / name, name)
    paths = paths_in(folder, dangling=True)  # check_file reports links to missing files
    part = lacking(paths, index, without, dtype)
    if part is not None:
        raise _missing(folder, part, index[part][1])
    for path in needed(paths, index, without, dtype):
        check_file(folder / path, path)
    return index


def _check_listable(folder: Path, part: str) -> None:
    try:
        next(folder.iterdir(), None)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _unreadable(f"The folder of {part}", error) from None


def _missing(folder: Path, part: str, cls: str) -> WeightsMissing:
    """The error for an incomplete part."""
    home = folder / part
    there = sorted(home.iterdir()) if home.is_dir() else []
    names = [file.name for file in there]
    for shards in (home / name for name in names if SHARD_INDEX in name):
        check_shards(shards, f"{part}/{shards.name}")
    if not there:
        return WeightsMissing(f"The model's folder has no files for '{part}'.")
    if not needs_weights(cls, names):
        return WeightsMissing(f"The model's folder has no configuration for '{part}'.")
    hidden = [name for name in names if name.startswith("._")]
    if hidden and not any(name.endswith(WEIGHTS) for name in names if name not in hidden):
        return WeightsMissing(f"{part}/{hidden[0]} is a macOS metadata file; the file that it belongs to is missing.")
    return WeightsMissing(f"The model's folder has no safetensors weights for '{part}'.")


def check_shards(file: Path, name: str) -> None:
    """Check the files that a list of shards names, because the libraries open each of them.

    Raises WeightsRefused for a name that is not a .safetensors file below the list's folder, WeightsMissing for a
    missing file, and what check_file raises.
    """
    for shard in sorted(_shards(file, name)):
        try:
            inside(shard)
        except ValueError:
            raise WeightsRefused(f"{name} names a file outside its folder.") from None
        if not shard.endswith(WEIGHTS):
            raise WeightsRefused(f"{name} names {shard}, which is no {WEIGHTS} file.")
        if not os.path.lexists(file.parent / shard):
            raise WeightsMissing(f"The model's folder lacks {name.partition('/')[0]}/{shard}.")
        check_file(file.parent / shard, f"{name.rpartition('/')[0]}/{shard}".lstrip("/"))


def refuse_adapter(home: Path, part: str) -> None:
    """Raises WeightsRefused for a part with the description of an adapter.

    transformers would load the base model that it names, from any path, and weights of the adapter, also from a pickle.
    """
    if os.path.lexists(home / "adapter_config.json"):
        raise WeightsRefused(f"{part}/adapter_config.json describes an adapter, which is not loaded; remove it.")


#: The first bytes of a git-lfs pointer file.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_file(file: Path, name: str) -> None:
    """Check one file that a load reads; of a list of shards, also the shards. Messages contain `name` and no path.

    Raises WeightsMissing, WeightsUnreadable, WeightsRefused or WeightsCorrupt.
    """
    try:
        with open_regular(file) as stream:
            head = stream.read(len(_LFS_POINTER))
    except FileNotFoundError:
        raise WeightsMissing(f"{name} is a link to a file that is not there; fetch it again.") from None
    except OSError as error:
        raise _unreadable(name, error) from None
    if head == _LFS_POINTER:
        raise WeightsMissing(f"{name} is a git-lfs pointer and not the file itself; `git lfs pull` fetches the file.")
    if name.endswith(".json") and head.startswith(BOM_UTF8):
        raise WeightsRefused(f"{name} begins with a byte order mark, which the libraries cannot read; remove it.")
    if name.endswith(WEIGHTS):
        read_header(file, name)
    elif SHARD_INDEX in name:
        check_shards(file, name)


def _unreadable(name: str, error: OSError) -> WeightsUnreadable:
    if isinstance(error, PermissionError):
        who = f"the user that runs imagegen (uid {os.geteuid()}, gid {os.getegid()})"
        return WeightsUnreadable(f"{name} may not be read by {who}.")
    return WeightsUnreadable(f"{name} cannot be read: {error.strerror}.")


def read_index(folder: Path, pipeline_class: str) -> dict[str, list[Any]]:
    """The parts of a pipeline: name -> [library, class]."""
    file = folder / INDEX
    if not os.path.lexists(file):
        raise WeightsMissing(f"The model's folder has no {INDEX}: it is no diffusers pipeline.")
    check_file(file, INDEX)
    try:
        index = json.loads(read_bounded(file))
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
    """Whether an item of model_index.json is a part. A setting of the pipeline may also be a list, but of numbers."""
    return isinstance(value, list) and not (value and all(isinstance(item, int | float) for item in value))


def _trusted(part: list[Any]) -> bool:
    if part == [None, None]:
        return True
    if len(part) != 2 or not all(isinstance(word, str) for word in part):
        return False
    return part[0] in TRUSTED_LIBRARIES or tuple(part) in TRUSTED_PARTS


def weight_files(folder: Path, part: str, copy: str | None) -> list[Path]:
    """The safetensors files of a part that a load reads. `copy`: the variant of the weights, such as `fp16`."""
    home = folder / part
    names = weights_of((file.name for file in home.iterdir()), copy)
    return [home / name for name in sorted(names) if name.endswith(WEIGHTS)]


def _shards(index: Path, name: str) -> set[str]:
    try:
        names = list(json.loads(read_bounded(index))["weight_map"].values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        names = None
    if names is None or not all(isinstance(shard, str) for shard in names):
        raise WeightsCorrupt(f"{name} is not an index of weights.")
    return set(names)


def read_bounded(file: Path) -> bytes:
    """At most MAX_INDEX bytes of a regular file. Raises OSError, also for a pipe or a device."""
    with open_regular(file) as stream:
        return stream.read(MAX_INDEX)


class Tensor(NamedTuple):
    """One tensor in a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    #: Where its bytes begin and end, counted from the end of the header.
    begin: int
    end: int


def read_header(file: Path, name: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises WeightsCorrupt if the header contradicts itself or the size of the file; its message contains `name` and no
    path.
    """
    header, size = _header(file, name)
    tensors = {key: _tensor(part, name) for key, part in header.items() if key != "__metadata__"}
    if max((tensor.end for tensor in tensors.values()), default=0) != size:
        raise WeightsCorrupt(f"{name} is cut off or damaged; fetch it again.")
    return tensors


def read_metadata(file: Path, name: Path | str) -> dict[str, str]:
    """The texts beside the tensors of a safetensors file. Raises WeightsCorrupt, which tells `name` and no path."""
    texts = _header(file, name)[0].get("__metadata__", {})
    if not (isinstance(texts, dict) and all(isinstance(text, str) for text in texts.values())):
        raise WeightsCorrupt(f"The header of {name} contradicts itself; fetch it again.")
    return texts


def _header(file: Path, name: Path | str) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the bytes behind it. Raises WeightsCorrupt."""
    with open_regular(file) as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = _json(stream.read(min(length, MAX_HEADER)))
        size = os.fstat(stream.fileno()).st_size - 8 - length
    if not isinstance(header, dict):
        raise WeightsCorrupt(f"{name} is not a safetensors file.")
    return header, size


def _tensor(part: Any, name: Path | str) -> Tensor:
    """One tensor from its description in a header. Raises WeightsCorrupt if the description contradicts itself."""
    match part:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if _counts([*shape, begin, end]):
            bits = _BITS.get(dtype)
            if bits is None or prod(shape) * bits == (end - begin) * 8:
                return Tensor(dtype, tuple(shape), begin, end)
    raise WeightsCorrupt(f"The header of {name} contradicts itself; fetch it again.")


def _counts(numbers: list[Any]) -> bool:
    return all(type(number) is int and 0 <= number < 2**63 for number in numbers)


def header_bytes(file: Path, width: int) -> int:
    """The bytes of a safetensors file's tensors after their elements are cast to `width` bytes; 8-bit ones stay so.

    Raises WeightsCorrupt.
    """
    tensors = read_header(file, file.name).values()
    return sum(prod(tensor.shape) * (1 if _BITS.get(tensor.dtype) == 8 else width) for tensor in tensors)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
