"""TaskJournal: the records of all tasks. A record is on disk before its caller gets an answer."""

import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

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
    update,
)

from imagegen.core.errors import ImagegenError, JournalLost, LimitReached
from imagegen.core.keys import LimitState
from imagegen.core.task import GenerationTask, InputPictures, TaskStatus
from imagegen.core.webhooks import Delivery
from imagegen.storage.budgets import Budgets, Reservation
from imagegen.storage.database import Database
from imagegen.storage.keys import KeyStore
from imagegen.storage.outbox import Outbox, Render
from imagegen.storage.tables import inputs, keys, prompts, service, tasks

Query = Select[*tuple[Any, ...]]

#: Parameters of one statement, well below SQLite's limit.
_CHUNK = 500

#: Matching tasks that a page counts at most: counting 200,000 takes a tenth of a second.
MAX_COUNTED = 10_000

# Built once: building a statement takes several times as long as running it.
_INSERT = insert(tasks)
_UPDATE = update(tasks).where(tasks.c.id == bindparam("of"))
_GET = select(tasks.c.sequence, tasks.c.record).where(tasks.c.id == bindparam("of"))
_DROP_INPUTS = delete(inputs).where(inputs.c.task_id == bindparam("of"))

_INDEX = insert(prompts)

#: Shorter texts are not in the index of trigrams.
_TRIGRAM = 3

#: Event ids that are reserved for a run: at 1,000 events a second, those of eleven days. Ids stay below 2^53, which is
#: what JSON numbers hold, over seven million restarts.
EVENT_IDS = 10**9

#: Seconds of service for which an idempotency key is kept: a day.
_KEYS_LAST_S = 86_400

#: Seconds of service that a crash may lose.
_COUNT_EVERY_S = 60


class TaskFilter(NamedTuple):
    """Which tasks are listed; None is any."""

    status: TaskStatus | None = None
    model: str | None = None
    #: Text in the prompt, in any case.
    text: str | None = None
    #: Accepted at `since` or later, and before `until`.
    since: datetime | None = None
    until: datetime | None = None
    owner: str | None = None


class Claim(NamedTuple):
    """The name that a caller gives a request, so that a retry makes no second task."""

    key: str
    #: SHA-256 of the request, hexadecimal.
    digest: str
    #: Whose name it is: two owners may use the same key.
    owner: str = ""


class Claimed(NamedTuple):
    """The task that a key made."""

    task_id: str
    digest: str


class Page(NamedTuple):
    """A page of the history, newest first."""

    tasks: list[GenerationTask]
    #: Tasks in the journal; of the owner, if the filter names one.
    total: int
    #: Tasks that match the filter, counted up to MAX_COUNTED.
    filtered: int
    #: Whether older tasks match.
    more: bool = False


class Retention(NamedTuple):
    """How many ended tasks are kept; 0 is no limit."""

    #: Seconds of service since the task ended.
    age_s: float = 0
    tasks: int = 0
    #: Bytes of all files together.
    size: int = 0


