"""One SQLite connection in one thread. Concurrent callers share commits."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from imagegen.core.errors import JournalDamaged, StorageFailed, StorageFull
from imagegen.storage.files import storage_error
from imagegen.storage.migrations import upgrade

T = TypeVar("T")
Work = Callable[[Connection], Any]


class _Asked(NamedTuple):
    """Work that waits for its commit."""

    work: Work
    result: asyncio.Future[Any]
    #: Whether it must survive a power cut; otherwise it survives the end of this process.
    durable: bool


class Database:
    """Runs work in transactions.

    Callers that arrive during a commit share the next transaction and its fsync, so that the rate of durable writes is
    not bounded by the rate of fsyncs. All state except the connection lives on the event loop.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engines: _Engines | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._gathered: list[_Asked] = []
        self._committing: asyncio.Task[None] | None = None
        self._closed = False

    async def run(self, work: Callable[[Connection], T], *, durable: bool = True) -> T:
        """The result of `work`, once it is on disk; without `durable`, once the kernel has it.

        Raises StorageFull or StorageFailed; then nothing was written.
        """
        if self._closed:
            raise StorageFailed
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._gathered.append(_Asked(work, future, durable))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        return await future

    async def close(self) -> None:
        """Finish the waiting work, then close the connection."""
        self._closed = True
        if self._committing is not None:
            await self._committing
        await asyncio.get_running_loop().run_in_executor(self._thread, self._dispose)
        self._thread.shutdown(wait=False)

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._gathered:
            batch, self._gathered = self._gathered, []
            commit = loop.run_in_executor(self._thread, self._commit, batch)
            await asyncio.wait([commit])
            _settle([asked.result for asked in batch], commit)
        self._committing = None

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _commit(self, batch: list[_Asked]) -> list[Any]:
        try:
            if self._engines is None:
                self._engines = _open(self._path)
            engine = self._engines.durable if any(asked.durable for asked in batch) else self._engines.quick
            with engine.begin() as connection:
                return [asked.work(connection) for asked in batch]
        except (SQLAlchemyError, OSError) as error:
            raise _storage_error(error) from error

    def _dispose(self) -> None:
        if self._engines is not None:
            self._engines.durable.dispose()


def check(path: Path) -> None:
    """Check an existing database for damage by reading all of it. Raises JournalDamaged."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path)) as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        advice = f"Restore it from a backup, or try `sqlite3 {path.name} .recover`; or move it away to begin anew."
        raise JournalDamaged(f"The journal {path} is damaged ({' '.join(found.split())}). {advice}")


def _settle(futures: list[asyncio.Future[Any]], commit: asyncio.Future[list[Any]]) -> None:
    error = commit.exception()
    for i, future in enumerate(futures):
        if future.done():  # its caller was cancelled; the write stands
            continue
        if error is None:
            future.set_result(commit.result()[i])
        else:
            future.set_exception(error)


class _Engines(NamedTuple):
    """Two views of one connection. Creating one costs as much as a small transaction, so they are kept."""

    durable: Engine
    quick: Engine


def _open(path: Path) -> _Engines:
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(f"sqlite:///{path}", poolclass=StaticPool)
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    with ExitStack() as unless_ready:
        unless_ready.callback(engine.dispose)
        with engine.begin() as connection:
            upgrade(connection)
        unless_ready.pop_all()
    return _Engines(engine, engine.execution_options(synchronous="NORMAL"))


def _configure(connection: sqlite3.Connection, record: object) -> None:
    # The driver's own transactions exclude DDL and reads, so `_begin` begins them.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Connection) -> None:
    synchronous = connection.get_execution_options().get("synchronous", "FULL")
    connection.exec_driver_sql(f"PRAGMA synchronous = {synchronous}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _storage_error(error: SQLAlchemyError | OSError) -> StorageFull | StorageFailed:
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, OSError):
        return storage_error(cause)
    return StorageFull() if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL else StorageFailed()
