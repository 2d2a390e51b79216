"""The policy of residency: which models leave the device to make room, and which are idle. Pure: no I/O, no clock."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from pydantic import Field

from imagegen.core.task import GenerationRequest
from imagegen.core.value import Value

#: The number of kills in a row after which a model is quarantined. Only `POST /models/{id}/load` then loads it.
QUARANTINE_AFTER = 2


class Resident(Value):
    """A model in device memory."""

    model: str
    #: Bytes of its parameters and buffers, as the engine counted them.
    weight_bytes: int
    #: How many of these bytes are in device memory at the same time, at most.
    device_bytes: int = Field(default_factory=lambda fields: fields["weight_bytes"])
    #: Bytes of host memory that its weights take as well.
    host_bytes: int = 0
    loaded_at: datetime
    last_used_at: datetime
    #: `last_used_at` in seconds of the manager's monotonic clock, by which idle models are found.
    last_used: float


class ModelState(StrEnum):
    """Where the weights of a model are, or what is happening to them."""

    #: Its weights are not on this machine.
    ABSENT = "absent"
    DOWNLOADING = "downloading"
    #: On disk only.
    COLD = "cold"
    LOADING = "loading"
    #: In device memory.
    RESIDENT = "resident"
    UNLOADING = "unloading"
    #: In host memory, not on the device. A copy brings it back.
    WARM = "warm"
    #: The latest load failed, or the model is quarantined.
    ERROR = "error"


class Warm(Value):
    """A model that left the device and stays in host memory."""

    model: str
    weight_bytes: int
    #: When it left the device, in seconds of the manager's clock.
    since: float


def warm_to_drop(leaving: Resident, warm: Iterable[Warm], budget: int) -> list[str] | None:
    """The warm models to drop, oldest first, so that `leaving` also fits into `budget` bytes; None: it never fits."""
    if leaving.weight_bytes > budget:
        return None
    oldest_first = sorted(warm, key=lambda kept: kept.since)
    room = budget - leaving.weight_bytes - sum(kept.weight_bytes for kept in oldest_first)
    dropped = []
    for kept in oldest_first:
        if room >= 0:
            break
        dropped.append(kept.model)
        room += kept.weight_bytes
    return dropped


class Kills(Value):
    """The worker processes that a model has killed since its latest picture."""

    count: int = 0
    #: The requests that ran at the latest kill; empty: a load.
    by: tuple[GenerationRequest, ...] = ()

    @property
    def quarantined(self) -> bool:
        return self.count >= QUARANTINE_AFTER

    def another(self, *by: GenerationRequest) -> "Kills":
        """Count a kill by these requests; none: by a load.

        If one of them also ran at the latest kill, the count stays, because the request may be at fault and not the
        model.
        """
        repeated = any(request in self.by for request in by)
        return Kills(count=max(1, self.count + (not repeated)), by=by)


class Need(NamedTuple):
    """The device memory that a model needs, in bytes."""

    #: Its weights that no other model shares.
    own: int
    #: Its other parts, by name. Models that have a part of the same name share it.
    shared: Mapping[str, int]
    #: What a picture needs in addition to the weights.
    working: int
    #: The most that all resident models may take together while this one makes a picture; 0: unknown.
    limit: int


def victims_for(
    model: str,
    residents: Sequence[str],
    max_resident: int,
    needs: Mapping[str, Need],
    crowds: Iterable[Collection[str]] = (),
) -> list[str]:
    """The models to unload, in this order, before `model` is loaded.

    `residents`: the least recently used first. `needs`: a model without an entry is resident alone. `crowds`: sets of
    models that ran out of memory together.
    """
    stay, leave = [resident for resident in residents if resident != model], list[str]()
    while stay and not (len(stay) < max_resident and _fit([*stay, model], needs, crowds)):
        leave.append(stay.pop(0))
    return leave


def _fit(models: Collection[str], needs: Mapping[str, Need], crowds: Iterable[Collection[str]]) -> bool:
    """Whether the weights of all models fit together with a picture by any of them. One model works at a time."""
    if not all(model in needs for model in models) or any(set(crowd) <= set(models) for crowd in crowds):
        return False
    known = [needs[model] for model in models]
    shared = {name: size for need in known for name, size in need.shared.items()}
    weights = sum(need.own for need in known) + sum(shared.values())
    return all(need.limit == 0 or weights + need.working <= need.limit for need in known)


def is_idle(resident: Resident, idle_minutes: float, now: float) -> bool:
    """Whether the model was not used for `idle_minutes`; 0: it is never idle."""
    return idle_minutes > 0 and now - resident.last_used >= idle_minutes * 60
