"""The journal on a real SQLite file: acknowledged writes are there after a restart, and no others."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, event, inspect

from imagegen.core.errors import FailureCode, StorageFailed, StorageFull
from imagegen.core.task import Failure, GenerationTask, InputPictures, StoredImage, TaskStatus, TaskType
from imagegen.storage import journal as journal_module
from imagegen.storage.database import check
from imagegen.storage.journal import Claim, Claimed, Retention, TaskFilter, TaskJournal
from imagegen.storage.tables import metadata
from tests.conftest import request_for
from tests.unit.conftest import MORNING, insert_one, task_id, task_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "imagegen.sqlite3"


class Lives:
    """The journal in several runs of the service, on a clock that the test sets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.now = 1000.0
        self.journal = TaskJournal(path, lambda: self.now)

    async def next(self) -> TaskJournal:
        await self.journal.close()
        self.journal = TaskJournal(self._path, lambda: self.now)
        return self.journal


@pytest.fixture
async def lives(path: Path) -> AsyncIterator[Lives]:
    begun = Lives(path)
    yield begun
    await begun.journal.close()


@pytest.fixture
def journal(lives: Lives) -> TaskJournal:
    return lives.journal


async def insert(journal: TaskJournal, *numbers: int, **changes: Any) -> list[GenerationTask]:
    return [await insert_one(journal, task_of(number, **changes)) for number in numbers]


def ids(tasks: list[GenerationTask]) -> list[str]:
    return [task.id for task in tasks]


def ended(task: GenerationTask, *, days_ago: float = 0) -> GenerationTask:
    return task.evolve(status=TaskStatus.COMPLETED, completed_at=MORNING - timedelta(days=days_ago))


# -- records -----------------------------------------------------------------------------------------------------------


async def test_a_task_returns_with_its_place_in_the_order_of_arrival(journal: TaskJournal) -> None:
    sequences = [task.sequence for task in await insert(journal, 3, 1, 2)]
    assert sequences == sorted(set(sequences))


async def test_a_place_is_never_given_twice(journal: TaskJournal) -> None:
    first, second = await insert(journal, 1, 2)
    await journal.delete([second.id])
    (third,) = await insert(journal, 3)
    assert first.sequence < second.sequence < third.sequence


async def test_every_field_of_a_record_is_kept(journal: TaskJournal) -> None:
    task = task_of(
        1,
        type=TaskType.IMAGE2IMAGE,
        request=request_for("红色圆圈\n🟥", seed=2**64 - 1, strength=0.35, guidance_scale=0.1),
        priority=-5,
        status=TaskStatus.FAILED,
        attempt=2,
        started_at=MORNING + timedelta(microseconds=1),
        completed_at=MORNING + timedelta(hours=1),
        images=(StoredImage(path="a/b.png", width=1, height=2, seed=3),),
        failure=Failure(code=FailureCode.OUT_OF_MEMORY, message="It failed."),
    )
    stored = await insert_one(journal, task)
    assert await journal.get(task.id) == stored == task.evolve(sequence=stored.sequence)


async def test_an_update_replaces_the_record_and_keeps_its_place(journal: TaskJournal) -> None:
    (task,) = await insert(journal, 1)
    await journal.update(task.evolve(status=TaskStatus.PROCESSING, attempt=1))
    found = await journal.get(task.id)
    assert found == task.evolve(status=TaskStatus.PROCESSING, attempt=1)


async def test_an_unknown_task_is_none(journal: TaskJournal) -> None:
    assert await journal.get(task_id(1)) is None
    assert await journal.pictures(task_id(1)) == InputPictures()


async def test_stored_tasks_survive_a_restart(journal: TaskJournal, lives: Lives) -> None:
    stored = [*await insert(journal, 1), await insert_one(journal, task_of(2), InputPictures(init_image=b"picture"))]
    again = await lives.next()
    assert [await again.get(task.id) for task in stored] == stored
    assert await again.pictures(task_id(2)) == InputPictures(init_image=b"picture")
    (later,) = await insert(again, 3)
    assert later.sequence > stored[-1].sequence


