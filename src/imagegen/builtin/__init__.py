"""What ships inside the package: the embedded model's weights and the default models.yaml."""

from pathlib import Path

_HERE = Path(__file__).parent


def builtin_model(name: str) -> Path:
    """The folder of an embedded model."""
    return _HERE / name


def default_config() -> Path:
    """The models.yaml that is used where none is named."""
    return _HERE / "models.yaml"
