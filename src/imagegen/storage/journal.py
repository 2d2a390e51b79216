"""TaskJournal: the records of all tasks. A new task is on disk before its caller gets an answer."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
    tuple_,
    update,
)

from imagegen.core.errors import ImagegenError, JournalLost, LimitReached, StorageFull
from imagegen.core.keys import LimitState
from imagegen.core.task import GenerationTask, InputPictures, TaskStatus
from imagegen.core.webhooks import Delivery
from imagegen.storage.budgets import Budgets, Reservation
from imagegen.storage.database import Database, sizes
from imagegen.storage.keys import KeyStore
from imagegen.storage.outbox import Outbox, Render
from imagegen.storage.room import Ballast
from imagegen.storage.tables import inputs, keys, prompts, service, tasks

T = TypeVar("T")

Query = Select[*tuple[Any, ...]]

#: The number of parameters of one statement, well below SQLite's limit.
_CHUNK = 500

#: The most matching tasks that a page counts. Counting 200,000 takes a tenth of a second.
MAX_COUNTED = 10_000

# These statements are built once, because building one takes several times as long as running it.
_INSERT = insert(tasks)
_UPDATE = update(tasks).where(tasks.c.id == bindparam("of"))
_GET = select(tasks.c.sequence, tasks.c.record).where(tasks.c.id == bindparam("of"))
_DROP_INPUTS = delete(inputs).where(inputs.c.task_id == bindparam("of"))

_INDEX = insert(prompts)

#: The shortest text that the index of trigrams can find.
_TRIGRAM = 3

#: The number of event ids that are reserved for a run: eleven days of 1,000 events a second. Ids stay below 2^53, the
#: limit of exact JSON numbers, for seven million restarts.
EVENT_IDS = 10**9

#: Seconds of service, a day, after which an idempotency key is forgotten.
_KEYS_LAST_S = 86_400

#: Idempotency keys of each owner. With their index they take 30 to 70 MB.
_MOST_KEYS = 100_000

#: Seconds between two writes of the time of service. A crash may lose as many.
_COUNT_EVERY_S = 60

#: Bytes of input pictures that one transaction deletes: SQLite reads each page of them.
_INPUTS_AT_ONCE = 64 * 2**20

#: What a record takes with the rows around it, in bytes, and what the index takes for each byte of a prompt, measured
#: by bench/disk: 2.5 to 5 bytes once it is merged.
_ROW_BYTES = 1500
_INDEX_BYTES = 5

#: What the journal may have in use beyond what its tasks need; from this factor on it is merged once more.
_OTHER_BYTES = 32 * 2**20
_WASTE = 1.5

#: Pages of the index that are merged at once: 0.1 s, for which other writes wait.
_MERGED = 100


class TaskFilter(NamedTuple):
    """Which tasks are listed; None: any."""

    status: TaskStatus | None = None
    model: str | None = None
    #: Text in the prompt, in upper or lower case.
    text: str | None = None
    #: Accepted at `since` or later, and before `until`.
    since: datetime | None = None
    until: datetime | None = None
    owner: str | None = None


class Claim(NamedTuple):
    """The Idempotency-Key of a request, so that a retry makes no second task."""

    key: str
    #: SHA-256 of the request, hexadecimal.
    digest: str
    #: Who sent it. Two owners may use the same key.
    owner: str = ""


class Claimed(NamedTuple):
    """The task that an earlier request with the same Idempotency-Key has made."""

    task_id: str
    digest: str


class Page(NamedTuple):
    """A page of the history, newest first."""

    tasks: list[GenerationTask]
    #: The number of tasks in the journal; if the filter names an owner, of this owner's tasks.
    total: int
    #: The number of tasks that match the filter, counted up to MAX_COUNTED.
    filtered: int
    #: Whether older tasks match.
    more: bool = False


class Retention(NamedTuple):
    """Which ended tasks are kept; 0: no limit."""

    #: Seconds of service since the task ended.
    age_s: float = 0
    tasks: int = 0
    #: Bytes of all pictures together.
    size: int = 0
    #: Bytes of the journal. The input pictures of the oldest tasks go first.
    journal: int = 0


class TaskJournal:
    """Stores and finds task records. Every method raises StorageFull or StorageFailed when the disk refuses.

    Ages are in seconds of service: the time that the journal was open, in all runs together, by a monotonic clock.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic, render: Render | None = None) -> None:
        """`render` renders the body of a webhook."""
        self._database = Database(path)
        self._ballast = Ballast(path.with_name("ballast"))
        #: New deliveries are written in the transactions of their tasks.
        self.outbox = Outbox(self._database, render)
        self.keys = KeyStore(self._database)
        self.budgets = Budgets(self._database)
        self._clock = clock
        self._opened = clock()
        #: Seconds of service of earlier runs. Only the database's thread uses this and the next attributes.
        self._before: float | None = None
        self._counted = 0.0
        #: Whether the index of prompts is being merged, and the bytes in use after the latest merge.
        self._compacting = False
        self._compacted_to = 0

    def on_commit(self, call: Callable[[float, bool], object]) -> None:
        """Call `call` after each commit, with its seconds and whether it was durable."""
        self._database.on_commit = call

    async def insert(
        self,
        task: GenerationTask,
        pictures: InputPictures,
        claim: Claim | None = None,
        wanted: Reservation | None = None,
    ) -> GenerationTask | Claimed:
        """Store a new task; returns it with its sequence number. If the claim's key has made a task, returns that one.

        `wanted`: what to reserve of its owner's budget. Raises LimitReached if too little is left.
        """

        def work(connection: Connection) -> int | Claimed | LimitState:
            if claim is not None and (taken := self._claimed(claim.key, claim.owner, connection)):
                return taken
            # Returned, because an exception would undo the other work in this transaction.
            if wanted is not None and (reached := self.budgets.reserve(task, wanted, connection)):
                return reached
            result = connection.execute(_INSERT, _columns(task) | self._ended_column(task, connection))
            assert result.inserted_primary_key is not None
            sequence = int(result.inserted_primary_key[0])
            connection.execute(_INDEX, {"rowid": sequence, "prompt": task.request.prompt})
            if pictures.init_image is not None:
                row = {"task_id": task.id, "image": pictures.init_image, "mask": pictures.mask_image}
                connection.execute(insert(inputs).values(**row))
            if claim is not None:
                row = claim._asdict() | {"task_id": task.id, "made_s": self._service_s(connection)}
                connection.execute(insert(keys).values(**row))
            return sequence

        stored = await self._database.run(work)
        if isinstance(stored, LimitState):
            raise LimitReached(limit=stored)
        return stored if isinstance(stored, Claimed) else task.evolve(sequence=stored)

    async def claimed(self, key: str, owner: str = "") -> Claimed | None:
        """The task that the owner's Idempotency-Key has made within a day of service."""
        return await self._database.run(lambda connection: self._claimed(key, owner, connection), durable=False)

    async def update(self, *changed: GenerationTask) -> None:
        """Store the new records of tasks in one transaction, and drop the input pictures of failed and cancelled ones.

        The records of ended tasks, and of tasks with pictures in the spool, are on disk when this returns. A power cut
        may lose others: then the task runs again.
        """
        ended = [task for task in changed if task.status.finished]
        durable = any(task.status.finished or task.storing for task in changed)
        await self._store(changed, await self.outbox.new_deliveries(ended), durable=durable)

    async def begin(self, *tasks: GenerationTask) -> None:
        """Like update(), for tasks that start; also queues their `started` webhooks."""
        await self._store(tasks, await self.outbox.new_deliveries(tasks, started=True), durable=False)

    async def _store(self, changed: Sequence[GenerationTask], new: Sequence[Delivery], *, durable: bool) -> None:
        """Store records of tasks, and new deliveries, in one transaction."""

        def work(connection: Connection) -> list[Delivery]:
            for task in changed:
                values = _columns(task) | self._ended_column(task, connection)
                connection.execute(_UPDATE, values | {"of": task.id})
                if task.owner and task.status.finished:
                    self.budgets.settle(task, connection)
                if _ended_without_pictures(task):
                    connection.execute(_DROP_INPUTS, {"of": task.id})
            return self.outbox.add(new, connection)

        try:
            self.outbox.committed(await self._database.run(work, durable=durable))
        except ImagegenError:
            self.outbox.rolled_back(new)
            raise
        finally:
            if new:
                self.outbox.notify()

    async def get(self, task_id: str) -> GenerationTask | None:
        row = await self._database.look_up(lambda connection: connection.execute(_GET, {"of": task_id}).one_or_none())
        return _task(row) if row else None

    async def pictures(self, task_id: str) -> InputPictures:
        """The input pictures of a task; none if they were deleted: it failed, was cancelled, or is among the oldest."""
        query = select(inputs.c.image, inputs.c.mask).where(inputs.c.task_id == task_id)
        row = await self._database.look_up(lambda connection: connection.execute(query).one_or_none())
        return InputPictures(init_image=row.image, mask_image=row.mask) if row else InputPictures()

    async def unfinished(self) -> list[GenerationTask]:
        """The tasks that have not ended, in order of arrival."""
        states = (TaskStatus.PENDING, TaskStatus.PROCESSING)
        query = select(tasks.c.sequence, tasks.c.record).where(tasks.c.status.in_(states)).order_by(tasks.c.sequence)
        # Read in the thread of writes, so that the caller of `insert` knows a new task before it is found here.
        rows = await self._database.run(lambda connection: connection.execute(query).all(), durable=False)
        return _tasks(rows)

    async def page(self, wanted: TaskFilter, limit: int, before: int | None = None) -> Page:
        """A page of matching tasks, newest first; with `before`, those that arrived before that sequence number."""
        query, older = _matching(select(tasks.c.sequence, tasks.c.record), wanted), tasks.c.sequence < (before or 0)
        newest_first = prompts.c.rowid.desc() if wanted.text is not None else tasks.c.sequence.desc()
        query = (query.where(older) if before is not None else query).order_by(newest_first)
        count = select(func.count()).select_from(tasks)
        if wanted.owner is not None:  # this caller must not learn how many tasks others have
            count = count.where(tasks.c.owner == wanted.owner)

        def work(connection: Connection) -> tuple[Sequence[Any], int, int]:
            rows = connection.execute(query.limit(limit + 1)).all()
            total = connection.scalar(count) or 0
            counted = total if wanted == TaskFilter() else connection.scalar(_count_of(wanted)) or 0
            return rows, total, counted

        rows, total, filtered = await self._database.search(work)
        return Page(_tasks(rows[:limit]), total, filtered, more=len(rows) > limit)

    async def surplus(self, kept: Retention, without: Collection[str] = ()) -> list[GenerationTask]:
        """Some of the ended tasks that retention does not keep, oldest first. `without`: ids of tasks to leave out."""
        try:
            now = await self._database.run(self._count_service, durable=False)
        except StorageFull:  # this may be the time to delete something
            now = await self._database.run(self._service_s, durable=False)
        rows = await self._database.search(lambda connection: _surplus(kept, now, without, connection))
        return _tasks(rows)

    async def drop_inputs(self, most: int) -> int:
        """Delete the input pictures of the oldest ended tasks while the journal has more than `most` bytes of such
        tasks. Returns the number of tasks."""
        beyond = await self._database.search(lambda connection: connection.execute(_SUMS).one()[2]) - most
        dropped = 0
        while beyond > 0:
            tasks, size = await self._free(partial(_drop_inputs, beyond), durable=False)
            if not tasks:
                break
            dropped += tasks
            beyond -= size
        return dropped

    async def _free(self, work: Callable[[Connection], T], *, durable: bool) -> T:
        """Like `run` of the database, for a deletion: on a full disk, the ballast makes room for it."""
        try:
            return await self._database.run(work, durable=durable)
        except StorageFull:
            if not await asyncio.to_thread(self._ballast.drop):
                raise
            return await self._database.run(work, durable=durable)

    async def tidy(self) -> None:
        """Delete the idempotency keys that are too many, give free space back to the disk, and hold the ballast."""
        await self._database.run(_drop_old_keys, durable=False)
        needed = await self._database.search(_all_in_journal) + _OTHER_BYTES
        while await self._database.run(partial(self._compact, needed), durable=False):
            pass
        await self._database.shrink()
        await asyncio.to_thread(self._ballast.hold)

    async def delete(self, task_ids: Sequence[str]) -> None:
        """Delete the records of at most 500 tasks."""
        task_ids = task_ids[:_CHUNK]
        these = tasks.c.id.in_(task_ids)

        def work(connection: Connection) -> None:
            connection.execute(delete(prompts).where(prompts.c.rowid.in_(select(tasks.c.sequence).where(these))))
            connection.execute(delete(tasks).where(these))
            self.outbox.forget(task_ids, connection)

        await self._free(work, durable=True)

    async def reserve_event_ids(self, first: int) -> int:
        """The first event id of this run: `first`, or a higher one if an earlier run may have used it."""

        def work(connection: Connection) -> int:
            begin = max(first, (connection.scalar(select(service.c.event_ids)) or 0) + 1)
            connection.execute(update(service).values(event_ids=begin + EVENT_IDS))
            return begin

        return await self._database.run(work)

    async def count(self) -> int:
        query = select(func.count()).select_from(tasks)
        return await self._database.look_up(lambda connection: connection.scalar(query)) or 0

    async def check(self) -> None:
        """Raises JournalLost if the files on disk are no longer those that are open."""
        await self._database.run(lambda connection: None, durable=False)

    async def until_lost(self) -> JournalLost:
        """Return the reason once the journal is lost. No task can be accepted or ended any more."""
        return await self._database.until_lost()

    async def close(self) -> None:
        await self._database.close()

    # -- in the database's thread -------------------------------------------------------------------------------------

    def _claimed(self, key: str, owner: str, connection: Connection) -> Claimed | None:
        old = self._service_s(connection) - _KEYS_LAST_S
        connection.execute(delete(keys).where(keys.c.made_s < old))
        query = select(keys.c.task_id, keys.c.digest).where(keys.c.owner == owner, keys.c.key == key)
        row = connection.execute(query).one_or_none()
        return None if row is None else Claimed(*row)

    def _compact(self, needed: int, connection: Connection) -> bool:
        """Merge a piece of the index of prompts if it holds too much of deleted ones. Returns whether there is more.

        A deletion only adds to the index what it must ignore, up to three times of what it needs. `needed`: the bytes
        that the journal may have in use without a merge.
        """
        if not self._compacting and sizes(connection).used < max(needed, self._compacted_to * _WASTE):
            return False
        changes = connection.exec_driver_sql("SELECT total_changes()").scalar_one()
        pages = _MERGED if self._compacting else -_MERGED  # negative: all of the index takes part
        connection.exec_driver_sql(f"INSERT INTO prompts(prompts, rank) VALUES ('merge', {pages})")
        # As FTS5 documents it: one change is the insertion itself.
        self._compacting = connection.exec_driver_sql("SELECT total_changes()").scalar_one() - changes > 1
        self._compacted_to = sizes(connection).used
        return self._compacting

    def _ended_column(self, task: GenerationTask, connection: Connection) -> dict[str, float]:
        return {"ended_s": self._service_s(connection)} if task.status.finished else {}

    def _service_s(self, connection: Connection) -> float:
        """Seconds of service until now."""
        before = self._before
        if before is None:
            written = connection.scalar(select(func.max(service.c.seconds))) or 0.0
            latest = connection.scalar(select(func.max(tasks.c.ended_s))) or 0.0
            before = self._before = self._counted = max(written, latest)
        return before + self._clock() - self._opened

    def _count_service(self, connection: Connection) -> float:
        """Seconds of service until now. Also stores them, once a minute."""
        now = self._service_s(connection)
        if now - self._counted >= _COUNT_EVERY_S:
            connection.execute(update(service).values(seconds=now))
            self._counted = now
        return now