class TaskJournal:
    """Stores and finds task records. Every method raises StorageFull or StorageFailed when the disk refuses.

    Age is counted in seconds of service: the time for which the journal was open, over all runs, by a monotonic
    clock.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic, render: Render | None = None) -> None:
        """`render` renders the body of a webhook."""
        self._database = Database(path)
        #: Its deliveries are written in the transactions of their tasks.
        self.outbox = Outbox(self._database, render)
        self.keys = KeyStore(self._database)
        self.budgets = Budgets(self._database)
        self._clock = clock
        self._opened = clock()
        #: Seconds of service of earlier runs. Only the database's thread uses this and the next attribute.
        self._before: float | None = None
        self._counted = 0.0

    async def insert(
        self,
        task: GenerationTask,
        pictures: InputPictures,
        claim: Claim | None = None,
        wanted: Reservation | None = None,
    ) -> GenerationTask | Claimed:
        """Store a new task; returns it with its sequence number. If its claim is taken, nothing is stored.

        `wanted`: what to reserve of its owner's budget. Raises LimitReached if too little is left.
        """

        def work(connection: Connection) -> int | Claimed | LimitState:
            if claim is not None and (taken := self._claimed(claim.key, claim.owner, connection)):
                return taken
            # Returned, because an exception would undo the work of the others in this transaction.
            if wanted is not None and (reached := self.budgets.reserve(task, wanted, connection)):
                return reached
            result = connection.execute(_INSERT, _columns(task) | self._end(task, connection))
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
        """The task that the owner's key made within a day of service."""
        return await self._database.run(lambda connection: self._claimed(key, owner, connection), durable=False)

    async def update(self, *changed: GenerationTask) -> None:
        """Store new states of known tasks in one transaction, and drop the input pictures of failed and cancelled ones.

        Only ends, and pictures that wait for their store, wait for the disk: if a power cut loses a start, the task
        starts again.
        """
        ended = [task for task in changed if task.status.finished]
        durable = any(task.status.finished or task.storing for task in changed)
        await self._store(changed, await self.outbox.births(ended), durable=durable)

    async def begin(self, *tasks: GenerationTask) -> None:
        """Like update(), for tasks that start; also queues their `started` webhooks."""
        await self._store(tasks, await self.outbox.births(tasks, started=True), durable=False)

    async def _store(self, changed: Sequence[GenerationTask], born: Sequence[Delivery], *, durable: bool) -> None:
        def work(connection: Connection) -> list[Delivery]:
            for task in changed:
                values = _columns(task) | self._end(task, connection)
                connection.execute(_UPDATE, values | {"of": task.id})
                if task.owner and task.status.finished:
                    self.budgets.settle(task, connection)
                if _came_to_nothing(task):
                    connection.execute(_DROP_INPUTS, {"of": task.id})
            return self.outbox.add(born, connection)

        try:
            self.outbox.stored(await self._database.run(work, durable=durable))
        except ImagegenError:
            self.outbox.undo(born)
            raise
        finally:
            if born:
                self.outbox.tell()

    async def get(self, task_id: str) -> GenerationTask | None:
        row = await self._database.look_up(lambda connection: connection.execute(_GET, {"of": task_id}).one_or_none())
        return _task(row) if row else None

    async def pictures(self, task_id: str) -> InputPictures:
        """The input pictures of a task, unless it failed or was cancelled."""
        query = select(inputs.c.image, inputs.c.mask).where(inputs.c.task_id == task_id)
        row = await self._database.look_up(lambda connection: connection.execute(query).one_or_none())
        return InputPictures(init_image=row.image, mask_image=row.mask) if row else InputPictures()

    async def unfinished(self) -> list[GenerationTask]:
        """The unfinished tasks of an earlier run, in order of arrival."""
        states = (TaskStatus.PENDING, TaskStatus.PROCESSING)
        query = select(tasks.c.sequence, tasks.c.record).where(tasks.c.status.in_(states)).order_by(tasks.c.sequence)
        # Behind the writes before it: a task that was just inserted is known to its caller before it is found here.
        rows = await self._database.run(lambda connection: connection.execute(query).all(), durable=False)
        return _tasks(rows)

    async def page(self, wanted: TaskFilter, limit: int, before: int | None = None) -> Page:
        """A page of matching tasks, newest first; with `before`, those that arrived before that sequence."""
        query, older = _matching(select(tasks.c.sequence, tasks.c.record), wanted), tasks.c.sequence < (before or 0)
        newest_first = prompts.c.rowid.desc() if wanted.text is not None else tasks.c.sequence.desc()
        query = (query.where(older) if before is not None else query).order_by(newest_first)
        count = select(func.count()).select_from(tasks)
        if wanted.owner is not None:  # the tasks of others do not exist for this caller
            count = count.where(tasks.c.owner == wanted.owner)

        def work(connection: Connection) -> tuple[Sequence[Any], int, int]:
            rows = connection.execute(query.limit(limit + 1)).all()
            total = connection.scalar(count) or 0
            counted = total if wanted == TaskFilter() else connection.scalar(_bounded(wanted)) or 0
            return rows, total, counted

        rows, total, filtered = await self._database.search(work)
        return Page(_tasks(rows[:limit]), total, filtered, more=len(rows) > limit)

    async def surplus(self, kept: Retention, without: Collection[str] = ()) -> list[GenerationTask]:
        """Some of the ended tasks beyond the limits, oldest first. `without`: ids of tasks to leave out."""

        now = await self._database.run(self._count, durable=False)

        rows = await self._database.search(lambda connection: _surplus(kept, now, without, connection))
        return _tasks(rows)

    async def delete(self, task_ids: Sequence[str]) -> None:
        """Delete the records of at most 500 tasks."""
        task_ids = task_ids[:_CHUNK]
        these = tasks.c.id.in_(task_ids)

        def work(connection: Connection) -> None:
            connection.execute(delete(prompts).where(prompts.c.rowid.in_(select(tasks.c.sequence).where(these))))
            connection.execute(delete(tasks).where(these))
            self.outbox.forget(task_ids, connection)

        await self._database.run(work)

    async def reserve_event_ids(self, first: int) -> int:
        """The first event id of this run: `first`, or a higher one if an earlier run may have used that."""

        def work(connection: Connection) -> int:
            begin = max(first, (connection.scalar(select(service.c.event_ids)) or 0) + 1)
            connection.execute(update(service).values(event_ids=begin + EVENT_IDS))
            return begin

        return await self._database.run(work)

    async def count(self) -> int:
        query = select(func.count()).select_from(tasks)
        return await self._database.look_up(lambda connection: connection.scalar(query)) or 0

    async def check(self) -> None:
        """Compare the files on disk with those that are open. Raises JournalLost."""
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

    def _end(self, task: GenerationTask, connection: Connection) -> dict[str, float]:
        return {"ended_s": self._service_s(connection)} if task.status.finished else {}

    def _service_s(self, connection: Connection) -> float:
        """Seconds of service until now."""
        before = self._before
        if before is None:
            written = connection.scalar(select(func.max(service.c.seconds))) or 0.0
            latest = connection.scalar(select(func.max(tasks.c.ended_s))) or 0.0
            before = self._before = self._counted = max(written, latest)
        return before + self._clock() - self._opened

    def _count(self, connection: Connection) -> float:
        """Seconds of service until now, stored every minute."""
        now = self._service_s(connection)
        if now - self._counted >= _COUNT_EVERY_S:
            connection.execute(update(service).values(seconds=now))
            self._counted = now
        return now


