"""Provenance: what made a picture, as far as its pixels depend on it."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from imagegen.core.value import Value


class Provenance(Value):
    """What made the pictures of a call. Where all of it is the same, so are the pixels."""

    #: What was read: `org/name@commit` of the hub's cache, or `sample-sha256:...` of files (docs/results.md).
    weights: tuple[str, ...] = ()
    #: The same for the request's LoRAs.
    loras: tuple[str, ...] = ()
    #: The family's word in models.yaml.
    loader: str
    pipeline: str
    #: What the weights compute in: `bfloat16`.
    dtype: str
    #: `Q4_K`, `int4`, `float8`; None: the weights are as they were published.
    quantization: str | None = None
    #: The scheduler's class.
    sampler: str | None = None
    #: The GPU's name, or what of a CPU decides how it rounds.
    device: str
    #: Fields of the model's entry that change pixels, where they are not the default.
    options: dict[str, Any] = Field(default_factory=dict)
    #: Of imagegen and the libraries that did the work.
    versions: dict[str, str]
    #: Pictures in the call. More than one of different tasks differ by rounding from those made alone.
    call_pictures: int = Field(default=1, ge=1)


def differences(then: Provenance, now: Provenance) -> list[str]:
    """Why the pixels may differ, in words: each thing that is not what it was."""
    before, after = (dict(_flat(it.model_dump(mode="json"))) for it in (then, now))
    names = sorted(before.keys() | after.keys())
    return [
        f"{name}: {after.get(name, 'nothing')}, was {before.get(name, 'nothing')}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
