"""Parts of a pipeline that an entry replaces or leaves out (its field `parts`)."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imagegen.catalog.catalog import HubFiles
from imagegen.catalog.hub_cache import cache_root, index_in, lacks_in, paths_in
from imagegen.catalog.pipeline_files import Dtype, part_paths, parts_of
from imagegen.catalog.sources import cached_snapshot, local
from imagegen.core.errors import WeightsCorrupt, WeightsMissing, WeightsRefused
from imagegen.core.wording import THE_LOG
from imagegen.loaders.folder import check_file, refuse_adapter
from imagegen.loaders.pipelines import PipelineKind

#: The configuration files of diffusers' classes, which contain the name of the class.
_CONFIGURATIONS = ("config.json", "scheduler_config.json")


def on_hub(source: str) -> bool:
    """Whether a source can be a repository: `org/name[@revision]`."""
    return source.count("/") == 1 and not source.startswith(("/", "~", "."))


def files_of(name: str, source: str, dtype: Dtype) -> HubFiles:
    """The files that a part needs from its repository or folder."""
    return HubFiles.of(source, part=name, dtype=dtype) if on_hub(source) else HubFiles(repo="", part=name, dtype=dtype)


def places_of(name: str, source: str, dtype: Dtype, models_dir: Path) -> tuple[Path, list[Path]]:
    """The folder of a part, and the files that a load reads there. Raises WeightsMissing."""
    folder, wanted = local(source, models_dir), files_of(name, source, dtype)
    cached = cached_snapshot(source) if on_hub(source) else None
    if cached is not None and not (folder.is_dir() and lacks_in(folder, wanted) is None):
        folder = cached
    paths = part_paths(paths_in(folder), name, dtype) if folder.is_dir() else None
    if paths is None:
        raise WeightsMissing(f"The part '{name}' is not on this machine, or incomplete: '{wanted.repo or source}'.")
    return (folder / paths[0]).parent, [folder / path for path in paths]


def check_part(name: str, source: str, dtype: Dtype, models_dir: Path) -> None:
    """Check that a part can be loaded. Raises EngineError if not."""
    home, files = places_of(name, source, dtype, models_dir)
    refuse_adapter(home, name)
    for file in files:
        check_file(file, f"{name}/{file.name}")


def open_part(name: str, home: Path, kind: Sequence[str | None], variant: str | None, dtype: Any) -> Any:
    """Read a part from its folder. `kind`: library and class of the pipeline's own part of this name.

    Raises WeightsRefused for a class that cannot be a part, and WeightsCorrupt.
    """
    import diffusers
    import transformers
    from safetensors import SafetensorError

    own = _own_class(home)
    library, word = ("diffusers", own) if own else kind
    if library not in ("diffusers", "transformers") or word is None:
        raise WeightsRefused(f"The pipeline has no part '{name}' that can be replaced.")
    part_class = getattr(diffusers if library == "diffusers" else transformers, word, None)
    models = (diffusers.ModelMixin, transformers.PreTrainedModel)
    others = (diffusers.SchedulerMixin, transformers.PreTrainedTokenizerBase, transformers.ProcessorMixin)
    if not (isinstance(part_class, type) and issubclass(part_class, (*models, *others))):
        raise WeightsRefused(f"The part '{name}' is a {word}, which is no part of a pipeline.")
    options: dict[str, Any] = {"local_files_only": True}
    if issubclass(part_class, models):
        options |= {"dtype": dtype, "use_safetensors": True, "variant": variant}
    try:
        return part_class.from_pretrained(home, **options)  # type: ignore[attr-defined]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WeightsCorrupt(f"The files of the part '{name}' do not fit together; {THE_LOG} says which.") from error


def _own_class(home: Path) -> str | None:
    """The class that the configuration of a diffusers folder names; None: the folder is of another library."""
    for file in _CONFIGURATIONS:
        try:
            word = json.loads((home / file).read_bytes()).get("_class_name")
        except (OSError, ValueError, AttributeError):
            continue
        return word if isinstance(word, str) else None
    return None


def left_out(kind: PipelineKind, parts: Mapping[str, str | None]) -> tuple[str, ...]:
    """The parts that an entry leaves out, with the parts that are then not needed either."""
    return tuple(name for group in kind.optional if parts.get(group[0], "") is None for name in group)


def absent(kind: PipelineKind, folder: Path) -> tuple[str, ...]:
    """The optional parts whose folders were deleted from a pipeline's folder.

    Always empty for a snapshot in the hub's cache: a missing folder there is not downloaded yet.
    """
    index = index_in(folder)
    if index is None or cache_root() in folder.parents:
        return ()
    named = parts_of(index)
    gone = [group for group in kind.optional if group[0] in named and not (folder / group[0]).exists()]
    return tuple(name for group in gone for name in group if name in named)


def nulls(kind: PipelineKind, index: Mapping[str, Any]) -> Collection[str]:
    """The optional parts that model_index.json sets to null. The library still requires them as arguments."""
    return [name for group in kind.optional for name in group if index.get(name) == [None, None]]


def not_optional(kind: PipelineKind, parts: Mapping[str, str | None]) -> Iterable[str]:
    """The parts that an entry leaves out although its pipeline needs them."""
    optional = {group[0] for group in kind.optional}
    return [name for name, source in parts.items() if source is None and name not in optional]