def _bounded(wanted: TaskFilter) -> Query:
    """Counts the tasks that match, up to MAX_COUNTED."""
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
        # A join, not a subquery: it ends with the page, where a subquery reads the whole index first.
        query = query.select_from(prompts.join(tasks, prompts.c.rowid == tasks.c.sequence)).where(_holds(wanted.text))
    return query.where(*(condition for asked, condition in conditions if asked is not None))


def _holds(text: str) -> ColumnElement[bool]:
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
    """Rows of the oldest ended tasks beyond the first limit that is exceeded, at most _CHUNK; the newest are kept."""
    ended = tasks.c.ended_s.is_not(None)
    columns = tasks.c.sequence, tasks.c.record, tasks.c.id, tasks.c.ended_s, tasks.c.stored_bytes
    oldest = select(*columns).where(ended).order_by(tasks.c.ended_s, tasks.c.sequence).limit(_CHUNK + len(without))
    counts = select(func.count(), func.coalesce(func.sum(tasks.c.stored_bytes), 0)).where(ended)
    number, size = connection.execute(counts).one()
    too_many = number - kept.tasks if kept.tasks else 0
    surplus = [
        (row.sequence, row.record)
        for place, row in enumerate(connection.execute(oldest))
        if (place < too_many or (kept.age_s and row.ended_s < now - kept.age_s)) and row.id not in without
    ]
    if not surplus and kept.size:
        for row in connection.execute(oldest.where(tasks.c.stored_bytes > 0)):
            if size <= kept.size:
                break
            size -= row.stored_bytes
            if row.id not in without:
                surplus.append((row.sequence, row.record))
    return surplus[:_CHUNK]


def _columns(task: GenerationTask) -> dict[str, Any]:
    return {
        "id": task.id,
        "status": task.status.value,
        "created_at": task.created_at.isoformat(),
        "completed_at": task.completed_at.isoformat() if task.completed_at else None,
        "record": task.model_dump_json(exclude={"sequence"}),
        "model": task.model,
        "owner": task.owner,
        "stored_bytes": sum(image.bytes for image in task.images) + (0 if _came_to_nothing(task) else task.input_bytes),
    }


def _came_to_nothing(task: GenerationTask) -> bool:
    return task.status in (TaskStatus.FAILED, TaskStatus.CANCELLED)


def _task(row: Any) -> GenerationTask:
    sequence, record = row
    return GenerationTask.model_validate_json(record).evolve(sequence=sequence)


def _tasks(rows: Sequence[Any]) -> list[GenerationTask]:
    return [_task(row) for row in rows]
