"""Pure policy: who leaves the device to make room, and who is idle. No I/O, no clock."""

from collections.abc import Iterable
from datetime import datetime

from imagegen.core.value import Value


class Resident(Value):
    """A model in device memory."""

    model: str
    #: Bytes of its parameters and buffers, as the engine counted them.
    weight_bytes: int
    loaded_at: datetime
    last_used_at: datetime
    #: The same moment on a clock that nobody sets, in seconds: idleness is counted on it.
    last_used: float
    #: Seconds of work done since it was loaded: how much of its quantum is spent.
    served_s: float = 0


def victims_for(model: str, residents: Iterable[Resident]) -> list[str]:
    """Who must leave before `model` may be loaded: everyone else, for one model fits."""
    return [resident.model for resident in residents if resident.model != model]


def is_idle(resident: Resident, idle_minutes: float, now: float) -> bool:
    """Whether nobody has used it for that long; 0 minutes is never."""
    return idle_minutes > 0 and now - resident.last_used >= idle_minutes * 60
