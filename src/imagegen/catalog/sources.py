"""Where weights lie on this machine: an entry's folder, a request's LoRA file."""

from pathlib import Path

from imagegen.builtin import BUILTIN, builtin_model
from imagegen.catalog.catalog import ModelSpec
from imagegen.core.errors import LoraNotFound


def local_folder(spec: ModelSpec, models_dir: Path) -> Path | None:
    """The folder that `local_path` names, whether or not it exists; None where the entry names none."""
    if spec.local_path is None:
        return None
    if spec.local_path.startswith(BUILTIN):
        return builtin_model(spec.local_path.removeprefix(BUILTIN))
    return models_dir / Path(spec.local_path).expanduser()


def lora_file(path: str, loras_dir: Path) -> Path:
    """The file of a LoRA. One error for all that is not a safetensors file below `loras_dir`, whatever it is."""
    root = loras_dir.resolve()
    try:
        file = (root / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise LoraNotFound from None
    if not file.is_relative_to(root) or file.suffix != ".safetensors" or not file.is_file():
        raise LoraNotFound
    return file
