"""CatalogWriter: owns models.yaml and the Catalog in force. Every change goes through it."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import structlog

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.difference import Difference
from imagegen.catalog.editing import NotEditable
from imagegen.catalog.file import ConfigFile, Stamp, etag_of
from imagegen.catalog.loading import ConfigError, Families, catalog_of, parse
from imagegen.catalog.versions import Version, Versions
from imagegen.catalog.watching import changes, is_being_written, settled
from imagegen.catalog.yaml import Document, YamlProblem
from imagegen.core.errors import (
    ConfigBroken,
    ConfigInvalid,
    ConfigReadOnly,
    ConfigStale,
    Draining,
    StorageFailed,
    StorageFull,
)
from imagegen.core.events import ConfigChanged, ConfigRejected, EventBus
from imagegen.core.value import Value

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Puts a catalog in force, in the order of the calls; returns the difference. Raises Draining.
Swap = Callable[[Catalog], Awaitable[Difference]]

#: An edit: from the file's document to the new one. Reading a text is the most expensive part of all, so an edit
#: neither reads what was read before, nor is its result read again.
Edit = Callable[[Document], Document]

#: Seconds after which an invalid file is read a second time: some editors write in two steps.
_SECOND_LOOK_S = 1.0


class ConfigStatus(Value):
    """The status of the configuration."""

    #: The file's name.
    file: str
    #: Why it cannot be edited over HTTP; None: it can.
    read_only: str | None = None
    #: The ETag of the text in force; None until the file was read.
    etag: str | None = None
    #: The source of the configuration in force, and when it was loaded.
    source: str = "start"
    loaded_at: datetime
    #: Whether the file is valid; False: an older configuration is in force.
    ok: bool = True
    checked_at: datetime
    #: `file:line:column: what, and the fix`.
    errors: tuple[str, ...] = ()
    #: Whether a newer configuration waits for the running task.
    waiting: bool = False


class Written(NamedTuple):
    """The result of an edit."""

    etag: str
    difference: Difference


class CatalogWriter:
    """Makes one change at a time, in order. Event loop only."""

    def __init__(
        self, file: ConfigFile, versions: Versions, families: Families, catalog: Catalog, swap: Swap, bus: EventBus
    ) -> None:
        """`catalog` is in force already. `begin` reads the file again, in case it has changed since."""
        self._file = file
        self._versions = versions
        #: The spec class of each family.
        self.families = families
        self._swap = swap
        self._bus = bus
        #: The catalog that is in force after all pending swaps, the ETag of its text, and its document.
        self._newest = catalog
        self._newest_etag: str | None = None
        self._document: Document | None = None
        #: The latest change.
        self._latest: asyncio.Task[Any] | None = None
        self._swaps: set[asyncio.Task[Difference]] = set()
        self._stop = asyncio.Event()
        #: The stamp of the file at the start.
        self._known: Stamp | None = None
        now = datetime.now(UTC)
        self._status = ConfigStatus(file=file.name, loaded_at=now, checked_at=now)

    def __repr__(self) -> str:
        state, etag = "OK" if self._status.ok else "BROKEN", (self.etag or "")[:8] or None
        return f"<CatalogWriter [{state}, File: {self._status.file}, ETag: {etag}, Swaps: {len(self._swaps)}]>"

    # -- reads --------------------------------------------------------------------------------------------------------

    @property
    def etag(self) -> str | None:
        """The ETag of the text in force; None until the file was read."""
        return self._status.etag

    @property
    def ok(self) -> bool:
        """Whether the file is valid; False: an older configuration is in force."""
        return self._status.ok

    @property
    def present(self) -> ConfigStatus:
        """Like `status`, from memory alone: without `read_only` and `waiting`."""
        return self._status

    async def status(self) -> ConfigStatus:
        """The status of the configuration."""
        read_only = await asyncio.to_thread(self._file.read_only)
        return self._status.evolve(read_only=read_only, waiting=bool(self._swaps))

    async def versions(self) -> list[Version]:
        """The kept versions, newest first."""
        return await asyncio.to_thread(self._versions.newest_first)

    async def difference(self, version: int, against: int | None) -> tuple[int, str]:
        """Like `Versions.difference`. Raises VersionNotFound."""
        return await asyncio.to_thread(self._versions.difference, version, against)

    # -- changes ------------------------------------------------------------------------------------------------------

    async def edit(self, edit: Edit, if_match: Collection[str] | None = None) -> Written:
        """Write an edit to the file and put it in force. Raises ImagegenError with the reason why not.

        `if_match`: the etags that the file may have now; None is any.
        """
        return await self._written(self._next(lambda: self._edit(edit, if_match, "rest")))

    async def rollback(self, version: int, if_match: Collection[str] | None = None) -> Written:
        """Write an older version to the file and put it in force. Raises VersionNotFound, and all that `edit` raises.

        It is the only edit that a broken file allows.
        """
        text = await asyncio.to_thread(self._versions.text, version)
        edit: Edit = lambda _: parse(text, name=self._file.name)  # noqa: E731
        return await self._written(self._next(lambda: self._edit(edit, if_match, "rollback")))

    async def reload(self, source: str, text: str | None = None) -> None:
        """Read the file again and put it in force; if it is invalid, keep the old configuration and report why.

        With a `text`, only if the file still has it; otherwise another change of the file follows.
        """
        swapping = await asyncio.shield(self._next(lambda: self._reload(source, text)))
        if swapping is not None:
            await asyncio.shield(swapping)

    def ask_reload(self, source: str) -> asyncio.Task[asyncio.Task[Difference] | None]:
        """Like `reload`, without waiting."""
        return self._next(lambda: self._reload(source, None))

    async def begin(self) -> None:
        """Read the ETag of the configuration in force, and queue a reload. Call it before the first request."""
        await asyncio.to_thread(self._file.sweep)
        self._known = self._file.stamp()
        with suppress(ConfigError):  # the reload reports it
            self._status = self._status.evolve(etag=etag_of(await asyncio.to_thread(self._file.read)))
        self.ask_reload("start")

    async def run(self) -> None:
        """Follow the file until `close`."""
        async for _ in changes(self._file, self._known, self._stop):
            text = await self._whole_text()
            if not await asyncio.to_thread(self._reads, text):
                await asyncio.sleep(_SECOND_LOOK_S)
                text = await self._whole_text()
            await self.reload("file", text)

    async def _whole_text(self) -> str | None:
        """The text of the file once no process writes to it; None: it cannot be read."""
        while True:
            stamp = self._file.stamp()
            try:
                text = await asyncio.to_thread(self._file.read)
            except ConfigError:
                text = None
            if self._stop.is_set() or (self._file.stamp() == stamp and not is_being_written(self._file.path)):
                return text
            await settled(self._file, self._stop)

    def close(self) -> None:
        """End `run`."""
        self._stop.set()

    # -- changes, one after the other ---------------------------------------------------------------------------------

    def _next(self, action: Callable[[], Awaitable[T]]) -> "asyncio.Task[T]":
        """Queue an action behind the earlier ones. It runs even if its caller is cancelled."""
        before = self._latest

        async def act() -> T:
            if before is not None:
                await asyncio.wait([before])
            return await action()

        self._latest = asyncio.create_task(act(), name="config")
        self._latest.add_done_callback(_retrieve)
        return self._latest

    async def _written(self, editing: "asyncio.Task[_Accepted]") -> Written:
        etag, swapping = await asyncio.shield(editing)
        return Written(etag, await asyncio.shield(swapping))

    async def _edit(self, edit: Edit, if_match: Collection[str] | None, source: str) -> "_Accepted":
        if (reason := await asyncio.to_thread(self._file.read_only)) is not None:
            raise ConfigReadOnly(reason)
        text, document, problem = await asyncio.to_thread(self._present)
        if problem is not None and source != "rollback":
            raise ConfigBroken(f"{ConfigBroken().detail} {problem}")
        if if_match is not None and etag_of(text) not in if_match:
            raise ConfigStale
        new = await asyncio.to_thread(self._edited, edit, document)
        await asyncio.to_thread(self._write, text, new.text, source, "broken" if problem else "file")
        return self._accept(new, source)

    def _present(self) -> tuple[str, Document, str | None]:
        """The text to edit, its document, and the first problem in it; None: it is valid."""
        text, document = "", Document("", None, None)
        try:
            text = self._file.read()
            if self._document is not None and etag_of(text) == self._newest_etag:
                return text, self._document, None
            document = self._parse(text).document
        except ConfigError as error:
            return text, document, error.lines[0]
        return text, document, None

    def _edited(self, edit: Edit, document: Document) -> "_Text":
        try:
            return self._checked(edit(document))
        except NotEditable:
            raise ConfigReadOnly("The layout of the file does not allow this edit; change the file by hand.") from None
        except YamlProblem as problem:
            raise ConfigInvalid(f"A value cannot be written to the file: {problem.message}.") from None
        except ConfigError as error:
            problems = [(".".join(map(str, problem.loc)), problem.message) for problem in error.problems]
            words = "; ".join(f"{loc}: {what}" if loc else what for loc, what in problems)
            raise ConfigInvalid(words or "; ".join(error.lines), problems=problems) from None

    def _write(self, old: str, new: str, source: str, by_hand: str = "file") -> None:
        if new != old:
            if old:  # there is none if the file was deleted
                self._versions.add(old, by_hand)  # stored already, unless it was edited by hand and not read yet
            self._file.replace(new)
        try:
            self._versions.add(new, source)
        except (StorageFull, StorageFailed) as error:
            log.warning("config_version_lost", code=error.code)

    async def _reload(self, source: str, expected: str | None) -> "asyncio.Task[Difference] | None":
        try:
            text = await asyncio.to_thread(self._file.read)
            if expected not in (None, text):
                return None
            new = None if etag_of(text) == self._newest_etag else await asyncio.to_thread(self._parse, text)
        except ConfigError as error:
            self._reject(error, source)
            return None
        if new is None:
            if source == "signal":
                log.info("config_unchanged", source=source, etag=self._newest_etag)
            self._status = self._status.evolve(ok=True, errors=(), checked_at=datetime.now(UTC))
            return None
        await asyncio.to_thread(self._write, new.text, new.text, source)
        return self._accept(new, source).swapping

    def _reads(self, text: str | None) -> bool:
        try:
            return text is not None and (etag_of(text) == self._newest_etag or bool(self._parse(text)))
        except ConfigError:
            return False

    def _parse(self, text: str) -> "_Text":
        return self._checked(parse(text, name=self._file.name))

    def _checked(self, document: Document) -> "_Text":
        catalog = catalog_of(document, self.families, name=self._file.name)
        return _Text(document, etag_of(document.text), catalog)

    def _reject(self, error: ConfigError, source: str) -> None:
        errors = tuple(error.lines)
        if self._status.ok or errors != self._status.errors:
            log.error("config_rejected", source=source, errors=errors)
            self._bus.publish(ConfigRejected(source=source, errors=errors))
        self._status = self._status.evolve(ok=False, errors=errors, checked_at=datetime.now(UTC))

    def _accept(self, new: "_Text", source: str) -> "_Accepted":
        """Start to put a valid text in force. The text is on disk already."""
        same = new.catalog == self._newest and not self._swaps
        self._newest, self._newest_etag, self._document = new.catalog, new.etag, new.document
        swapping = asyncio.create_task(self._put_in_force(new, source, same), name="config swap")
        self._swaps.add(swapping)
        # No await between these changes: a reader of the status sees both or neither.
        self._status = self._status.evolve(ok=True, errors=(), checked_at=datetime.now(UTC))
        swapping.add_done_callback(self._swaps.discard)
        swapping.add_done_callback(_retrieve)
        return _Accepted(new.etag, swapping)

    async def _put_in_force(self, new: "_Text", source: str, same: bool) -> Difference:
        """Put a catalog in force, unless it is equal to the old one."""
        try:
            change = Difference() if same else await self._swap(new.catalog)
        except Draining:  # the next start reads the file
            return Difference()
        if same and new.etag == self._status.etag:
            return change
        self._status = self._status.evolve(etag=new.etag, source=source, loaded_at=datetime.now(UTC))
        fields = change.model_dump(exclude={"outdated"})
        log.info("config_changed", source=source, etag=new.etag, **fields)
        self._bus.publish(ConfigChanged(source=source, etag=new.etag, **fields))
        return change


class _Text(NamedTuple):
    """A valid text and its catalog."""

    document: Document
    etag: str
    catalog: Catalog

    @property
    def text(self) -> str:
        return self.document.text


class _Accepted(NamedTuple):
    """A text that is on disk, and the task that puts it in force."""

    etag: str
    swapping: "asyncio.Task[Difference]"


def _retrieve(done: "asyncio.Task[Any]") -> None:
    """Retrieve the exception, because asyncio logs one that no caller has retrieved."""
    if not done.cancelled():
        done.exception()
