"""Where an entry's weights lie on this machine."""

from pathlib import Path

from imagegen.builtin import builtin_model
from imagegen.catalog.catalog import ModelSpec

BUILTIN = "builtin:"


def local_folder(spec: ModelSpec, models_dir: Path) -> Path | None:
    """The folder that `local_path` names, whether or not it exists; None where the entry names none."""
    if spec.local_path is None:
        return None
    if spec.local_path.startswith(BUILTIN):
        return builtin_model(spec.local_path.removeprefix(BUILTIN))
    return models_dir / Path(spec.local_path).expanduser()
