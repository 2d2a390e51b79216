"""Provenance: everything beside the request that the pixels of a picture depend on."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from imagegen.core.value import Value


class Provenance(Value):
    """What made the pictures of a call. Equal provenance and an equal request give equal pixels."""

    #: The weights: `org/name@commit` from the hub's cache, or `sample-sha256:...` of files (docs/results.md).
    weights: tuple[str, ...] = ()
    #: The LoRAs of the request, in the same form.
    loras: tuple[str, ...] = ()
    #: The `type` of the model's entry.
    loader: str
    pipeline: str
    #: The dtype that the weights compute in: `bfloat16`.
    dtype: str
    #: `Q4_K`, `int4`, `float8`; None: the weights are not quantised.
    quantization: str | None = None
    #: The scheduler's class.
    sampler: str | None = None
    #: The GPU's name, or the features of a CPU that decide how it rounds.
    device: str
    #: Fields of the model's entry that change pixels, where they are not the default.
    options: dict[str, Any] = Field(default_factory=dict)
    #: Versions of imagegen and of the libraries that did the work.
    versions: dict[str, str]
    #: `tiled`: the memory did not suffice for the whole picture, so the VAE decoded it in tiles that overlap.
    decoded: Literal["tiled"] | None = None
    #: Pictures in the call. Pictures of a shared call differ by rounding from pictures that are made alone.
    call_pictures: int = Field(default=1, ge=1)


def differences(then: Provenance, now: Provenance) -> list[str]:
    """Each difference as a line of text. Any of them can be the reason why pixels differ."""
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
