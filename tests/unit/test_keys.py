"""API keys: their texts, and the store that the service and the command line share."""

import asyncio
import hmac
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from imagegen.core.errors import InvalidRequest, KeyExists, KeyNotFound
from imagegen.core.keys import Key, KeyLimits, Scope, digest_of, new_key_text, prefix_of
from imagegen.core.owner import owner_of
from imagegen.storage import keys as keys_module
from imagegen.storage.database import Database
from imagegen.storage.keys import KeyStore

NOW = datetime(2026, 11, 28, 9, tzinfo=UTC)


def key_of(text: str, name: str = "alice", **fields: Any) -> Key:
    given: dict[str, Any] = {"scopes": (Scope.GENERATE,), "created_at": NOW} | fields
    return Key(name=name, prefix=prefix_of(text), sha256=digest_of(text), **given)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "imagegen.sqlite3"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[KeyStore]:
    database = Database(path)
    await database.run(lambda connection: None)
    yield KeyStore(database)
    await database.close()


def test_a_text_is_marked_and_random_and_only_its_beginning_is_kept() -> None:
    texts = {new_key_text() for _ in range(100)}
    assert len(texts) == 100
    for text in texts:
        assert text.startswith("ig_")
        assert len(text) == 46
        assert text[3:].isalnum()
        key = key_of(text)
        assert key.prefix == text[:11]
        assert text[11:] not in repr(key) + key.model_dump_json()
        assert key.sha256 not in repr(key)


async def test_a_key_is_found_by_its_text_only(store: KeyStore) -> None:
    text = new_key_text()
    limits = KeyLimits(queued=3, rate_per_minute=60)
    key = key_of(text, models=("a", "b"), priority_floor=5, limits=limits, expires_at=NOW)
    assert not await store.exist()
    await store.create(key)
    assert await store.exist()
    assert await store.find(text) == key
    for other in (text[:-1], text + "x", text[:11], new_key_text(), ""):
        assert await store.find(other) is None


async def test_texts_are_compared_in_constant_time(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    text, compared, really = new_key_text(), [], hmac.compare_digest
    await store.create(key_of(text))

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return really(one, other)

    monkeypatch.setattr("imagegen.storage.keys.hmac.compare_digest", compare)
    wrong = text[:11] + new_key_text()[11:]
    assert await store.find(wrong) is None
    assert compared == [(digest_of(text), digest_of(wrong))]


async def test_no_text_reaches_the_disk(store: KeyStore, path: Path) -> None:
    text = new_key_text()
    await store.create(key_of(text))
    files = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert text[:11].encode() in files
    assert text[11:].encode() not in files


async def test_a_name_is_taken_once_also_after_its_key_was_revoked(store: KeyStore) -> None:
    await store.create(key_of(new_key_text()))
    with pytest.raises(KeyExists):
        await store.create(key_of(new_key_text()))
    assert (await store.revoke("alice")).revoked_at is not None
    with pytest.raises(KeyExists):
        await store.create(key_of(new_key_text()))
    assert await store.exist()


async def test_a_refused_key_undoes_nothing_of_its_neighbours(store: KeyStore) -> None:
    await store.create(key_of(new_key_text(), "a"))
    made = await asyncio.gather(*(store.create(key_of(new_key_text(), it)) for it in "bac"), return_exceptions=True)
    assert [type(it) for it in made] == [type(None), KeyExists, type(None)]
    assert [key.name for key in await store.all()] == ["a", "b", "c"]


async def test_a_rotated_key_has_another_text_and_is_valid_again(store: KeyStore) -> None:
    old = new_key_text()
    await store.create(key_of(old))
    await store.revoke("alice")
    key, new = await store.rotate("alice")
    assert await store.find(old) is None
    assert await store.find(new) == key
    assert key.is_valid(NOW)


async def test_unknown_names_are_refused(store: KeyStore) -> None:
    for ask in (store.get("bob"), store.revoke("bob"), store.rotate("bob")):
        with pytest.raises(KeyNotFound):
            await ask


async def test_the_number_of_keys_is_limited(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "MAX_KEYS", 1)
    await store.create(key_of(new_key_text(), "a"))
    with pytest.raises(InvalidRequest):
        await store.create(key_of(new_key_text(), "b"))


async def test_another_process_changes_keys_at_once(store: KeyStore, path: Path) -> None:
    other = Database(path)
    there = KeyStore(other)
    assert not await store.exist()
    text = new_key_text()
    await there.create(key_of(text))
    assert await store.exist()
    assert (await store.find(text)) == key_of(text)
    await there.revoke("alice")
    found = await store.find(text)
    assert found is not None
    assert not found.is_valid(NOW)
    _, new = await there.rotate("alice")
    assert await store.find(text) is None
    assert await store.find(new) is not None
    await other.close()


async def test_a_key_that_did_not_change_is_read_once(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    text, reads = new_key_text(), []
    await store.create(key_of(text))
    look_up = Database.look_up

    async def counted(database: Database, work: Any) -> Any:
        reads.append(work)
        return await look_up(database, work)

    monkeypatch.setattr(Database, "look_up", counted)
    for _ in range(3):
        assert await store.find(text) is not None
        assert await store.exist()
        await store.used("alice", NOW)  # is no change
    assert len(reads) <= 3  # the first one opens the reader, and only then changes can be seen


async def test_a_read_that_a_change_overtakes_is_not_kept(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    text = new_key_text()
    await store.create(key_of(text))
    assert await store.exist()
    look_up = Database.look_up

    async def slow(database: Database, work: Any) -> Any:
        row = await look_up(database, work)
        monkeypatch.setattr(Database, "look_up", look_up)
        await store.rotate("alice")
        assert await store.find(text) is None
        return row

    monkeypatch.setattr(Database, "look_up", slow)
    assert await store.find(text) is not None  # it was valid when it was read
    assert await store.find(text) is None


async def test_the_latest_use_is_kept(store: KeyStore) -> None:
    await store.create(key_of(new_key_text()))
    await store.used("alice", NOW)
    assert (await store.get("alice")).last_used_at == NOW


async def test_the_secret_of_urls_stays_the_same(store: KeyStore) -> None:
    secret = await store.url_secret()
    assert len(secret) == 32
    assert await store.url_secret() == secret


def test_a_key_is_valid_until_it_expires_or_is_revoked() -> None:
    key = key_of(new_key_text(), expires_at=NOW)
    assert key.is_valid(NOW - timedelta(seconds=1))
    assert not key.is_valid(NOW)
    assert not key.evolve(expires_at=None, revoked_at=NOW).is_valid(NOW)


@pytest.mark.parametrize(
    ("scope", "sees_all", "changes_all"),
    [(Scope.GENERATE, False, False), (Scope.READ, True, False), (Scope.ADMIN, True, True)],
)
def test_scopes_decide_whose_tasks_a_caller_sees_and_changes(scope: Scope, sees_all: bool, changes_all: bool) -> None:
    owner = owner_of(key_of(new_key_text(), scopes=(scope,)))
    assert (owner.name, owner.sees_all, owner.changes_all) == ("alice", sees_all, changes_all)
    assert owner.may_see("alice")
    assert owner.may_change("alice")
    assert (owner.may_see("bob"), owner.may_change("bob")) == (sees_all, changes_all)
