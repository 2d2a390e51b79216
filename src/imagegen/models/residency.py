"""Pure policy: who leaves the device to make room, and who is idle. No I/O, no clock."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from pydantic import Field

from imagegen.core.task import GenerationRequest
from imagegen.core.value import Value

#: Kills after which a model is left alone until someone asks for it.
QUARANTINE_AFTER = 2


class Resident(Value):
    """A model in device memory."""

    model: str
    #: Bytes of its parameters and buffers, as the engine counted them.
    weight_bytes: int
    #: Of those, the most that are in device memory at one time.
    device_bytes: int = Field(default_factory=lambda told: told["weight_bytes"])
    #: Host memory that they take beside the device's.
    host_bytes: int = 0
    loaded_at: datetime
    last_used_at: datetime
    #: The same moment on a clock that nobody sets, in seconds: idleness is counted on it.
    last_used: float


class ModelState(StrEnum):
    """Where a configured model is."""

    #: Its weights are not on this machine.
    ABSENT = "absent"
    DOWNLOADING = "downloading"
    #: On disk.
    COLD = "cold"
    LOADING = "loading"
    #: In device memory.
    RESIDENT = "resident"
    UNLOADING = "unloading"
    #: Out of device memory, and in host memory: it comes back by a copy.
    WARM = "warm"
    #: The last load failed, or it is quarantined.
    ERROR = "error"


class Warm(Value):
    """A model that left the device and stays in host memory."""

    model: str
    weight_bytes: int
    #: When it left, on the manager's clock.
    since: float


def too_warm(leaving: Resident, warm: Iterable[Warm], budget: int) -> list[str] | None:
    """Which warm models must go so that `leaving` may stay within `budget` bytes, oldest first; None: it may not."""
    if leaving.weight_bytes > budget:
        return None
    oldest_first = sorted(warm, key=lambda kept: kept.since)
    room = budget - leaving.weight_bytes - sum(kept.weight_bytes for kept in oldest_first)
    gone = []
    for kept in oldest_first:
        if room >= 0:
            break
        gone.append(kept.model)
        room += kept.weight_bytes
    return gone


class Kills(Value):
    """Workers that a model has killed in a row, without a picture in between."""

    count: int = 0
    #: What ran; empty: its load.
    by: tuple[GenerationRequest, ...] = ()

    @property
    def quarantined(self) -> bool:
        return self.count >= QUARANTINE_AFTER

    def another(self, *by: GenerationRequest) -> "Kills":
        """One more. A request that comes again does not count again: a poisonous one is no fault of its model."""
        repeated = any(request in self.by for request in by)
        return Kills(count=max(1, self.count + (not repeated)), by=by)


class Need(NamedTuple):
    """Bytes of device memory that a model takes, as far as they are known."""

    #: Its weights that no other model shares.
    own: int
    #: By name: the parts that it shares with every model that has one of the same name.
    shared: Mapping[str, int]
    #: What making a picture takes beside the weights.
    working: int
    #: What all resident models may take together while this one works; 0: unknown.
    limit: int


def victims_for(
    model: str,
    residents: Sequence[str],
    max_resident: int,
    needs: Mapping[str, Need],
    crowds: Iterable[Collection[str]] = (),
) -> list[str]:
    """Who must leave before `model` may be loaded, in this order. `residents`: the least recently used first.

    A model without a need is one of which nobody knows what it takes: it is resident alone. `crowds` are models that
    ran out of memory together.
    """
    stay, leave = [resident for resident in residents if resident != model], list[str]()
    while stay and not (len(stay) < max_resident and _fit([*stay, model], needs, crowds)):
        leave.append(stay.pop(0))
    return leave


def _fit(models: Collection[str], needs: Mapping[str, Need], crowds: Iterable[Collection[str]]) -> bool:
    """Whether the weights of all and the work of any one of them fit together: one model works at a time."""
    if not all(model in needs for model in models) or any(set(crowd) <= set(models) for crowd in crowds):
        return False
    known = [needs[model] for model in models]
    shared = {name: size for need in known for name, size in need.shared.items()}
    weights = sum(need.own for need in known) + sum(shared.values())
    return all(need.limit == 0 or weights + need.working <= need.limit for need in known)


def is_idle(resident: Resident, idle_minutes: float, now: float) -> bool:
    """Whether nobody has used it for that long; 0 minutes is never."""
    return idle_minutes > 0 and now - resident.last_used >= idle_minutes * 60
