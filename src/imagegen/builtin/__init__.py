"""Files in the package: the weights of the embedded model and the default models.yaml."""

from pathlib import Path

_HERE = Path(__file__).parent


#: The prefix of a `local_path` that names an embedded model.
BUILTIN = "builtin:"


def builtin_models() -> list[str]:
    """The names of the embedded models."""
    return sorted(index.parent.name for index in _HERE.glob("*/model_index.json"))


def builtin_model(name: str) -> Path:
    """The folder of an embedded model."""
    return _HERE / name


def default_config() -> Path:
    """The models.yaml that is used by default."""
    return _HERE / "models.yaml"
