"""Files that are whole or not there, and what a disk's refusal is called."""

import os
from errno import EDQUOT, ENOSPC
from pathlib import Path

from imagegen.core.errors import StorageFailed, StorageFull

#: What a full disk answers, and a user's used-up share of one.
DISK_FULL = (ENOSPC, EDQUOT)


def storage_error(error: OSError) -> StorageFull | StorageFailed:
    """What it means to a caller."""
    return StorageFull() if error.errno in DISK_FULL else StorageFailed()


def write_whole(path: Path, data: bytes) -> None:
    """Write, fsync, rename, fsync the folder: a crash at any moment leaves the whole file or none."""
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
    """The names in it are on disk from here on."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