async def test_acknowledged_writes_are_in_the_file_at_once(journal: TaskJournal, path: Path) -> None:
    # As a killed process leaves it: nothing is closed, nothing is flushed.
    await insert(journal, 1)
    assert in_the_file(path, "SELECT id FROM tasks") == [(task_id(1),)]


NORMAL, FULL = 1, 2


async def test_acceptances_and_ends_are_flushed_to_the_disk(journal: TaskJournal) -> None:
    await journal.count()
    with flushing() as levels:
        (task,) = await insert(journal, 1)
        await journal.update(task.evolve(status=TaskStatus.PROCESSING, attempt=1))
        await journal.update(ended(task))
    assert levels == [FULL, NORMAL, FULL]


async def test_a_beginning_that_shares_its_commit_with_an_end_is_flushed_as_well(journal: TaskJournal) -> None:
    one, two, three = await insert(journal, 1, 2, 3)
    begun = [task.evolve(status=TaskStatus.PROCESSING, attempt=1) for task in (one, two)]
    with flushing() as levels:
        await asyncio.gather(journal.update(begun[0]), journal.update(begun[1]), journal.update(ended(three)))
    assert levels == [FULL]


@contextmanager
def flushing() -> Iterator[list[Any]]:
    """The `synchronous` level of each commit."""
    levels: list[Any] = []

    def note(connection: Connection) -> None:
        levels.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())

    with watching("commit", note):
        yield levels


# -- what an earlier run left ------------------------------------------------------------------------------------------


async def test_unfinished_tasks_are_found_in_order_of_arrival(journal: TaskJournal, lives: Lives) -> None:
    first, second, third, fourth = await insert(journal, 9, 4, 7, 1)
    await journal.update(first.evolve(status=TaskStatus.PROCESSING, attempt=1))
    await journal.update(ended(second))
    again = await lives.next()
    assert ids(await again.unfinished()) == ids([first, third, fourth])


@pytest.mark.parametrize("status", [TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED])
async def test_ended_tasks_are_not_unfinished(journal: TaskJournal, status: TaskStatus) -> None:
    (task,) = await insert(journal, 1)
    await journal.update(task.evolve(status=status))
    assert await journal.unfinished() == []


# -- input images ------------------------------------------------------------------------------------------------------


async def test_an_input_image_is_kept_while_it_may_be_needed(journal: TaskJournal) -> None:
    task = await insert_one(journal, task_of(1), InputPictures(init_image=bytes(range(256))))
    await journal.update(task.evolve(status=TaskStatus.PROCESSING, attempt=1))
    assert await journal.pictures(task.id) == InputPictures(init_image=bytes(range(256)))


async def test_an_input_image_stays_with_what_can_be_made_again(journal: TaskJournal) -> None:
    pictures = InputPictures(init_image=b"picture", mask_image=b"mask")
    task = await insert_one(journal, task_of(1), pictures)
    await journal.update(task.evolve(status=TaskStatus.COMPLETED))
    assert await journal.pictures(task.id) == pictures


@pytest.mark.parametrize("status", [TaskStatus.FAILED, TaskStatus.CANCELLED])
async def test_an_input_image_is_deleted_with_a_task_that_fails_or_is_cancelled(
    journal: TaskJournal, status: TaskStatus
) -> None:
    task, other = (
        await insert_one(journal, task_of(1), InputPictures(init_image=b"picture")),
        await insert_one(journal, task_of(2), InputPictures(init_image=b"other")),
    )
    await journal.update(task.evolve(status=status))
    assert await journal.pictures(task.id) == InputPictures()
    assert await journal.pictures(other.id) == InputPictures(init_image=b"other")


async def test_an_input_image_is_deleted_with_its_task(journal: TaskJournal, path: Path) -> None:
    await insert_one(journal, task_of(1), InputPictures(init_image=b"picture"))
    await journal.delete([task_id(1)])
    assert in_the_file(path, "SELECT * FROM inputs") == []


