"""LiveTask: one task from its acceptance to its end. It alone writes the task's record and its stage."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Self, TypeVar

from imagegen.core.provenance import Provenance
from imagegen.core.task import MAX_ATTEMPTS, Failure, GenerationTask, StoredImage, TaskStatus, TokensRead, Warnings
from imagegen.tasks.batching import likeness
from imagegen.tasks.tickets import Likeness, TaskTicket, Work


class IllegalTransition(RuntimeError):
    """The stage of a LiveTask does not allow this transition: a bug in the calling code."""


class StopRequest(IntEnum):
    """How a task that runs or stores its pictures should stop. A higher request replaces a lower one."""

    NONE = 0
    #: Stop waiting for the store of pictures: the next run of the service uploads them.
    STORE_LATER = 1
    #: Stop between two steps and return to the queue. Includes STORE_LATER.
    PUT_BACK = 2
    #: Stop between two steps and end as cancelled. Includes STORE_LATER.
    CANCEL = 3


@dataclass(frozen=True, slots=True)
class Queued:
    """It waits in the queue, or is about to be put there."""

    #: The number of tasks before it when it was enqueued.
    position: int = 0
    #: The position that was published last.
    published: int = 0


@dataclass(frozen=True, slots=True)
class Parked:
    """It waits for the pull of its model's weights."""


@dataclass(frozen=True, slots=True)
class Loading:
    """It was taken from the queue, and its model is loaded if necessary. The attempt does not count yet."""


@dataclass(frozen=True, slots=True)
class Running:
    """Its pictures are being made. The attempt counts."""


@dataclass(frozen=True, slots=True)
class Saving:
    """Its pictures are made, and are being encoded, written and uploaded."""

    #: Whether it waits because the store of pictures cannot be reached.
    waits_for_store: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """Its end is decided and is being written to the journal."""

    #: The record with its end.
    ended: GenerationTask


@dataclass(frozen=True, slots=True)
class Ended:
    """Its end is on disk and published."""


Stage = Queued | Parked | Loading | Running | Saving | Ending | Ended

S = TypeVar("S", Queued, Saving, Ending)

#: The stages of a task that may still end in any way.
OPEN = (Queued, Parked, Loading, Running, Saving)


