"""ConfigFile: models.yaml on disk. It is replaced atomically and keeps its mode and owner; links are followed."""

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

#: Errors of a folder or file that cannot be written to. A file that is a mount point gives EBUSY.
_READ_ONLY = (EACCES, EPERM, EROFS, EBUSY, ETXTBSY)


class Stamp(NamedTuple):
    """Values that change when the file changes."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def etag_of(text: str) -> str:
    """The ETag of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class ConfigFile:
    """Reads and replaces one file. Blocks; only one caller writes at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def name(self) -> str:
        """The file's name without its folder, for callers."""
        return self.path.name

    def read(self) -> str:
        """The text of the file. Raises ConfigError."""
        return read_text(self.path, name=self.name)

    def stamp(self) -> Stamp | None:
        """The file's stamp; None if there is no file."""
        try:
            it = self.path.stat()
        except OSError:
            return None
        return Stamp(it.st_ino, it.st_size, it.st_mtime_ns, it.st_ctime_ns)

    def read_only(self) -> str | None:
        """Why the file cannot be edited, as far as this is known before a write; None: it can be edited."""
        if self.path == default_config().absolute():
            return "This is the configuration that ships with imagegen: copy it and start with --config."
        target = self.path.resolve()
        try:
            mode = target.stat().st_mode
        except FileNotFoundError:  # a rollback makes it again
            return (
                None if os.access(target.parent, os.W_OK) else "There is no file, and its folder cannot be written to."
            )
        except OSError:
            return "The file cannot be read."
        # os.access is always true for root, so the mode is checked, too.
        if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) or not os.access(target, os.W_OK):
            return "The file is read-only."
        return None if os.access(target.parent, os.W_OK) else "The file's folder is read-only."

    def replace(self, text: str) -> None:
        """Write a temporary file, fsync, rename, fsync the folder: a crash leaves the old text or the new one.

        Raises ConfigReadOnly, StorageFull or StorageFailed; then the old text is unchanged.
        """
        if (reason := self.read_only()) is not None:
            raise ConfigReadOnly(reason)
        with _explained():
            target = self.path.resolve()
            part = target.with_name(f".{target.name}.{os.getpid()}.part")
            try:
                _write(part, text.encode(), target.stat() if target.exists() else None)
                part.replace(target)
            except OSError:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
                raise
            sync_folder(target.parent)

    def sweep(self) -> None:
        """Remove the temporary files of a killed process. Must not run during `replace`."""
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


def _write(part: Path, data: bytes, like: os.stat_result | None) -> None:
    """`like`: the file whose owner and mode it gets; None: there is none, and it gets those of any new file."""
    new_mode = 0o600 if like else 0o666  # less the umask
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, new_mode)
    with open(descriptor, "wb") as file:
        if like and (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(file.fileno(), like.st_uid, like.st_gid)
        if like:
            os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
