"""TaskJournal: the records of all tasks, on disk before anyone hears of them."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from imagegen.core.task import GenerationTask, InputPictures, TaskStatus
from imagegen.storage.database import Database
from imagegen.storage.schema import inputs, tasks

#: Statements stay well below SQLite's bound on parameters.
_CHUNK = 500

# Written once: building a statement takes several times as long as SQLite takes to run it.
_INSERT = insert(tasks)
_UPDATE = update(tasks).where(tasks.c.id == bindparam("of"))
_GET = select(tasks.c.sequence, tasks.c.record).where(tasks.c.id == bindparam("of"))
_DROP_INPUTS = delete(inputs).where(inputs.c.task_id == bindparam("of"))


class Page(NamedTuple):
    """A part of the history, newest first."""

    tasks: list[GenerationTask]
    #: Tasks in the journal.
    total: int
    #: Those of them that match the filter.
    filtered: int


class TaskJournal:
    """Stores and finds task records. Every method raises StorageFull or StorageFailed when the disk refuses."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path)

    async def insert(self, task: GenerationTask, pictures: InputPictures) -> GenerationTask:
        """Store a new task; it comes back with its sequence number."""

        def work(connection: Connection) -> int:
            result = connection.execute(_INSERT, _columns(task))
            if pictures.init_image is not None:
                row = {"task_id": task.id, "image": pictures.init_image, "mask": pictures.mask_image}
                connection.execute(insert(inputs).values(**row))
            assert result.inserted_primary_key is not None
            return int(result.inserted_primary_key[0])

        return task.evolve(sequence=await self._database.run(work))

    async def update(self, *changed: GenerationTask) -> None:
        """Store new states of known tasks in one transaction. The input pictures of a finished one are dropped.

        Only an end waits for the disk: a power cut that forgets a beginning has the task begin again.
        """

        def work(connection: Connection) -> None:
            for task in changed:
                connection.execute(_UPDATE, _columns(task) | {"of": task.id})
                if task.status.finished:
                    connection.execute(_DROP_INPUTS, {"of": task.id})

        await self._database.run(work, durable=any(task.status.finished for task in changed))

    async def get(self, task_id: str) -> GenerationTask | None:
        row = await self._database.run(lambda connection: connection.execute(_GET, {"of": task_id}).one_or_none())
        return _task(row) if row else None

    async def pictures(self, task_id: str) -> InputPictures:
        """What an unfinished task starts from."""
        query = select(inputs.c.image, inputs.c.mask).where(inputs.c.task_id == task_id)
        row = await self._database.run(lambda connection: connection.execute(query).one_or_none())
        return InputPictures(init_image=row.image, mask_image=row.mask) if row else InputPictures()

    async def unfinished(self) -> list[GenerationTask]:
        """What an earlier run left, in order of arrival."""
        states = (TaskStatus.PENDING, TaskStatus.PROCESSING)
        query = select(tasks.c.sequence, tasks.c.record).where(tasks.c.status.in_(states)).order_by(tasks.c.sequence)
        return _tasks(await self._database.run(lambda connection: connection.execute(query).all()))

    async def page(self, status: TaskStatus | None, limit: int) -> Page:
        """The newest tasks, of one status or of all."""
        query = select(tasks.c.sequence, tasks.c.record).order_by(tasks.c.sequence.desc()).limit(limit)
        count = matching = select(func.count()).select_from(tasks)
        if status is not None:
            query = query.where(tasks.c.status == status)
            matching = count.where(tasks.c.status == status)

        def work(connection: Connection) -> tuple[Sequence[Any], int, int]:
            rows = connection.execute(query).all()
            return rows, connection.scalar(count) or 0, connection.scalar(matching) or 0

        rows, total, filtered = await self._database.run(work)
        return Page(_tasks(rows), total, filtered)

    async def finished_before(self, moment: datetime) -> list[GenerationTask]:
        """Some of the oldest tasks that ended before `moment`."""
        query = (
            select(tasks.c.sequence, tasks.c.record)
            .where(tasks.c.completed_at < moment.isoformat())
            .order_by(tasks.c.completed_at)
            .limit(_CHUNK)
        )
        return _tasks(await self._database.run(lambda connection: connection.execute(query).all()))

    async def delete(self, task_ids: Sequence[str]) -> None:
        """Forget at most 500 tasks."""
        statement = delete(tasks).where(tasks.c.id.in_(task_ids[:_CHUNK]))
        await self._database.run(lambda connection: connection.execute(statement))

    async def count(self) -> int:
        query = select(func.count()).select_from(tasks)
        return await self._database.run(lambda connection: connection.scalar(query)) or 0

    async def close(self) -> None:
        await self._database.close()


def _columns(task: GenerationTask) -> dict[str, str | None]:
    return {
        "id": task.id,
        "status": task.status.value,
        "created_at": task.created_at.isoformat(),
        "completed_at": task.completed_at.isoformat() if task.completed_at else None,
        "record": task.model_dump_json(exclude={"sequence"}),
    }


def _task(row: Any) -> GenerationTask:
    sequence, record = row
    return GenerationTask.model_validate_json(record).evolve(sequence=sequence)


def _tasks(rows: Sequence[Any]) -> list[GenerationTask]:
    return [_task(row) for row in rows]