class LiveTask:
    """A task's record and stage. Only these methods change them, on the event loop:

    ===============  ==============================================  =======
    method           from                                            to
    ===============  ==============================================  =======
    enqueue          QUEUED                                          QUEUED
    note_position    QUEUED                                          QUEUED
    park             QUEUED                                          PARKED
    unpark           PARKED                                          QUEUED
    start            QUEUED                                          LOADING
    begin            LOADING                                         RUNNING
    put_back         LOADING, RUNNING                                QUEUED
    save             RUNNING                                         SAVING
    store            SAVING                                          SAVING
    wait_for_store   SAVING                                          SAVING
    complete         SAVING                                          ENDING
    fail             QUEUED, PARKED, LOADING, RUNNING, SAVING        ENDING
    cancel           QUEUED, PARKED, LOADING, RUNNING, SAVING        ENDING
    finish           ENDING                                          ENDED
    ===============  ==============================================  =======

    From any other stage a method raises IllegalTransition and changes nothing. The record's status is `pending` while
    the task is QUEUED or PARKED, `processing` while it is LOADING, RUNNING or SAVING, and final once it is ENDED. The
    record of a task that is ENDING keeps its status, so that no caller sees an end that is not on disk.
    """

    def __init__(
        self, record: GenerationTask, since: float, deadline: float | None = None, stage: Queued | Saving | None = None
    ) -> None:
        """`since`: when it was accepted; `deadline`: when it must have begun. Seconds of the manager's clock."""
        self.since = since
        self.deadline = deadline
        self._record = record
        self._stage: Stage = stage or Queued()
        self._stop_request = StopRequest.NONE
        self._stop_requested = asyncio.Event()
        self._fetched = False
        self._alone = False

    @classmethod
    def recovered(cls, record: GenerationTask, since: float, deadline: float | None, *, spooled: bool) -> Self:
        """A task that had not ended when the service did. `spooled`: its pictures are made and are in the spool."""
        if record.storing and spooled:
            return cls(record, since, deadline, Saving())
        if record.storing:  # the pictures are lost, but the attempt succeeded, so it does not count
            record = record.evolve(storing=(), attempt=record.attempt - 1)
        return cls(record.evolve(status=TaskStatus.PENDING), since, deadline)

    def __repr__(self) -> str:
        stage = type(self._stage).__name__.upper()
        return f"<LiveTask [{self._record.id}, {stage}, Model: {self._record.model}, Attempt: {self._record.attempt}]>"

    # -- reads --------------------------------------------------------------------------------------------------------

    @property
    def record(self) -> GenerationTask:
        return self._record

    @property
    def stage(self) -> Stage:
        return self._stage

    @property
    def ending(self) -> bool:
        """Whether its end is decided. It cannot be ended again, and its progress is not published any more."""
        return isinstance(self._stage, Ending | Ended)

    @property
    def stop_request(self) -> StopRequest:
        return self._stop_request

    @property
    def told_to_stop(self) -> bool:
        """Whether it should stop between two steps. Read by the GPU's thread as well."""
        return self._stop_request >= StopRequest.PUT_BACK

    @property
    def fetched(self) -> bool:
        """Whether its model's weights were pulled for it. If some are still missing, the loader reports that."""
        return self._fetched

    @property
    def likeness(self) -> Likeness | None:
        """What other tasks must have in common with it to share its call; None: it runs alone.

        A task with an earlier attempt runs alone, because it may have killed the worker. So does a task whose shared
        call failed, and a replay, because the pixels of a shared call differ by rounding.
        """
        it = self._record
        return None if self._alone or it.attempt or it.replay else likeness(it.type, it.request, it.previews)

    def ticket(self) -> TaskTicket:
        """The ticket that stands for it in the queue."""
        it, work = self._record, Work.of(self._record.request)
        pictures = it.request.batch_size
        return TaskTicket(it.priority, it.sequence, it.id, it.model, self.since, self.likeness, pictures, work)

    def is_late(self, now: float) -> bool:
        """Whether it has missed its deadline. After its first attempt a task cannot miss it any more."""
        return self.deadline is not None and now >= self.deadline and self._record.attempt == 0

    async def until_stop_requested(self) -> None:
        """Return once there is a stop request of any kind."""
        await self._stop_requested.wait()

    # -- waiting ------------------------------------------------------------------------------------------------------

    def enqueue(self, position: int) -> None:
        """Note that it is in the queue behind `position` tasks, and that this position is published."""
        self._move(Queued(position, published=position), Queued)

    def note_position(self, position: int) -> bool:
        """Note a position that is to be published. False: it was the last one that was published."""
        stage = self._from(Queued)
        self._stage = Queued(stage.position, published=position)
        return stage.published != position

    def park(self) -> None:
        """Note that it waits for the pull of its model's weights."""
        self._move(Parked(), Queued)

    def unpark(self) -> None:
        """Note that its model's weights were pulled."""
        self._move(Queued(), Parked)
        self._fetched = True

    # -- one attempt --------------------------------------------------------------------------------------------------

    def start(self, at: datetime) -> None:
        """Note that it was taken from the queue."""
        self._move(Loading(), Queued)
        self._record = self._record.evolve(status=TaskStatus.PROCESSING, started_at=at)

    def begin(self) -> None:
        """Note that its pictures are being made, and count the attempt: from now on it may kill the worker."""
        self._move(Running(), Loading)
        self._record = self._record.evolve(attempt=self._record.attempt + 1)

    def put_back(self, *, counts: bool, alone: bool = False) -> None:
        """Return to its place in the queue.

        `counts`: whether the attempt counts. `alone`: whether its next calls are not shared.
        """
        attempt = self._record.attempt - (isinstance(self._stage, Running) and not counts)
        if attempt >= MAX_ATTEMPTS:
            raise IllegalTransition(f"{self!r} has no attempt left.")
        self._move(Queued(), Loading, Running)
        self._record = self._record.evolve(status=TaskStatus.PENDING, attempt=attempt, started_at=None)
        self._alone = self._alone or alone
        self._stop_request = StopRequest.NONE
        self._stop_requested.clear()

    def request_stop(self, request: StopRequest) -> None:
        """Ask it to stop. The code that runs it or stores its pictures obeys the request."""
        self._stop_request = max(self._stop_request, request)
        self._stop_requested.set()

    def charge(self, seconds: float) -> None:
        """Add seconds of the device that it has used."""
        if not self.ending:
            self._record = self._record.evolve(device_s=(self._record.device_s or 0) + seconds)

    # -- its pictures -------------------------------------------------------------------------------------------------

    def save(self, made_by: Provenance, warnings: Warnings = (), tokens: tuple[TokensRead, ...] = ()) -> None:
        """Note that its pictures are made."""
        self._move(Saving(), Running)
        self._record = self._record.evolve(provenance=made_by, warnings=warnings, tokens=tokens)

    def store(self, spooled: tuple[StoredImage, ...]) -> None:
        """Note that its pictures are in the spool, to be uploaded next."""
        self._from(Saving)
        self._record = self._record.evolve(storing=spooled)

    def wait_for_store(self) -> bool:
        """Note that it waits until the store of pictures can be reached. False: it already did."""
        stage = self._from(Saving)
        self._stage = Saving(waits_for_store=True)
        return not stage.waits_for_store

    # -- the end ------------------------------------------------------------------------------------------------------

    def complete(self, images: tuple[StoredImage, ...], at: datetime) -> GenerationTask:
        """End it as completed: its pictures are in their store and can be fetched. Returns the record to write."""
        record = self._record.evolve(images=images, storing=())
        ended = record.evolve(status=TaskStatus.COMPLETED, completed_at=at)
        self._move(Ending(ended), Saving)
        self._record = record
        return ended

    def fail(self, failure: Failure, at: datetime) -> GenerationTask:
        """End it as failed. Returns the record to write."""
        return self._end(self._record.evolve(status=TaskStatus.FAILED, completed_at=at, failure=failure))

    def cancel(self, at: datetime) -> GenerationTask:
        """End it as cancelled. Returns the record to write."""
        return self._end(self._record.evolve(status=TaskStatus.CANCELLED, completed_at=at))

    def _end(self, ended: GenerationTask) -> GenerationTask:
        self._move(Ending(ended), *OPEN)
        return ended

    def finish(self) -> None:
        """Make the end visible: it is on disk, or the disk refused it and it will be written later."""
        self._record = self._from(Ending).ended
        self._stage = Ended()

    # -- transitions --------------------------------------------------------------------------------------------------

    def _move(self, stage: Stage, *sources: type[Stage]) -> None:
        if not isinstance(self._stage, sources):
            raise IllegalTransition(f"{self!r} cannot become {type(stage).__name__.upper()}.")
        self._stage = stage

    def _from(self, source: type[S]) -> S:
        """The present stage. Raises IllegalTransition if it is another one than `source`."""
        if not isinstance(self._stage, source):
            raise IllegalTransition(f"{self!r} is not {source.__name__.upper()}.")
        return self._stage
