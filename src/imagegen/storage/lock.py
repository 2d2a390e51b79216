"""The lock of the data directory, which only one instance may use."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagegen.core.errors import DataDirInUse, DataDirUnusable
from imagegen.storage.files import make_private

#: The file in the data directory that is locked.
LOCK = "lock"

#: The file in a data directory that a backup is restored into, until all of it is there.
RESTORING = "restoring"


@contextmanager
def exclusive(data_dir: Path, *, restoring: bool = False) -> Iterator[None]:
    """Lock the directory for the duration of the context. The kernel releases the lock when the process ends.

    `restoring`: the context restores a backup; otherwise one whose restore was interrupted is refused. Raises
    DataDirInUse or DataDirUnusable.
    """
    try:
        make_private(data_dir)
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
        if not restoring and (data_dir / RESTORING).exists():
            raise DataDirUnusable(f"A restore into {data_dir} was interrupted: run `imagegen restore` again.")
        with suppress(OSError):  # a full disk: the lock holds, but the file does not name its process
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        yield


#: The kernel's list of locks.
LOCKS = Path("/proc/locks")


def holder(data_dir: Path) -> str | None:
    """The id of the process that has locked the directory; None: no process that is known. Does not lock it.

    It is read from the kernel's list of locks, which only Linux has. In a container, the list has only the locks of
    the container's processes.
    """
    try:
        name, file = (data_dir / LOCK).read_text().strip(), (data_dir / LOCK).stat()
        locks = [line.split() for line in LOCKS.read_text().splitlines()]
    except OSError:
        return None
    here = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    for _, kind, _, _, process, place, *_ in locks:  # 1: FLOCK ADVISORY WRITE 42 fe:00:7 0 EOF
        # With some file systems the device in this list is not that of `stat`. The process in the file then decides.
        named = process == name and place.endswith(f":{file.st_ino}")
        if kind == "FLOCK" and (place == here or named):
            return process
    return None
