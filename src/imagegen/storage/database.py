"""The SQLite database: one connection writes, in one thread, for many callers at once; others read."""

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from imagegen.core.errors import JournalDamaged, JournalLost, SearchTooLong, StorageFailed, StorageFull
from imagegen.storage.files import file_id, make_private, storage_error
from imagegen.storage.migrations import refuse_newer, upgrade

T = TypeVar("T")
Work = Callable[[Connection], Any]

#: The number of searches that run at the same time. Lookups have a thread of their own, so no search delays them.
SEARCHES = 2

#: Time limit of a search, in seconds.
SEARCH_S = 5.0

#: Steps of SQLite's virtual machine between two checks of a search's time limit: about 1 ms.
_STEPS = 20_000

#: Errors after which it is unknown what is on disk. A failed fsync must not be repeated: the kernel may have dropped
#: the pages, and the second fsync would succeed. A failed write is not among them: the transaction is rolled back.
_FATAL = (
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
)


#: What `PRAGMA auto_vacuum` answers for INCREMENTAL.
_INCREMENTAL = 2

#: Bytes of the file that stay free for the next writes, and bytes that are given back in one piece.
KEPT_FREE = 16 * 2**20
_PIECE = 16 * 2**20

#: Bytes that the log may keep after it was copied into the file. A large transaction makes it larger for a while.
_MAX_LOG = 64 * 2**20


class _Pending(NamedTuple):
    """Work that waits for a transaction."""

    work: Work
    result: asyncio.Future[Any]
    #: Whether the result must survive a power cut. If not, it survives only the end of this process.
    durable: bool


