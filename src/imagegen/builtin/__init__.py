"""Files in the package: the weights of the embedded model and the default models.yaml."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ruamel.yaml import YAML

_HERE = Path(__file__).parent


#: The prefix of a `local_path` that names an embedded model.
BUILTIN = "builtin:"


def builtin_models() -> list[str]:
    """The names of the embedded models."""
    return sorted(index.parent.name for index in _HERE.glob("*/model_index.json"))


def builtin_model(name: str) -> Path:
    """The folder of an embedded model."""
    return _HERE / name


#: The fields of an entry that have other defaults for a known repository.
_DEFAULTS = ("steps", "guidance_scale", "base_size")


@cache
def known_repositories() -> Mapping[str, Mapping[str, Any]]:
    """Repository -> the steps, guidance and size that the shipped models.yaml gives it."""
    entries = YAML(typ="safe").load(default_config())["models"].values()
    return MappingProxyType(
        {
            entry["hf_path"].partition("@")[0]: MappingProxyType({name: entry[name] for name in _DEFAULTS})
            for entry in entries
            if "hf_path" in entry
        }
    )


def default_config() -> Path:
    """The models.yaml that is used by default."""
    return _HERE / "models.yaml"
