"""Where weights lie on this machine: an entry's folder or file, the hub's cache, LoRA files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imagegen.builtin import BUILTIN, builtin_model
from imagegen.catalog.catalog import ModelSpec
from imagegen.core.errors import LoraNotFound
from imagegen.core.task import Lora

WEIGHTS = ".safetensors"


class Folders(NamedTuple):
    """Where weights are looked for."""

    models: Path
    loras: Path


def local_folder(spec: ModelSpec, models_dir: Path) -> Path | None:
    """What `local_path` names, whether or not it exists; None where the entry names nothing."""
    return None if spec.local_path is None else local(spec.local_path, models_dir)


def local(path: str, models_dir: Path) -> Path:
    """A path of models.yaml: an embedded model, an absolute path, or one below the models directory."""
    if path.startswith(BUILTIN):
        return builtin_model(path.removeprefix(BUILTIN))
    return models_dir / Path(path).expanduser()


def cached_snapshot(source: str) -> Path | None:
    """The folder in the hub's cache that holds `org/name[@revision]`, whole or not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def cached_file(source: str, name: str) -> Path | None:
    """One file of `org/name[@revision]` in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    repo, _, revision = source.partition("@")
    found = try_to_load_from_cache(repo, name, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def lora_files(loras: Sequence[Lora], loras_dir: Path) -> list[Path]:
    """The file of each LoRA. Raises LoraNotFound."""
    return [_lora_file(lora, loras_dir) for lora in loras]


def _lora_file(lora: Lora, loras_dir: Path) -> Path:
    if lora.repo is None:
        return _below(lora.path, loras_dir)
    file = cached_file(lora.repo, lora.path) if lora.path.endswith(WEIGHTS) else None
    if file is None:
        repo, _, revision = lora.repo.partition("@")
        pinned = f" --revision {revision}" if revision else ""
        raise LoraNotFound(f"The LoRA is not on this machine; fetch it with `hf download {repo} {lora.path}{pinned}`.")
    return file


def _below(path: str, loras_dir: Path) -> Path:
    """One error for all that is not a safetensors file below `loras_dir`, whatever it is."""
    root = loras_dir.resolve()
    try:
        file = (root / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise LoraNotFound from None
    if not file.is_relative_to(root) or file.suffix != WEIGHTS or not file.is_file():
        raise LoraNotFound
    return file
