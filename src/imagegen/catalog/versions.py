"""Versions: the newest configurations that were in force, as files in the data directory."""

import difflib
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from imagegen.catalog.file import etag_of
from imagegen.core.errors import VersionNotFound
from imagegen.core.value import Value
from imagegen.storage.files import storage_error, write_whole

KEPT = 100

#: The name of a version's file: number and source.
_FILE = re.compile(r"(\d{6,})\.([a-z]+)\.yaml")


class Version(Value):
    """One configuration that was in force."""

    version: int
    etag: str
    #: `start`, `file`, `signal`, `rest` or `rollback`; `broken`: the broken file that a rollback replaced.
    source: str
    created_at: datetime


class Versions:
    """Owns a folder. Blocks; only one caller adds at a time."""

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        self._folder = folder
        self._kept = kept

    @classmethod
    def of(cls, config: Path, data_dir: Path) -> Self:
        """The versions of one file in a data directory."""
        return cls(data_dir / "config" / etag_of(str(config.absolute())))

    def newest_first(self) -> list[Version]:
        """All versions, newest first."""
        return [version for path in reversed(self._files()) if (version := self._version(path)) is not None]

    def text(self, version: int) -> str:
        """The text of a version. Raises VersionNotFound."""
        for path in self._files():
            if _number(path) == version:
                with suppress(FileNotFoundError):
                    return _read(path)
        raise VersionNotFound

    def add(self, text: str, source: str) -> int:
        """Store a text as the newest version, unless the newest version has it, and return the version's number.

        Raises StorageFull or StorageFailed.
        """
        files = self._files()
        newest = files[-1] if files else None
        number = _number(newest) + 1 if newest is not None else 1
        try:
            if newest is not None and _read(newest) == text:
                return _number(newest)
            write_whole(self._folder / f"{number:06}.{source}.yaml", text.encode())
            for old in files[: len(files) + 1 - self._kept]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error) from error
        return number

    def difference(self, version: int, against: int | None) -> tuple[int, str]:
        """A unified diff of a version against another one, and the number of the other one.

        By default that is the version before it; 0 is the empty file. Raises VersionNotFound.
        """
        if against is None:
            against = max((number for number in map(_number, self._files()) if number < version), default=0)
        before = self.text(against).splitlines(keepends=True) if against else []
        after = self.text(version).splitlines(keepends=True)
        return against, "".join(
            _terminated(difflib.unified_diff(before, after, f"version {against}", f"version {version}"))
        )

    def _files(self) -> list[Path]:
        """The files of the versions, oldest first."""
        return sorted((path for path in self._folder.glob("*.yaml") if _FILE.fullmatch(path.name)), key=_number)

    def _version(self, path: Path) -> Version | None:
        """What a file says; None if `add` has removed it meanwhile, as one too many."""
        source = path.name.split(".")[1]
        try:
            created_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            return Version(version=_number(path), etag=etag_of(_read(path)), source=source, created_at=created_at)
        except FileNotFoundError:
            return None


def _number(path: Path) -> int:
    return int(path.name.partition(".")[0])


def _read(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


def _terminated(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