def _count_of(wanted: TaskFilter) -> Query:
    """A query that counts the matching tasks, up to MAX_COUNTED."""
    some = _matching(select(tasks.c.sequence), wanted).limit(MAX_COUNTED).subquery()
    return select(func.count()).select_from(some)


def _matching(query: Query, wanted: TaskFilter) -> Query:
    conditions = (
        (wanted.status, tasks.c.status == wanted.status),
        (wanted.model, tasks.c.model == wanted.model),
        (wanted.owner, tasks.c.owner == wanted.owner),
        (wanted.since, tasks.c.created_at >= _iso(wanted.since)),
        (wanted.until, tasks.c.created_at < _iso(wanted.until)),
    )
    if wanted.text is not None:
        # A join, because it stops when the page is full. A subquery would read the whole index first.
        query = query.select_from(prompts.join(tasks, prompts.c.rowid == tasks.c.sequence)).where(
            _contains(wanted.text)
        )
    return query.where(*(condition for value, condition in conditions if value is not None))


def _contains(text: str) -> ColumnElement[bool]:
    """Whether the prompt contains this text."""
    if len(text) < _TRIGRAM:
        return prompts.c.prompt.icontains(text, autoescape=True)
    phrase = text.replace('"', '""')
    return literal_column("prompts").match(f'"{phrase}"')


