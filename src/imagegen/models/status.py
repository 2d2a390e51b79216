"""ModelStatus: the state of a model, and what is known of it, as one frozen value."""

from datetime import datetime
from typing import NamedTuple

from imagegen.core.value import Value
from imagegen.gpu.protocol import Failed
from imagegen.hub.puller import Pull
from imagegen.models.residency import ModelState, Resident


class LoadProgress(NamedTuple):
    """The progress of a load from disk.

    A load may end before `bytes_done` reaches the total, because it does not read what is already in memory: parts that
    another model shares, and files in the page cache. Bytes of libraries that it imports count, up to the total.
    """

    #: Bytes that the load has read.
    bytes_done: int
    #: Bytes of the model's files; None: unknown.
    bytes_total: int | None

    @property
    def percent(self) -> int | None:
        """Whole percents; None while the total is unknown."""
        return 100 * self.bytes_done // self.bytes_total if self.bytes_total else None


class ModelStatus(Value):
    """The status of one model at one moment. `DynamicModelManager.status` makes it."""

    #: COLD also if the weights are not on this machine. `with_weights` distinguishes the two.
    state: ModelState
    #: None: the model is not in device memory.
    resident: Resident | None = None
    #: When its latest call ended.
    last_used: datetime | None = None
    #: When it is unloaded if it is not used before; None: it is not resident, or is never idle.
    unloads_at: datetime | None = None
    #: How long its latest load from disk took; None before the first.
    load_seconds: float | None = None
    #: How long its latest return from host memory took; None before the first.
    warm_seconds: float | None = None
    #: The progress of its load; None: it is not being loaded from disk.
    load_progress: LoadProgress | None = None
    #: Bytes of host memory that its weights take while it is warm or offloaded, or after it came back from there.
    host_bytes: int | None = None
    #: Why its latest load failed, or why it is quarantined.
    error: Failed | None = None

    def with_weights(self, pull: Pull | None, *, here: bool) -> "ModelStatus":
        """The status, with regard to the disk. `pull`: the latest pull of the weights; `here`: they are on disk."""
        if self.state is not ModelState.COLD:
            return self
        if pull is not None and not pull.ended:
            return self.evolve(state=ModelState.DOWNLOADING)
        return self if here else self.evolve(state=ModelState.ABSENT)
