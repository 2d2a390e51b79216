"""ConfigFile: models.yaml on disk. Replaced whole or not at all, its mode and owner kept; links are followed."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EBUSY, EPERM, EROFS, ETXTBSY
from pathlib import Path
from typing import NamedTuple

from imagegen.builtin import default_config
from imagegen.catalog.loading import read_text
from imagegen.core.errors import ConfigReadOnly
from imagegen.storage.files import storage_error, sync_folder

#: What a folder or a file answers that is not meant to be written to; a file that is a mount of its own is busy.
_READ_ONLY = (EACCES, EPERM, EROFS, EBUSY, ETXTBSY)


class Stamp(NamedTuple):
    """What changes when a file does."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def etag_of(text: str) -> str:
    """The name of these very bytes."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class ConfigFile:
    """Reads and replaces one file. Blocks; whoever writes calls from one place."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def name(self) -> str:
        """What it is called towards callers, who do not learn where it lies."""
        return self.path.name

    def read(self) -> str:
        """The text as it stands. Raises ConfigError."""
        return read_text(self.path, name=self.name)

    def stamp(self) -> Stamp | None:
        """None while it is not there."""
        try:
            it = self.path.stat()
        except OSError:
            return None
        return Stamp(it.st_ino, it.st_size, it.st_mtime_ns, it.st_ctime_ns)

    def read_only(self) -> str | None:
        """Why it cannot be edited, as far as that shows before trying; None: it can."""
        if self.path == default_config().absolute():
            return "This is the configuration that ships with imagegen: copy it and start with --config."
        try:
            target = self.path.resolve(strict=True)
            mode = target.stat().st_mode
        except OSError:
            return "The file cannot be read."
        # The superuser may write everything; the mode says what is wished for.
        if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) or not os.access(target, os.W_OK):
            return "The file is read-only."
        return None if os.access(target.parent, os.W_OK) else "The file's folder is read-only."

    def replace(self, text: str) -> None:
        """Write beside it, fsync, rename over it, fsync the folder: a crash at any moment leaves the old or the new.

        Raises ConfigReadOnly, StorageFull or StorageFailed; then the old one stands.
        """
        if (reason := self.read_only()) is not None:
            raise ConfigReadOnly(reason)
        with _explained():
            target = self.path.resolve(strict=True)
            part = target.with_name(f".{target.name}.{os.getpid()}.part")
            try:
                _write(part, text.encode(), target.stat())
                part.replace(target)
            except OSError:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
                raise
            sync_folder(target.parent)

    def sweep(self) -> None:
        """Remove what a killed process left half-written. Only while nothing is being written."""
        with suppress(OSError):
            target = self.path.resolve(strict=True)
            for leftover in target.parent.glob(f".{target.name}.*.part"):
                leftover.unlink(missing_ok=True)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _READ_ONLY:
            raise ConfigReadOnly(f"{ConfigReadOnly().detail} ({error.strerror})") from error
        raise storage_error(error) from error


def _write(part: Path, data: bytes, like: os.stat_result) -> None:
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(file.fileno(), like.st_uid, like.st_gid)
        os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