def _iso(time: datetime | None) -> str:
    """A time in the format of `created_at`."""
    if time is None:
        return ""
    try:
        return time.astimezone(UTC).isoformat()
    except OverflowError:  # in UTC it is before the first year or after the last one
        return time.replace(tzinfo=UTC).isoformat()


def _surplus(kept: Retention, now: float, without: Collection[str], connection: Connection) -> list[Any]:
    """At most _CHUNK rows of ended tasks to delete, oldest first.

    These are the tasks that are too many or too old; if there are none, those whose pictures take too much space; if
    there are none of these either, those that take too much of the journal.
    """
    columns = tasks.c.sequence, tasks.c.record, tasks.c.id, tasks.c.ended_s, tasks.c.stored_bytes, _IN_JOURNAL
    oldest = select(*columns).where(_ENDED).order_by(*_OLDEST_FIRST).limit(_CHUNK + len(without))
    number, size, journal = connection.execute(_SUMS).one()
    too_many = number - kept.tasks if kept.tasks else 0
    surplus = [
        (row.sequence, row.record)
        for place, row in enumerate(connection.execute(oldest))
        if (place < too_many or (kept.age_s and row.ended_s < now - kept.age_s)) and row.id not in without
    ]
    if not surplus and kept.size:
        rows = connection.execute(oldest.where(tasks.c.stored_bytes > 0)).all()
        surplus = _beyond(size - kept.size, [(row, row.stored_bytes) for row in rows], without)
    if not surplus and kept.journal:
        rows = connection.execute(oldest).all()
        surplus = _beyond(journal - kept.journal, [(row, row.in_journal) for row in rows], without)
    return surplus[:_CHUNK]