async def test_the_prompt_of_a_deleted_task_is_nowhere_in_the_journal(journal: TaskJournal, path: Path) -> None:
    await insert(journal, 1, 2)
    await journal.delete([task_id(1)])
    assert len(in_the_file(path, "SELECT prompt FROM prompts")) == 1
    await journal.delete([task_id(2)])
    assert in_the_file(path, "SELECT prompt FROM prompts") == []


# -- pages -------------------------------------------------------------------------------------------------------------


async def test_a_page_holds_the_newest_first_and_counts_all(journal: TaskJournal) -> None:
    await insert(journal, 1, 2, 3, 4, 5)
    page = await journal.page(TaskFilter(), 2)
    assert ids(page.tasks) == [task_id(5), task_id(4)]
    assert (page.total, page.filtered) == (5, 5)


async def test_a_filtered_page_counts_what_matches_beside_what_there_is(journal: TaskJournal) -> None:
    for task in await insert(journal, 1, 2, 3):
        await journal.update(ended(task))
    await insert(journal, 4, 5)
    page = await journal.page(TaskFilter(TaskStatus.COMPLETED), 2)
    assert ids(page.tasks) == [task_id(3), task_id(2)]
    assert (page.total, page.filtered) == (5, 3)


async def test_a_page_continues_after_the_one_before(journal: TaskJournal) -> None:
    for number in range(6):
        await insert(journal, number, model="ab"[number % 2])
    first = await journal.page(TaskFilter(model="b"), 2)
    assert (ids(first.tasks), first.more) == ([task_id(5), task_id(3)], True)
    await insert(journal, 7, model="b")  # what comes meanwhile shifts nothing
    second = await journal.page(TaskFilter(model="b"), 2, before=first.tasks[-1].sequence)
    assert (ids(second.tasks), second.more, second.filtered) == ([task_id(1)], False, 4)


async def test_an_empty_page_is_a_page(journal: TaskJournal) -> None:
    assert await journal.page(TaskFilter(TaskStatus.FAILED), 10) == ([], 0, 0, False)
    assert await journal.count() == 0


# -- retention ---------------------------------------------------------------------------------------------------------


DAY = 86_400
KEEP_A_WEEK = Retention(age_s=7 * DAY)


async def test_expired_tasks_are_found_oldest_first(journal: TaskJournal, lives: Lives) -> None:
    first, second, third, _ = await insert(journal, 1, 2, 3, 4)
    for task, days in ((second, 1), (first, 1), (third, 3)):
        await journal.update(ended(task))
        lives.now += days * DAY
    assert await journal.surplus(KEEP_A_WEEK) == []
    lives.now += 3.5 * DAY
    assert ids(await journal.surplus(KEEP_A_WEEK)) == ids([second, first])


@pytest.mark.parametrize("jump_days", [-3, 30])
async def test_a_wall_clock_that_jumps_makes_nothing_old(journal: TaskJournal, lives: Lives, jump_days: float) -> None:
    (task,) = await insert(journal, 1)
    await journal.update(ended(task, days_ago=jump_days))
    assert await journal.surplus(KEEP_A_WEEK) == []
    assert await (await lives.next()).surplus(KEEP_A_WEEK) == []


async def test_the_age_of_tasks_continues_after_a_restart(journal: TaskJournal, lives: Lives) -> None:
    (task,) = await insert(journal, 1)
    await journal.update(ended(task))
    lives.now += 5 * DAY
    assert await journal.surplus(KEEP_A_WEEK) == []
    again = await lives.next()
    lives.now += 3 * DAY
    assert ids(await again.surplus(KEEP_A_WEEK)) == [task.id]


async def test_without_limits_everything_stays(journal: TaskJournal, lives: Lives) -> None:
    (task,) = await insert(journal, 1)
    await journal.update(ended(task))
    lives.now += 1000 * DAY
    assert await journal.surplus(Retention()) == []


