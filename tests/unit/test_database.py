"""The connections of the journal: reads that block no write, and files that are removed while the service runs."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from imagegen.core.errors import JournalLost, SearchTooLong, StorageFailed
from imagegen.storage.database import Database, check
from imagegen.storage.journal import TaskJournal
from tests.unit.conftest import task_id

FOREVER = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
WRITE = text("UPDATE service SET seconds = seconds + 1")
READ = text("SELECT seconds FROM service")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "imagegen.sqlite3"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    database = Database(path, search_s=0.01)
    await database.run(write)
    yield database
    await database.close()


def write(connection: Connection) -> None:
    connection.execute(WRITE)


def read(connection: Connection) -> float:
    return float(connection.execute(READ).scalar_one())


# -- reads -------------------------------------------------------------------------------------------------------------


async def test_each_commit_is_told_with_its_time(database: Database) -> None:
    told = list[tuple[float, bool]]()
    database.on_commit = lambda seconds, durable: told.append((seconds, durable))
    await asyncio.gather(*(database.run(lambda connection: None, durable=it) for it in (False, True)))
    await database.run(lambda connection: None, durable=False)
    with pytest.raises(StorageFailed):
        await database.run(lambda connection: connection.exec_driver_sql("nonsense"))
    assert [durable for _, durable in told] == [True, False]
    assert all(seconds > 0 for seconds, _ in told)


async def test_a_read_sees_every_commit_so_far(database: Database) -> None:
    for number in range(2, 5):
        await database.run(write, durable=False)
        assert await database.look_up(read) == await database.search(read) == number


async def test_the_first_read_creates_the_tables(path: Path) -> None:
    database = Database(path)
    assert await database.look_up(read) == 0
    await database.close()


async def test_writes_and_lookups_go_on_while_searches_run(database: Database) -> None:
    begun, gate = threading.Semaphore(0), threading.Event()

    def search(connection: Connection) -> float:
        seconds = read(connection)
        begun.release()
        gate.wait()
        return seconds

    searches = [asyncio.create_task(database.search(search)) for _ in range(5)]
    await asyncio.to_thread(begun.acquire)
    await asyncio.to_thread(begun.acquire)
    await database.run(write)
    assert await database.look_up(read) == 2
    assert not any(search.done() for search in searches)
    gate.set()
    # The first two read the state at their beginning.
    assert await asyncio.gather(*searches) == [1, 1, 2, 2, 2]


async def test_a_search_has_a_time_limit_and_the_next_one_is_fine(database: Database) -> None:
    for _ in range(3):
        with pytest.raises(SearchTooLong):
            await database.search(lambda connection: connection.execute(FOREVER).all())
    assert await database.search(read) == 1


async def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(StorageFailed):
        await database.look_up(write)
    assert await database.look_up(read) == 1


# -- files that vanish -------------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def remove_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def move_the_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def replace_by_a_copy(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def remove_the_log(path: Path) -> None:
    path.with_name(path.name + "-wal").unlink()


def truncate_the_log(path: Path) -> None:
    os.truncate(path.with_name(path.name + "-wal"), 0)


LOSSES = [remove, remove_the_folder, move_the_folder, replace_by_a_copy, remove_the_log, truncate_the_log]


@pytest.mark.parametrize("lose", LOSSES)
async def test_nothing_is_acknowledged_once_a_file_is_not_the_one_that_is_open(
    database: Database, path: Path, lose: Callable[[Path], None]
) -> None:
    waiting = asyncio.create_task(database.until_lost())
    lose(path)
    with pytest.raises(JournalLost) as lost:
        await database.run(write)
    assert path.name in lost.value.detail
    assert (await waiting) is lost.value
    for again in (database.run(write), database.look_up(read), database.search(read)):
        with pytest.raises(JournalLost):
            await again


async def test_other_programs_may_read_checkpoint_and_copy_the_journal(database: Database, path: Path) -> None:
    for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE"):
        await database.run(write)
        with closing(sqlite3.connect(path)) as other:
            other.execute(READ.text).fetchall()
            assert other.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()[0] == 0
            with closing(sqlite3.connect(path.with_name(mode))) as copy:
                other.backup(copy)
        await database.run(write)
    assert await database.look_up(read) == 9


async def test_after_a_failed_write_the_content_of_the_disk_is_unknown(database: Database) -> None:
    def fail(connection: Connection) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC"
        raise OperationalError("COMMIT", None, error)

    with pytest.raises(JournalLost, match="SQLITE_IOERR_FSYNC"):
        await database.run(fail)
    with pytest.raises(JournalLost):
        await database.run(write)


async def test_what_a_failed_fsync_refused_is_not_found_by_the_next_start(path: Path) -> None:
    command = [sys.executable, "-m", "tests.failing_fsync", str(path)]
    done = await asyncio.to_thread(lambda: subprocess.run(command, capture_output=True, text=True, check=False))
    assert done.returncode == 74, done.stderr
    assert "SQLITE_IOERR_FSYNC" in done.stdout
    journal = TaskJournal(path)
    assert [task.id for task in await journal.unfinished()] == [task_id(1)]
    await journal.close()


async def test_the_journal_of_a_newer_version_is_left_as_it_is(path: Path) -> None:
    """Also one that an older version would compact: with free pages, and without incremental vacuum."""
    check(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as newer:
        newer.execute("PRAGMA auto_vacuum = NONE")
        newer.execute("VACUUM")
        newer.execute("CREATE TABLE new (x)")
        newer.execute("INSERT INTO new SELECT zeroblob(100000)")
        newer.execute("DELETE FROM new")
        newer.execute("UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(StorageFailed, match="written by a newer imagegen, and was not changed"):
        check(path)
    another = Database(path)
    with pytest.raises(StorageFailed, match="newer imagegen"):
        await another.run(write)
    await another.close()
    assert path.read_bytes() == before
    assert {it.name for it in path.parent.iterdir()} <= {path.name, f"{path.name}-wal", f"{path.name}-shm"}