def _beyond(excess: int, rows: Iterable[tuple[Any, int]], without: Collection[str]) -> list[Any]:
    """The first rows that make up so many bytes. `rows`: each with its bytes."""
    found = []
    for row, size in rows:
        if excess <= 0:
            break
        excess -= size
        if row.id not in without:
            found.append((row.sequence, row.record))
    return found


_ENDED = tasks.c.ended_s.is_not(None)
_OLDEST_FIRST = tasks.c.ended_s, tasks.c.sequence
#: Bytes that a task takes in the journal.
_IN_JOURNAL = (tasks.c.journal_bytes + tasks.c.input_bytes).label("in_journal")
#: The ended tasks: their number, the bytes of their pictures, and those in the journal.
_SUMS = select(
    func.count(), func.coalesce(func.sum(tasks.c.stored_bytes), 0), func.coalesce(func.sum(_IN_JOURNAL), 0)
).where(_ENDED)


def _all_in_journal(connection: Connection) -> int:
    """The bytes of all tasks, and of their input pictures."""
    return int(connection.scalar(select(func.sum(_IN_JOURNAL))) or 0)


def _drop_inputs(beyond: int, connection: Connection) -> tuple[int, int]:
    """Delete the input pictures of the oldest tasks, `beyond` bytes or fewer. Returns how many tasks, and the bytes."""
    ids, size = list[str](), 0
    query = select(tasks.c.id, tasks.c.input_bytes).where(_ENDED, tasks.c.input_bytes > 0).order_by(*_OLDEST_FIRST)
    for row in connection.execute(query.limit(_CHUNK)):
        if size >= min(beyond, _INPUTS_AT_ONCE):
            break
        ids.append(row.id)
        size += row.input_bytes
    connection.execute(delete(inputs).where(inputs.c.task_id.in_(ids)))
    connection.execute(update(tasks).where(tasks.c.id.in_(ids)).values(input_bytes=0))
    return len(ids), size