async def test_beyond_a_number_the_oldest_go(journal: TaskJournal, lives: Lives) -> None:
    for task in await insert(journal, 1, 2, 3, 4):
        await journal.update(ended(task))
        lives.now += 1
    await insert(journal, 5)
    assert await journal.surplus(Retention(tasks=4)) == []
    assert ids(await journal.surplus(Retention(tasks=2))) == [task_id(1), task_id(2)]


async def test_above_the_size_limit_the_oldest_files_are_deleted_and_tasks_without_files_stay(
    journal: TaskJournal, lives: Lives
) -> None:
    for task, size in zip(await insert(journal, 1, 2, 3, 4), (100, 0, 300, 50), strict=True):
        image = StoredImage(path="a/b.png", width=1, height=2, seed=3, bytes=size)
        await journal.update(ended(task).evolve(images=(image,) if size else ()))
        lives.now += 1
    assert await journal.surplus(Retention(size=450)) == []
    assert ids(await journal.surplus(Retention(size=449))) == [task_id(1)]
    assert ids(await journal.surplus(Retention(size=100))) == [task_id(1), task_id(3)]


async def test_of_the_idempotency_keys_of_each_owner_the_newest_are_kept(
    journal: TaskJournal, lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MOST_KEYS", 2)
    for number in range(1, 6):
        owner = "bob" if number == 1 else "alice"
        await journal.insert(task_of(number), InputPictures(), Claim(key=str(number), digest="d" * 64, owner=owner))
        lives.now += 1
    await journal.tidy()
    kept = [await journal.claimed(str(number), "bob" if number == 1 else "alice") for number in range(1, 6)]
    assert [claimed is not None for claimed in kept] == [True, False, False, True, True]


async def test_deleted_tasks_are_forgotten(journal: TaskJournal) -> None:
    await insert(journal, 1, 2, 3)
    await journal.delete([task_id(1), task_id(3), task_id(99)])
    assert ids((await journal.page(TaskFilter(), 10)).tasks) == [task_id(2)]


# -- transactions ------------------------------------------------------------------------------------------------------


@contextmanager
def watching(name: str, listener: Callable[..., Any]) -> Iterator[None]:
    """Listen to an event of every SQLAlchemy engine."""
    event.listen(Engine, name, listener)
    try:
        yield
    finally:
        event.remove(Engine, name, listener)


async def test_concurrent_inserts_share_transactions(journal: TaskJournal) -> None:
    await journal.count()
    commits: list[Connection] = []
    with watching("commit", commits.append):
        stored = await asyncio.gather(*(insert_one(journal, task_of(number)) for number in range(100)))
    assert [task.sequence for task in stored] == list(range(1, 101))
    assert 1 <= len(commits) <= 3


async def test_calls_that_come_one_after_the_other_commit_one_by_one(journal: TaskJournal) -> None:
    await journal.count()
    commits: list[Connection] = []
    with watching("commit", commits.append):
        await insert(journal, 1, 2, 3)
    assert len(commits) == 3


async def test_a_caller_that_disconnects_affects_no_other_caller(journal: TaskJournal) -> None:
    await journal.count()
    calls = [asyncio.create_task(insert_one(journal, task_of(number))) for number in range(3)]
    await asyncio.sleep(0)
    calls[1].cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in done] == [GenerationTask, asyncio.CancelledError, GenerationTask]
    assert await journal.count() == 3


async def test_closing_waits_for_queued_calls(journal: TaskJournal, lives: Lives) -> None:
    inserting = asyncio.create_task(insert_one(journal, task_of(1)))
    await asyncio.sleep(0)
    again = await lives.next()
    assert (await inserting).id == task_id(1)
    assert await again.count() == 1


async def test_a_journal_that_was_never_used_can_be_closed(tmp_path: Path) -> None:
    await TaskJournal(tmp_path / "a.sqlite3").close()


# -- failing disks -----------------------------------------------------------------------------------------------------


