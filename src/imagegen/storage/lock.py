"""One instance for each data directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagegen.core.errors import DataDirInUse, DataDirUnusable


@contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Lock the directory for the duration of the context. The kernel releases the lock when the process ends.

    Raises DataDirInUse or DataDirUnusable.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("a+")
    except OSError as error:
        raise DataDirUnusable(f"Cannot use the data directory {data_dir}: {error.strerror}.") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise DataDirInUse(f"Another instance (process {holder}) uses this data directory.") from None
        with suppress(OSError):  # a full disk: the lock holds, without the holder's name
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
