"""What the service demands before it starts on an address that other machines reach."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from imagegen.core.errors import KeysFileInvalid, NotProtected
from imagegen.core.keys import Scope, new_key
from imagegen.server import protect
from imagegen.settings import Settings
from imagegen.storage.database import Database
from imagegen.storage.keys import KeyStore

EVERYWHERE = "0.0.0.0"

Work = Callable[[KeyStore], Awaitable[Any]]


async def in_store(settings: Settings, work: Work) -> Any:
    database = Database(settings.journal_path)
    try:
        return await work(KeyStore(database))
    finally:
        await database.close()


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    return lambda **fields: Settings(data_dir=tmp_path, **fields)


@pytest.mark.parametrize("host", [EVERYWHERE, "::", "192.168.1.5", "example.com"])
async def test_without_a_key_only_local_addresses_are_served(settings: Callable[..., Settings], host: str) -> None:
    with pytest.raises(NotProtected, match="keys create NAME"):
        await protect(settings(host=host))
    assert await protect(settings(host=host, insecure=True)) is None
    assert await protect(settings(host="127.0.0.1")) is None


async def test_with_a_key_every_address_is_served(settings: Callable[..., Settings], tmp_path: Path) -> None:
    key, text = new_key("alice", (Scope.GENERATE,))
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{name: alice, key: {text}}}]")
    assert await protect(settings(host=EVERYWHERE, keys_file=file)) is None
    await in_store(settings(), lambda store: store.create(key))
    assert await protect(settings(host=EVERYWHERE)) is None
    await in_store(settings(), lambda store: store.revoke("alice"))
    assert await protect(settings(host=EVERYWHERE)) is None  # no request has a valid key, so none is let in


async def test_a_name_in_the_file_and_in_the_journal_ends_the_start(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    (key, _), text = new_key("alice", (Scope.GENERATE,)), new_key("alice", (Scope.GENERATE,))[1]
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{name: alice, key: {text}}}, {{name: bob, sha256: {'a' * 64}}}]")
    await in_store(settings(), lambda store: store.create(key))
    for _ in range(2):
        with pytest.raises(KeysFileInvalid, match="'alice': the journal has, or had, a key of this name"):
            await protect(settings(keys_file=file))
        await in_store(settings(), lambda store: store.revoke("alice"))  # which changes nothing


async def test_the_first_start_makes_a_key_once(settings: Callable[..., Settings]) -> None:
    container = settings(host=EVERYWHERE, first_key="admin")
    text = await protect(container)
    assert text is not None
    found = await in_store(container, lambda store: store.find(text))
    assert (found.name, set(found.scopes)) == ("admin", set(Scope))
    assert await protect(container) is None
    assert len(await in_store(container, lambda store: store.all())) == 1
