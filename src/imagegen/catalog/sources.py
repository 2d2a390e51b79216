"""Finds weights on this machine: an entry's folder or file, the hub's cache, LoRA files."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from imagegen.builtin import BUILTIN, builtin_model
from imagegen.catalog.catalog import HubFiles, ModelSpec
from imagegen.catalog.fields import inside
from imagegen.catalog.hub_cache import HubCache, is_here, lacks_in
from imagegen.core.errors import LoraNotFound
from imagegen.core.task import Lora

WEIGHTS = ".safetensors"

#: LoRAs that are listed, at most.
MAX_LISTED = 10_000


class Folders(NamedTuple):
    """The folders of models and of LoRAs."""

    models: Path
    loras: Path


def local_folder(spec: ModelSpec, models_dir: Path) -> Path | None:
    """The path of `local_path`, whether or not it exists; None: the entry has none."""
    return None if spec.local_path is None else local(spec.local_path, models_dir)


def local(path: str, models_dir: Path) -> Path:
    """Resolve a path of models.yaml: an embedded model, an absolute path, or one below the models directory."""
    if path.startswith(BUILTIN):
        return builtin_model(path.removeprefix(BUILTIN))
    return models_dir / Path(path).expanduser()


def missing(spec: ModelSpec, models_dir: Path, precision: str | None = None) -> tuple[HubFiles, ...]:
    """The files that must be pulled before an entry can be loaded. Files that cannot be read count as missing.

    `precision`: the one that the card needs (`int4`, `fp4`); None: unknown, then files of any precision count.
    """
    needed = [files.on_card(precision) for files in spec.hub_files()]
    return tuple(files for files in needed if not _has(spec, files, models_dir))


def _has(spec: ModelSpec, files: HubFiles, models_dir: Path) -> bool:
    try:
        return _replaced(spec, files, models_dir) or is_here(files)
    except OSError:
        return False


def lacks_locally(spec: ModelSpec, models_dir: Path) -> str | None:
    """A missing file of those that `local_path` names; None: nothing, or no `local_path`. May raise OSError."""
    return spec.lacks(lambda path: local(path, models_dir))


def weights_here(spec: ModelSpec, models_dir: Path, precision: str | None = None) -> bool:
    """Whether an entry can be loaded without a pull. An entry that names no place needs no weights.

    Files that cannot be read count as missing; the load reports the reason. `precision`: as for `missing`.
    """
    try:
        if spec.local_path is not None and spec.hf_path is None and lacks_locally(spec, models_dir) is not None:
            return False
        beside = spec.lacks_beside(lambda path: local(path, models_dir))
        return beside is None and not missing(spec, models_dir, precision)
    except OSError:
        return False


def _replaced(spec: ModelSpec, files: HubFiles, models_dir: Path) -> bool:
    """Whether complete local files replace the repository.

    They are the files of `local_path` for the repository `hf_path`, and a folder with the repository's name for others.
    """
    if spec.hf_path is not None and spec.hf_path.partition("@")[0] == files.repo and files.part is None:
        return spec.local_path is not None and lacks_locally(spec, models_dir) is None
    return not (files.files or files.by_precision) and local_repository(files, models_dir) is not None


def local_repository(files: HubFiles, models_dir: Path) -> Path | None:
    """The folder below the models directory that has a repository's name, if it holds these files."""
    folder = models_dir / files.repo
    return folder if folder.is_dir() and lacks_in(folder, files) is None else None


def cached_snapshot(source: str) -> Path | None:
    """The folder of `org/name[@revision]` in the hub's cache, complete or not."""
    repo, _, revision = source.partition("@")
    return HubCache(repo).snapshot(revision or None)


def cached_file(source: str, name: str) -> Path | None:
    """The file `name` of `org/name[@revision]` in the hub's cache; None if it is not there."""
    try:
        folder = cached_snapshot(source)
    except OSError:
        return None
    return None if folder is None else confined(name, folder, HubCache(source.partition("@")[0]).folder)


def confined(name: str, folder: Path, home: Path) -> Path | None:
    """The regular file `name` below `folder`; None: there is none, or a link leads out of `home`.

    `name` comes from a caller: a name that leads out of the folder is not looked up.
    """
    try:
        file = folder / inside(name)
        # Resolving follows links, also of the folders above the file.
        found = file.resolve(strict=True).is_relative_to(home.resolve()) and file.is_file()
    except (OSError, ValueError, RuntimeError):
        return None
    return file if found else None


def lora_files(loras: Sequence[Lora], loras_dir: Path) -> list[Path]:
    """The file of each LoRA. Raises LoraNotFound."""
    return [_lora_file(lora, loras_dir) for lora in loras]


def listed_loras(loras_dir: Path) -> list[str]:
    """The LoRAs below this folder as requests name them (`Lora.path`), sorted; at most MAX_LISTED of them."""
    found = (file for file in loras_dir.rglob(f"*{WEIGHTS}") if file.is_file())
    return sorted(str(file.relative_to(loras_dir)) for file in islice(found, MAX_LISTED))


def _lora_file(lora: Lora, loras_dir: Path) -> Path:
    if not lora.path.endswith(WEIGHTS):
        raise LoraNotFound
    file = cached_file(lora.repo, lora.path) if lora.repo else confined(lora.path, loras_dir, loras_dir)
    if file is not None:
        return file
    if lora.repo is None:
        raise LoraNotFound
    repo, _, revision = lora.repo.partition("@")
    pinned = f" --revision {revision}" if revision else ""
    raise LoraNotFound(f"The LoRA is not on this machine; fetch it with `hf download {repo} {lora.path}{pinned}`.")
