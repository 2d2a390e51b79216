"""One instance for each data directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagegen.core.errors import DataDirInUse, DataDirUnusable

#: The file in the data directory that is locked.
LOCK = "lock"


@contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Lock the directory for the duration of the context. The kernel releases the lock when the process ends.

    Raises DataDirInUse or DataDirUnusable.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / LOCK).open("a+b", buffering=0)
    except OSError as error:
        raise DataDirUnusable(f"Cannot use the data directory {data_dir}: {error.strerror}.") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "unknown"
            raise DataDirInUse(f"Another instance (process {holder}) uses this data directory.") from None
        with suppress(OSError):  # a full disk: the lock holds, without the holder's name
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        yield


#: What the kernel says of all locks that this process may see.
LOCKS = Path("/proc/locks")


def holder(data_dir: Path) -> str | None:
    """The process that holds the directory, by the kernel's list of locks; None: nobody does. Takes no lock itself.

    Linux alone has that list, and a container's list has only what runs in it.
    """
    try:
        name, file = (data_dir / LOCK).read_text().strip(), (data_dir / LOCK).stat()
        locks = [line.split() for line in LOCKS.read_text().splitlines()]
    except OSError:
        return None
    here = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    for kind, process, place in (
        (lock[1], lock[4], lock[5]) for lock in locks
    ):  # 1: FLOCK ADVISORY WRITE 42 fe:00:7 ...
        # Some file systems have another device in this list than files say; the name in the lock then decides.
        named = process == name and place.endswith(f":{file.st_ino}")
        if kind == "FLOCK" and (place == here or named):
            return process
    return None