class Database:
    """Runs work in transactions.

    Callers that arrive during a commit share the next transaction and its fsync, so that there can be more durable
    writes than fsyncs. All state except the connections belongs to the event loop.

    The database is lost after a failed fsync, because it is unknown what is on disk, and if its file is removed or
    replaced. Every call then raises JournalLost, and the process must end.
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
        #: Work for the next transaction.
        self._pending: list[_Pending] = []
        self._committing: asyncio.Task[None] | None = None
        self._closed = False
        self._loss: JournalLost | None = None
        self._lost = asyncio.Event()
        #: Called after each commit, with its seconds and whether it was durable.
        self.on_commit: Callable[[float, bool], object] = lambda seconds, durable: None

    async def run(self, work: Callable[[Connection], T], *, durable: bool = True) -> T:
        """Run `work` in a transaction and return its result once it is on disk; if not `durable`, once it is committed.

        Raises StorageFull or StorageFailed if nothing was written, or JournalLost.
        """
        if self._loss is not None:
            raise self._loss
        if self._closed:
            raise StorageFailed
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(work, future, durable))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        return await future

    async def look_up(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, which reads few rows. It sees all commits so far. Raises what `run` raises."""
        return await self._read(self._lookups, work, None)

    async def search(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, which may read many rows. Raises what `run` raises, and SearchTooLong."""
        return await self._read(self._searches, work, self._search_s)

    async def shrink(self) -> None:
        """Give free pages of the file back to the disk, but for KEPT_FREE bytes, in pieces between other writes."""
        while await self.run(_shrink, durable=False):
            pass

    def peek(self, query: str) -> int | None:
        """The number that `query` reads from one row. It sees all commits so far. None: not known; call `look_up`.

        It runs on the event loop and takes 6 us, a twentieth of the time of a read in a thread.
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
        """Finish the pending work, then close the connections."""
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
        while self._pending:
            batch, self._pending = self._pending, []
            began = time.perf_counter()
            commit = loop.run_in_executor(self._writes, self._commit, batch)
            await asyncio.wait([commit])
            if commit.exception() is None:
                self.on_commit(time.perf_counter() - began, any(pending.durable for pending in batch))
            if isinstance(error := commit.exception(), JournalLost):
                self._loss = error
                self._lost.set()
            _settle([pending.result for pending in batch], commit)
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

    def _commit(self, batch: list[_Pending]) -> list[Any]:
        try:
            if self._writer is None:
                self._writer = _Writer(self._path)
            durable = any(pending.durable for pending in batch)
            self._writer.check()  # before the commit, because afterwards a truncated log has grown again
            with self._writer.transaction(durable=durable) as connection:
                results = [pending.work(connection) for pending in batch]
            self._writer.check()  # after the commit, because a commit into a file that was removed keeps nothing
            return results
        except (SQLAlchemyError, OSError) as error:
            known = _storage_error(error, writing=self._writer is not None)
            if isinstance(known, JournalLost) and self._writer is not None:
                self._writer.undo()
            raise known from error

    def _dispose(self) -> None:
        if self._reader is not None:
            self._reader.dispose()
        if self._writer is not None:
            self._writer.close()


class _Writer:
    """The one connection that writes, and the files that it has open."""

    def __init__(self, path: Path) -> None:
        make_private(path.parent)
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
        # The same connection with another option. Creating this object costs as much as a small transaction.
        self._quick = self._engine.execution_options(synchronous="NORMAL")
        self._file = file_id(path)
        self._log_bytes = 0

    def transaction(self, *, durable: bool) -> Any:
        return (self._engine if durable else self._quick).begin()

    def check(self) -> None:
        """Raises JournalLost if the files on disk are no longer those that are open.

        It only calls `stat`: if it opened the files, closing the descriptors would release SQLite's locks.
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
        """Whether the log is shorter because another program has checkpointed it: then nothing is missing."""
        with closing(self._engine.raw_connection().cursor()) as cursor:
            try:
                _, frames, _ = cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.DatabaseError:
                return False
            page = cursor.execute("PRAGMA page_size").fetchone()[0]
        return bool(frames * (page + 24) <= size)

    def undo(self) -> None:
        """After a commit whose fsync failed: keep the next start from finding it, because its callers get an error.

        The commit is complete in the log, as far as the kernel knows. Without an fsync, a new commit is written over
        its beginning, which makes the rest of it invalid: each page has a checksum over those before it.
        """
        with suppress(sqlite3.Error), closing(self._engine.raw_connection().cursor()) as cursor:
            cursor.execute("PRAGMA wal_autocheckpoint = 0")
            cursor.execute("PRAGMA synchronous = OFF")
            cursor.execute("UPDATE service SET seconds = seconds")

    def close(self) -> None:
        self._engine.dispose()


def check(path: Path) -> None:
    """Check an existing database for damage by reading all of it, and migrate it. Creates it if it is missing.

    Raises JournalDamaged, StorageFull, or StorageFailed, also for a database of a newer version.
    """
    if path.exists():
        _check_integrity(path)
        _refuse_newer(path)
        _let_shrink(path)
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
        advice = f"Restore it from a backup, try `sqlite3 {path.name} .recover`, or move it away to start with none."
        raise JournalDamaged(f"The journal {path} is damaged ({' '.join(found.split())}). {advice}")


def _refuse_newer(path: Path) -> None:
    """Raises StorageFailed for a database of a newer version, before anything in it is changed."""
    with closing(sqlite3.connect(path)) as connection, suppress(sqlite3.DatabaseError):  # no table: a new database
        for (version,) in connection.execute("SELECT version_num FROM alembic_version"):
            refuse_newer(version)


def _let_shrink(path: Path) -> None:
    """Let a file of an older imagegen give free pages back. That takes a copy of it, so only if there is room."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, suppress(sqlite3.DatabaseError, OSError):
        room = shutil.disk_usage(path.parent).free > 4 * path.stat().st_size
        if room and connection.execute("PRAGMA auto_vacuum").fetchone() != (_INCREMENTAL,):
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("VACUUM")


def _shrink(connection: Connection) -> bool:
    """Give free pages of the file back, one piece of them. Returns whether there are more."""
    size = sizes(connection)
    beyond = (size.free - KEPT_FREE) // size.page
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    for _ in range(min(beyond, _PIECE // size.page)):
        driver.execute("PRAGMA incremental_vacuum(1)")  # the driver takes one step, which frees one page
    return beyond > _PIECE // size.page


class Sizes(NamedTuple):
    """Sizes of a database in bytes."""

    page: int
    #: Of the file.
    total: int
    #: What the file has that is not in use.
    free: int

    @property
    def used(self) -> int:
        return self.total - self.free


def sizes(connection: Connection) -> Sizes:
    """How large a database is. In the database's thread."""
    numbers = ("page_size", "page_count", "freelist_count")
    page, pages, free = (int(connection.exec_driver_sql(f"PRAGMA {it}").scalar_one()) for it in numbers)
    return Sizes(page, page * pages, page * free)


def _settle(futures: list[asyncio.Future[Any]], commit: asyncio.Future[list[Any]]) -> None:
    error = commit.exception()
    for i, future in enumerate(futures):
        if future.done():  # its caller was cancelled; the write is committed nevertheless
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
    """Run `work` in a transaction, so that it sees one state of the database."""
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
    # `_begin` begins the transactions: those of the driver do not include DDL and reads.
    connection.isolation_level = None
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table; later it changes nothing
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA journal_size_limit = {_MAX_LOG}")
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
