"""KeyStore: the API keys in the journal's database. The service and the command line use it at the same time."""

import hmac
import json
import secrets
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from imagegen.core.errors import InvalidRequest, KeyExists, KeyNotFound
from imagegen.core.keys import Key, digest_of, new_key_text, prefix_of
from imagegen.storage.database import Database
from imagegen.storage.tables import api_keys, service

#: The most keys, including revoked ones.
MAX_KEYS = 10_000

_COLUMNS = {"name", "prefix", "sha256", "last_used_at"}
_ALL = select(*(api_keys.c[name] for name in sorted(_COLUMNS)), api_keys.c.record)
_BY_PREFIX = _ALL.where(api_keys.c.prefix == bindparam("begins"))
_ANY = select(func.count()).select_from(select(api_keys.c.name).limit(1).subquery())
_CHANGED = update(service).values(key_changes=service.c.key_changes + 1)
_USED = update(api_keys).where(api_keys.c.name == bindparam("of")).values(last_used_at=bindparam("at"))


class KeyStore:
    """Finds keys by their texts, and changes them. A change by any process is in force at once.

    Every method raises StorageFull, StorageFailed or JournalLost when the disk refuses.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        #: The names of the keys in IMAGEGEN_KEYS_FILE. A key here that has one of them is not found: it would share the
        #: tasks and the budget of the other.
        self.reserved: Collection[str] = frozenset()
        #: The number of the change up to which the next three values are valid.
        self._change_number: int | None = None
        #: The keys that were read, by prefix and by name.
        self._cached: dict[str, Key] = {}
        self._named: dict[str, Key] = {}
        #: Whether there is a key; None: not read yet.
        self._any: bool | None = None

    async def find(self, text: str) -> Key | None:
        """The key with this text, valid or not. Its `last_used_at` may be outdated."""
        # The prefix may be known to others. The hash of the whole text is compared in constant time.
        prefix, change = prefix_of(text), self._drop_outdated()
        if (key := self._cached.get(prefix)) is None:
            row = await self._database.look_up(
                lambda connection: connection.execute(_BY_PREFIX, {"begins": prefix}).one_or_none()
            )
            if row is None:
                return None
            key = _key(row)
            if change is not None and change == self._change_number:
                self._cached[prefix] = key
        same = hmac.compare_digest(key.sha256, digest_of(text))
        return key if same and key.name not in self.reserved else None

    async def named(self, name: str) -> Key | None:
        """The key with this name, valid or not. Its `last_used_at` may be an older one."""
        change = self._drop_outdated()
        if (key := self._named.get(name)) is None:
            row = await self._database.look_up(lambda connection: _row(name, connection))
            if row is None:
                return None
            key = _key(row)
            if change is not None and change == self._change_number:
                self._named[name] = key
        return key

    async def exist(self) -> bool:
        """Whether there is a key, valid or not."""
        change, found = self._drop_outdated(), self._any
        if found is None:
            found = bool(await self._database.look_up(lambda connection: connection.scalar(_ANY)))
            if change is not None and change == self._change_number:
                self._any = found
        return found

    def _drop_outdated(self) -> int | None:
        """Forget what was read if any process has changed a key since. Returns the number of the latest change."""
        change = self._database.peek("SELECT key_changes FROM service")
        if change is None or change != self._change_number:
            self._change_number, self._any = change, None
            self._cached.clear()
            self._named.clear()
        return change

    async def all(self) -> list[Key]:
        """All keys, by name; at most MAX_KEYS."""
        rows = await self._database.look_up(lambda connection: connection.execute(_ALL.order_by(api_keys.c.name)).all())
        return [_key(row) for row in rows]

    async def named_twice(self) -> list[str]:
        """The reserved names that keys here have, also revoked ones: their tasks would get another owner."""
        if not self.reserved:
            return []
        return sorted(key.name for key in await self.all() if key.name in self.reserved)

    async def get(self, name: str) -> Key:
        """Raises KeyNotFound."""
        row = await self._database.look_up(lambda connection: _row(name, connection))
        if row is None:
            raise KeyNotFound
        return _key(row)

    async def create(self, key: Key) -> None:
        """Raises KeyExists, also for the name of a revoked key; InvalidRequest beyond MAX_KEYS."""
        if key.name in self.reserved:
            raise KeyExists("A key in the file of IMAGEGEN_KEYS_FILE has this name.")

        def work(connection: Connection) -> Exception | None:
            # Returned, because an exception would undo the other work in this transaction.
            if connection.execute(_ALL.where(api_keys.c.name == key.name)).first() is not None:
                return KeyExists()
            if (connection.scalar(select(func.count()).select_from(api_keys)) or 0) >= MAX_KEYS:
                return InvalidRequest(f"There are {MAX_KEYS} keys, and no more are possible.")
            connection.execute(insert(api_keys).values(**_columns(key)))
            connection.execute(_CHANGED)
            return None

        if (refusal := await self._database.run(work)) is not None:
            raise refusal

    async def rotate(self, name: str) -> tuple[Key, str]:
        """Give a key a new text, and make it valid if it was revoked. Returns it and the text. Raises KeyNotFound."""
        text = new_key_text()
        new = {"prefix": prefix_of(text), "sha256": digest_of(text), "revoked_at": None}
        return await self._change(name, lambda key: key.evolve(**new)), text

    async def revoke(self, name: str) -> Key:
        """Make a key invalid. Raises KeyNotFound."""
        now = datetime.now(UTC)
        return await self._change(name, lambda key: key.evolve(revoked_at=key.revoked_at or now))

    async def webhook_secret(self, name: str) -> str | None:
        """The secret of this owner, which signs the webhooks of its tasks; None: it has none."""
        key = await self.named(name) if name else None
        return None if key is None else key.webhook_secret

    async def used(self, name: str, at: datetime) -> None:
        """Note that a key was used."""

        def work(connection: Connection) -> None:
            connection.execute(_USED, {"of": name, "at": at.isoformat()})

        await self._database.run(work, durable=False)

    async def url_secret(self) -> bytes:
        """The secret that signs URLs, 32 bytes. The first call creates it."""

        def work(connection: Connection) -> bytes:
            known = connection.scalar(select(service.c.url_secret))
            secret = known or secrets.token_bytes(32)
            if known is None:
                connection.execute(update(service).values(url_secret=secret))
            return secret

        return await self._database.run(work)

    async def _change(self, name: str, changed: Callable[[Key], Key]) -> Key:
        def work(connection: Connection) -> Key | None:
            row = _row(name, connection)
            if row is None:
                return None
            key = changed(_key(row))
            connection.execute(update(api_keys).where(api_keys.c.name == name).values(**_columns(key)))
            connection.execute(_CHANGED)
            return key

        if (key := await self._database.run(work)) is None:
            raise KeyNotFound
        return key


def _row(name: str, connection: Connection) -> Any:
    return connection.execute(_ALL.where(api_keys.c.name == name)).one_or_none()


def _columns(key: Key) -> dict[str, Any]:
    return {
        "name": key.name,
        "prefix": key.prefix,
        "sha256": key.sha256,
        "last_used_at": key.last_used_at.isoformat() if key.last_used_at else None,
        "record": key.model_dump_json(exclude=_COLUMNS),
    }


def _key(row: Any) -> Key:
    return Key(**json.loads(row.record), **{name: getattr(row, name) for name in _COLUMNS})
