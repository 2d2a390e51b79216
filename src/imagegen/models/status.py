"""ModelStatus: what a model is doing and what is known of it, as one value at one moment."""

from datetime import datetime
from typing import NamedTuple

from imagegen.core.value import Value
from imagegen.gpu.protocol import Failed
from imagegen.hub.puller import Pull
from imagegen.models.residency import ModelState, Resident


class LoadProgress(NamedTuple):
    """The progress of a load from disk: bytes that it has read, of the bytes of the model's files.

    A load may end before it has read them all: what is in memory already (a part that another model shares, a file in
    the page cache) is not read again. Libraries that the load imports count; `bytes_done` never exceeds the total.
    """

    bytes_done: int
    #: None: unknown.
    bytes_total: int | None

    @property
    def percent(self) -> int | None:
        """Whole percents; None while the total is unknown."""
        return 100 * self.bytes_done // self.bytes_total if self.bytes_total else None


class ModelStatus(Value):
    """One model at one moment. `DynamicModelManager.status` makes it."""

    #: COLD also where the weights are not on this machine: `with_weights` tells these apart.
    state: ModelState
    #: None: the model is not in device memory.
    resident: Resident | None = None
    #: When its latest call ended.
    last_used: datetime | None = None
    #: When it leaves the device unless it is used before; None: it is not resident, or stays.
    unloads_at: datetime | None = None
    #: How long its latest load from disk took; None before the first.
    load_seconds: float | None = None
    #: How long its latest return from host memory took; None before the first.
    warm_seconds: float | None = None
    #: Of the load under way; None unless it reads from disk.
    load_progress: LoadProgress | None = None
    #: Bytes of host memory that its weights take while it is warm or offloaded, or after it came back from there.
    host_bytes: int | None = None
    #: Why its latest load failed, or why it is quarantined.
    error: Failed | None = None

    def with_weights(self, pull: Pull | None, *, here: bool) -> "ModelStatus":
        """The status with the disk considered. `pull`: the latest pull of the weights; `here`: they are on disk."""
        if self.state is not ModelState.COLD:
            return self
        if pull is not None and not pull.ended:
            return self.evolve(state=ModelState.DOWNLOADING)
        return self if here else self.evolve(state=ModelState.ABSENT)
