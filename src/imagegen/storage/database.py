"""One SQLite connection writes, in one thread; concurrent callers share commits. Reads have their own connections."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from imagegen.core.errors import JournalDamaged, JournalLost, SearchTooLong, StorageFailed, StorageFull
from imagegen.storage.files import file_id, storage_error
from imagegen.storage.migrations import upgrade

T = TypeVar("T")
Work = Callable[[Connection], Any]

#: Searches that run at the same time. Lookups have a thread of their own, which no search delays.
SEARCHES = 2

#: Time limit of a search, in seconds.
SEARCH_S = 5.0

#: Steps of SQLite's virtual machine between two checks of a search's time limit: about 1 ms.
_STEPS = 20_000


#: Errors after which it is unknown what is on disk. A failed fsync is never repeated: the kernel may have dropped the
#: pages, and the next one would succeed. After a failed write the transaction is undone, so that error is no loss.
_FATAL = (
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
)


class _Asked(NamedTuple):
    """Work that waits for its commit."""

    work: Work
    result: asyncio.Future[Any]
    #: Whether it must survive a power cut; otherwise it survives the end of this process.
    durable: bool


class Database:
    """Runs work in transactions.

    Callers that arrive during a commit share the next transaction and its fsync, so that the rate of durable writes is
    not bounded by the rate of fsyncs. All state except the connections lives on the event loop.

    After a failed fsync nobody can tell what is on disk, and a file that was removed or replaced keeps nothing. The
    database is then lost: every call raises JournalLost, and the process must end.
    """

    def __init__(self, path: Path, search_s: float = SEARCH_S) -> None:
        self._path = path
        self._search_s = search_s
        self._writer: _Writer | None = None
        self._reader: Engine | None = None
        self._peeking: sqlite3.Connection | None = None
        self._writes = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._lookups = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal-lookup")
        self._searches = ThreadPoolExecutor(max_workers=SEARCHES, thread_name_prefix="journal-search")
        self._gathered: list[_Asked] = []
        self._committing: asyncio.Task[None] | None = None
        self._closed = False
        self._loss: JournalLost | None = None
        self._lost = asyncio.Event()

    async def run(self, work: Callable[[Connection], T], *, durable: bool = True) -> T:
        """The result of `work`, once it is on disk; without `durable`, once the kernel has it.

        Raises StorageFull or StorageFailed, and then nothing was written; or JournalLost.
        """
        if self._loss is not None:
            raise self._loss
        if self._closed:
            raise StorageFailed
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._gathered.append(_Asked(work, future, durable))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        return await future

    async def look_up(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, which reads few rows. It sees all commits so far. Raises as `run` does."""
        return await self._read(self._lookups, work, None)

    async def search(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, which may read many rows. Raises as `run` does, and SearchTooLong."""
        return await self._read(self._searches, work, self._search_s)

    def peek(self, query: str) -> int | None:
        """The number that `query` reads from one row, with all commits so far; None: unknown, ask `look_up`.

        On the event loop, where it takes 6 us: a twentieth of what a read in a thread takes.
        """
        if self._reader is None or self._loss is not None or self._closed:
            return None
        try:
            if self._peeking is None:
                self._peeking = sqlite3.connect(self._path, isolation_level=None)
                _configure_reader(self._peeking, None)
            (row,) = self._peeking.execute(query).fetchall()
        except (sqlite3.Error, ValueError):
            return None
        return int(row[0])

    async def until_lost(self) -> JournalLost:
        """Return the reason once the database is lost."""
        await self._lost.wait()
        assert self._loss is not None
        return self._loss

    async def close(self) -> None:
        """Finish the waiting work, then close the connections."""
        self._closed = True
        if self._committing is not None:
            await self._committing
        if self._peeking is not None:
            self._peeking.close()
        loop = asyncio.get_running_loop()
        for readers in (self._lookups, self._searches):
            await loop.run_in_executor(readers, lambda: None)
            readers.shutdown(wait=False)
        await loop.run_in_executor(self._writes, self._dispose)
        self._writes.shutdown(wait=False)

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._gathered:
            batch, self._gathered = self._gathered, []
            commit = loop.run_in_executor(self._writes, self._commit, batch)
            await asyncio.wait([commit])
            if isinstance(error := commit.exception(), JournalLost):
                self._loss = error
                self._lost.set()
            _settle([asked.result for asked in batch], commit)
        self._committing = None

    async def _read(self, executor: ThreadPoolExecutor, work: Callable[[Connection], T], limit_s: float | None) -> T:
        if self._reader is None:
            await self.run(lambda connection: None, durable=False)  # creates the file and its tables
            self._reader = _open_reader(self._path)
        if self._loss is not None:
            raise self._loss
        if self._closed:
            raise StorageFailed
        reader = self._reader
        return await asyncio.get_running_loop().run_in_executor(executor, lambda: _query(reader, work, limit_s))

    # -- in the thread of writes --------------------------------------------------------------------------------------

    def _commit(self, batch: list[_Asked]) -> list[Any]:
        try:
            if self._writer is None:
                self._writer = _Writer(self._path)
            durable = any(asked.durable for asked in batch)
            self._writer.check()  # a commit into a log that was truncated hides that
            with self._writer.transaction(durable=durable) as connection:
                results = [asked.work(connection) for asked in batch]
            # And before anybody is told: a commit into a file that was removed keeps nothing.
            self._writer.check()
            return results
        except (SQLAlchemyError, OSError) as error:
            raise _storage_error(error, writing=self._writer is not None) from error

    def _dispose(self) -> None:
        if self._reader is not None:
            self._reader.dispose()
        if self._writer is not None:
            self._writer.close()


class _Writer:
    """The one connection that writes, and the files that it has open."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._log = path.with_name(path.name + "-wal")
        self._engine = create_engine(f"sqlite:///{path}", poolclass=StaticPool)
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        with ExitStack() as unless_ready:
            unless_ready.callback(self._engine.dispose)
            with self._engine.begin() as connection:
                upgrade(connection)
            unless_ready.pop_all()
        # A second view of the connection. Creating one costs as much as a small transaction, so it is kept.
        self._quick = self._engine.execution_options(synchronous="NORMAL")
        self._file = file_id(path)
        self._log_bytes = 0

    def transaction(self, *, durable: bool) -> Any:
        return (self._engine if durable else self._quick).begin()

    def check(self) -> None:
        """Raises JournalLost if the files on disk are no longer those that are open.

        Only `stat` is called: closing any other descriptor of these files would release SQLite's locks.
        """
        if file_id(self._path) != self._file:
            raise JournalLost(f"The journal {self._path} was removed or replaced while the service ran.")
        try:
            size = self._log.stat().st_size
        except FileNotFoundError:
            raise JournalLost(f"{self._log} was removed while the service ran.") from None
        if size < self._log_bytes and not self._checkpointed(size):
            raise JournalLost(f"{self._log} was truncated while the service ran.")
        self._log_bytes = size

    def _checkpointed(self, size: int) -> bool:
        """Whether the log is shorter because another program has checkpointed it, so that nothing is missing."""
        with closing(self._engine.raw_connection().cursor()) as cursor:
            try:
                _, frames, _ = cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.DatabaseError:
                return False
            page = cursor.execute("PRAGMA page_size").fetchone()[0]
        return bool(frames * (page + 24) <= size)

    def close(self) -> None:
        self._engine.dispose()


def check(path: Path) -> None:
    """Check an existing database for damage by reading all of it, and migrate it. Creates it if it is missing.

    Raises JournalDamaged, StorageFull, or StorageFailed, also for a database of a newer version.
    """
    if path.exists():
        _check_integrity(path)
    try:
        _Writer(path).close()
    except (SQLAlchemyError, OSError) as error:
        raise _storage_error(error) from error


def _check_integrity(path: Path) -> None:
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


def _open_reader(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", pool_size=1 + SEARCHES, max_overflow=0)
    event.listen(engine, "connect", _configure_reader)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _query(reader: Engine, work: Callable[[Connection], T], limit_s: float | None) -> T:
    """Run `work` in a transaction, which sees one state of the database."""
    try:
        with reader.begin() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            deadline = time.monotonic() + (limit_s or 0)
            late = (lambda: time.monotonic() > deadline) if limit_s is not None else None
            driver.set_progress_handler(late, _STEPS)
            return work(connection)
    except (SQLAlchemyError, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            raise SearchTooLong from error
        raise _storage_error(error) from error


def _configure(connection: sqlite3.Connection, record: object) -> None:
    # The driver's own transactions exclude DDL and reads, so `_begin` begins them.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _configure_reader(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA query_only = ON")


def _begin(connection: Connection) -> None:
    synchronous = connection.get_execution_options().get("synchronous", "FULL")
    connection.exec_driver_sql(f"PRAGMA synchronous = {synchronous}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _storage_error(
    error: SQLAlchemyError | OSError, *, writing: bool = False
) -> StorageFull | StorageFailed | JournalLost:
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, OSError):
        return storage_error(cause)
    code = getattr(cause, "sqlite_errorcode", None) or 0
    if code == sqlite3.SQLITE_FULL:
        return StorageFull()
    if code in _FATAL and writing:
        return JournalLost(f"The disk failed while the journal was written ({getattr(cause, 'sqlite_errorname', '')}).")
    return StorageFailed()