def only_pages(number: int) -> Callable[[sqlite3.Connection, object], None]:
    """A disk with this many pages of 4 KiB."""

    def limit(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {number}")

    return limit


async def test_a_full_disk_acknowledges_nothing_and_loses_nothing(journal: TaskJournal, path: Path) -> None:
    with watching("connect", only_pages(40)):
        await insert(journal, 1)
        with pytest.raises(StorageFull):
            await insert_one(journal, task_of(2), InputPictures(init_image=bytes(200_000)))
    assert await journal.get(task_id(2)) is None
    assert ids(await journal.unfinished()) == [task_id(1)]
    await insert(journal, 3)
    assert in_the_file(path, "SELECT id FROM tasks ORDER BY sequence") == [(task_id(1),), (task_id(3),)]


async def test_all_writes_of_a_transaction_share_its_failure(journal: TaskJournal) -> None:
    with watching("connect", only_pages(40)):
        await journal.count()
        outcomes = await asyncio.gather(
            insert_one(journal, task_of(1)),
            insert_one(journal, task_of(2), InputPictures(init_image=bytes(200_000))),
            return_exceptions=True,
        )
    acknowledged = [outcome.id for outcome in outcomes if isinstance(outcome, GenerationTask)]
    assert StorageFull in map(type, outcomes)
    assert ids(await journal.unfinished()) == acknowledged


async def test_a_task_that_is_stored_twice_is_a_failure(journal: TaskJournal) -> None:
    await insert(journal, 1)
    with pytest.raises(StorageFailed):
        await insert(journal, 1)
    assert await journal.count() == 1


async def test_words_of_a_prompt_do_not_make_a_disk_full(journal: TaskJournal) -> None:
    await insert(journal, 1)
    with pytest.raises(StorageFailed):
        await insert(journal, 1, request=request_for("a sign that says 'disk is full'"))


def spoil(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is no database " * 500)
    return path


def block(path: Path) -> Path:
    path.parent.write_bytes(b"a file where the folder should be")
    return path


def shadow(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("breaking", [spoil, block, shadow])
async def test_a_place_that_holds_no_journal_is_a_failed_disk(path: Path, breaking: Callable[[Path], Path]) -> None:
    journal = TaskJournal(breaking(path))
    try:
        for _ in range(2):
            with pytest.raises(StorageFailed) as raised:
                await insert_one(journal, task_of(1))
            assert str(path) not in raised.value.detail
    finally:
        await journal.close()


async def test_a_disk_that_recovers_is_used_again(path: Path) -> None:
    journal = TaskJournal(spoil(path))
    with pytest.raises(StorageFailed):
        await journal.count()
    mend(path)
    assert await journal.count() == 0
    await journal.close()


def mend(path: Path) -> None:
    path.unlink()


# -- migrations --------------------------------------------------------------------------------------------------------


def in_the_file(path: Path, query: str) -> list[Any]:
    """The rows that another process reads."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


async def test_the_migrations_make_the_schema(journal: TaskJournal, path: Path) -> None:
    await journal.count()
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        opts = {"compare_type": True, "include_name": lambda name, *_: not str(name).startswith("prompts")}
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, metadata) == []  # which knows no virtual tables
    engine.dispose()


async def test_the_migrations_make_the_very_tables_that_the_schema_would(journal: TaskJournal, path: Path) -> None:
    # What a comparison by alembic does not see: AUTOINCREMENT and ON DELETE CASCADE.
    await journal.count()
    direct = path.with_name("direct.sqlite3")
    for database in (path, direct):
        engine = create_engine(f"sqlite:///{database}")
        metadata.create_all(engine)
        assert inspect(engine).get_foreign_keys("inputs")[0]["options"] == {"ondelete": "CASCADE"}
        engine.dispose()
    statements = [
        {
            name: " ".join(sql.split())
            for name, sql in in_the_file(database, "SELECT name, sql FROM sqlite_master")
            if sql and not name.startswith("prompts")
        }
        for database in (path, direct)
    ]
    assert "AUTOINCREMENT" in statements[0]["tasks"]
    assert {name: sql for name, sql in statements[0].items() if name != "alembic_version"} == statements[1]


async def test_opening_again_migrates_nothing_and_loses_nothing(journal: TaskJournal, lives: Lives, path: Path) -> None:
    await insert(journal, 1)
    before = in_the_file(path, "SELECT name, sql FROM sqlite_master")
    again = await lives.next()
    assert await again.count() == 1
    assert in_the_file(path, "SELECT name, sql FROM sqlite_master") == before


async def test_a_journal_of_before_is_listed_by_model_and_its_tasks_are_kept_for_the_full_time(
    journal: TaskJournal, lives: Lives, path: Path
) -> None:
    first, _ = await insert(journal, 1, 2)
    await journal.update(ended(first, days_ago=100))
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """DROP TABLE keys; DROP TABLE prompts; DROP TABLE deliveries;
            DROP TABLE api_keys; DROP TABLE spent; DROP TABLE reserved; DROP INDEX ix_tasks_queued;
            DROP INDEX ix_tasks_owner; ALTER TABLE tasks DROP COLUMN owner;
            DROP INDEX ix_tasks_model; DROP INDEX ix_tasks_ended_s; DROP TABLE service;
            ALTER TABLE tasks DROP COLUMN model; ALTER TABLE tasks DROP COLUMN stored_bytes;
            ALTER TABLE tasks DROP COLUMN journal_bytes; ALTER TABLE tasks DROP COLUMN input_bytes;
            ALTER TABLE tasks DROP COLUMN ended_s; CREATE INDEX ix_tasks_completed_at ON tasks (completed_at);
            UPDATE alembic_version SET version_num = '0002';"""
        )
    again = await lives.next()
    assert (await again.page(TaskFilter(model="fake"), 10)).filtered == 2
    assert (await again.page(TaskFilter(text="red circle"), 10)).filtered == 2
    assert await again.surplus(KEEP_A_WEEK) == []
    lives.now += 8 * DAY
    assert ids(await again.surplus(KEEP_A_WEEK)) == [task_id(1)]


async def test_a_journal_of_before_opens_with_tasks_that_have_no_trace(
    journal: TaskJournal, lives: Lives, path: Path
) -> None:
    await insert(journal, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """UPDATE tasks SET record = json_remove(record, '$.traceparent');
            UPDATE alembic_version SET version_num = '0009';"""
        )
    again = await lives.next()
    (task,) = await again.unfinished()
    assert task.traceparent == ""
    traced = task.evolve(traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    await again.update(traced)
    assert await (await lives.next()).get(task.id) == traced


async def test_a_journal_of_before_tells_input_pictures_from_pictures_and_gives_space_back(tmp_path: Path) -> None:
    path, picture = tmp_path / "imagegen.sqlite3", InputPictures(init_image=bytes(5000), mask_image=bytes(100))
    journal = TaskJournal(path)
    image = StoredImage(path="a/b.png", width=1, height=2, seed=3, bytes=700)
    for number in (1, 2):
        task = await insert_one(journal, task_of(number, input_bytes=5100), picture if number == 1 else None)
        await journal.update(ended(task.evolve(images=(image,), input_bytes=5100 if number == 1 else 0)))
    await journal.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(
            """DROP INDEX ix_tasks_ended_s; CREATE INDEX ix_tasks_ended_s ON tasks (ended_s, stored_bytes);
            UPDATE tasks SET stored_bytes = stored_bytes + input_bytes;
            ALTER TABLE tasks DROP COLUMN journal_bytes; ALTER TABLE tasks DROP COLUMN input_bytes;
            UPDATE alembic_version SET version_num = '0008';
            PRAGMA journal_mode = DELETE; PRAGMA auto_vacuum = NONE; VACUUM;"""
        )
    check(path)
    assert in_the_file(path, "SELECT stored_bytes, input_bytes FROM tasks") == [(700, 5100), (700, 0)]
    assert in_the_file(path, "SELECT min(journal_bytes) > 500 FROM tasks") == [(1,)]
    assert in_the_file(path, "PRAGMA auto_vacuum") == [(2,)]


async def test_a_journal_without_owners_keeps_its_tasks_and_their_keys(
    journal: TaskJournal, lives: Lives, path: Path
) -> None:
    claim = Claim(key="k", digest="d" * 64)
    await journal.insert(task_of(1), InputPictures(), claim)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """DROP TABLE api_keys; DROP TABLE spent; DROP TABLE reserved; DROP INDEX ix_tasks_queued;
            ALTER TABLE deliveries DROP COLUMN owner; ALTER TABLE service DROP COLUMN url_secret;
            ALTER TABLE service DROP COLUMN key_changes;
            DROP INDEX ix_tasks_owner; ALTER TABLE tasks DROP COLUMN owner;
            DROP INDEX ix_tasks_ended_s; CREATE INDEX ix_tasks_ended_s ON tasks (ended_s, stored_bytes);
            ALTER TABLE tasks DROP COLUMN journal_bytes; ALTER TABLE tasks DROP COLUMN input_bytes;
            CREATE TABLE before (key VARCHAR(255) NOT NULL, digest VARCHAR(64) NOT NULL, task_id VARCHAR(36) NOT NULL,
                made_s FLOAT NOT NULL, PRIMARY KEY (key));
            INSERT INTO before SELECT key, digest, task_id, made_s FROM keys; DROP TABLE keys;
            ALTER TABLE before RENAME TO keys; CREATE INDEX ix_keys_made_s ON keys (made_s);
            UPDATE tasks SET record = json_remove(record, '$.owner');
            ALTER TABLE service DROP COLUMN event_ids;
            UPDATE alembic_version SET version_num = '0005';"""
        )
    again = await lives.next()
    assert await again.claimed("k") == Claimed(task_id(1), claim.digest)
    (found,) = (await again.page(TaskFilter(owner=""), 10)).tasks
    assert (found.id, found.owner) == (task_id(1), "")


async def test_event_ids_grow_over_restarts_also_if_the_clock_is_set_back(lives: Lives) -> None:
    first = await lives.journal.reserve_event_ids(1_000)
    assert first == 1_000
    second = await (await lives.next()).reserve_event_ids(10)
    assert second > first + 10**6
    third = await (await lives.next()).reserve_event_ids(2**50)
    assert third == 2**50


async def test_tasks_that_retention_cannot_remove_are_left_out(journal: TaskJournal) -> None:
    tasks = await insert(journal, 1, 2, 3)
    await journal.update(*map(ended, tasks))
    kept = Retention(tasks=1)
    assert ids(await journal.surplus(kept)) == [task_id(1), task_id(2)]
    assert ids(await journal.surplus(kept, without={task_id(1)})) == [task_id(2)]
    assert ids(await journal.surplus(kept, without={task_id(1), task_id(2)})) == []


# -- owners ------------------------------------------------------------------------------------------------------------


async def test_tasks_are_listed_by_owner(journal: TaskJournal) -> None:
    for number, owner in ((1, "alice"), (2, "bob"), (3, "alice"), (4, "")):
        await insert_one(journal, task_of(number, owner=owner))
    assert ids((await journal.page(TaskFilter(owner="alice"), 10)).tasks) == [task_id(3), task_id(1)]
    assert (await journal.page(TaskFilter(owner=""), 10)).filtered == 1
    assert (await journal.page(TaskFilter(), 10)).filtered == 4


async def test_two_owners_may_use_the_same_key(journal: TaskJournal) -> None:
    claims = {owner: Claim(key="k", digest="d" * 64, owner=owner) for owner in ("", "alice", "bob")}
    for number, (owner, claim) in enumerate(claims.items()):
        stored = await journal.insert(task_of(number, owner=owner), InputPictures(), claim)
        assert isinstance(stored, GenerationTask)
    for number, (owner, claim) in enumerate(claims.items()):
        repeated = await journal.insert(task_of(9, owner=owner), InputPictures(), claim)
        assert repeated == await journal.claimed("k", owner) == Claimed(task_id(number), claim.digest)