def _drop_old_keys(connection: Connection) -> None:
    """Keep the newest _MOST_KEYS of each owner."""
    if (connection.scalar(select(func.count()).select_from(keys)) or 0) <= _MOST_KEYS:
        return
    place = func.row_number().over(partition_by=keys.c.owner, order_by=keys.c.made_s.desc()).label("place")
    ranked = select(keys.c.owner, keys.c.key, place).subquery()
    old = select(ranked.c.owner, ranked.c.key).where(ranked.c.place > _MOST_KEYS)
    connection.execute(delete(keys).where(tuple_(keys.c.owner, keys.c.key).in_(old)))


def _columns(task: GenerationTask) -> dict[str, Any]:
    record = task.model_dump_json(exclude={"sequence"})
    return {
        "id": task.id,
        "status": task.status.value,
        "created_at": task.created_at.isoformat(),
        "completed_at": task.completed_at.isoformat() if task.completed_at else None,
        "record": record,
        "model": task.model,
        "owner": task.owner,
        "stored_bytes": sum(image.bytes for image in task.images),
        "journal_bytes": _journal_bytes(task, len(record)),
        "input_bytes": 0 if _ended_without_pictures(task) else task.input_bytes,
    }


def _journal_bytes(task: GenerationTask, record: int) -> int:
    """Bytes that a task takes in the journal without its input pictures. `record`: the length of its record."""
    payloads = record * len(task.webhook.events) if task.webhook else 0
    return _ROW_BYTES + record + payloads + _INDEX_BYTES * len(task.request.prompt.encode())


def _ended_without_pictures(task: GenerationTask) -> bool:
    return task.status in (TaskStatus.FAILED, TaskStatus.CANCELLED)


def _task(row: Any) -> GenerationTask:
    sequence, record = row
    return GenerationTask.model_validate_json(record).evolve(sequence=sequence)


def _tasks(rows: Sequence[Any]) -> list[GenerationTask]:
    return [_task(row) for row in rows]
