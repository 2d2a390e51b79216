"""Writes files atomically, and translates errors of the disk."""

import os
import stat
from errno import EDQUOT, EINVAL, ENOSPC
from pathlib import Path
from typing import BinaryIO

from imagegen.core.errors import StorageFailed, StorageFull

#: The errors of a full disk and of an exhausted quota.
DISK_FULL = (ENOSPC, EDQUOT)


def storage_error(error: OSError) -> StorageFull | StorageFailed:
    """StorageFull or StorageFailed for an error of the disk."""
    return StorageFull() if error.errno in DISK_FULL else StorageFailed()


def file_id(path: Path) -> tuple[int, int] | None:
    """The device and inode of a file; None: it does not exist. Another file of the same name has another id."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for anything else, such as a pipe, which would block."""
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # open() itself refuses folders
        return descriptor
    os.close(descriptor)
    raise OSError(EINVAL, "not a regular file", path)


def make_private(folder: Path) -> None:
    """Make a folder that only its user can enter, unless it exists: the journal has prompts, and secrets that sign."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the whole file or no file: write, fsync, rename, fsync the folder."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent.parent)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
