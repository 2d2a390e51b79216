"""Room: whether the disks of the data directory have room for new tasks. Ballast: what retention has for itself."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from imagegen.core.errors import StorageFull

log = structlog.get_logger(__name__)


#: Bytes of the ballast. SQLite needs some megabytes to delete anything.
BALLAST_BYTES = 8 * 2**20


class Ballast:
    """A file without content on the journal's disk. When that is full, it is removed so that retention can delete."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def hold(self) -> None:
        """Make the file, unless it is there or the disk has little room."""
        with suppress(OSError):
            disk = os.statvfs(self._path.parent)
            if self._path.exists() or disk.f_bavail * disk.f_frsize < 2 * BALLAST_BYTES:
                return
            descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
            finally:
                os.close(descriptor)

    def drop(self) -> bool:
        """Remove the file. Returns whether there was one."""
        try:
            self._path.unlink()
        except OSError:
            return False
        log.warning("ballast_dropped")
        return True


class Room:
    """Refuses new tasks before a disk is full, so that those that were accepted can be finished and written down."""

    def __init__(self, folders: Sequence[Path], floor: int) -> None:
        """`floor`: bytes that stay free on the disk of each folder. A folder may not exist yet."""
        self._folders = tuple(folders)
        self._floor = floor
        self._full = False

    @property
    def floor(self) -> int:
        """Bytes that stay free: below them new tasks are refused."""
        return self._floor

    def __repr__(self) -> str:
        return f"<Room [{'FULL' if self._full else 'OK'}, Floor: {self._floor}]>"

    def free(self) -> int:
        """Bytes that are free on the fullest of the disks. Raises OSError if none of the folders exists."""
        # A system call of a microsecond, on the event loop.
        found = (os.statvfs(folder) for folder in self._folders if folder.exists())
        return min(it.f_bavail * it.f_frsize for it in found)

    def check(self) -> None:
        """Raises StorageFull below the floor. A folder that cannot be read is left to the next write."""
        try:
            free = self.free()
        except (OSError, ValueError):
            return
        if (free < self._floor) != self._full:
            self._full = not self._full
            log.warning("disk_full" if self._full else "disk_has_room", free_bytes=free, floor_bytes=self._floor)
        if self._full:
            raise StorageFull(
                f"The disk has {_mb(free)} free, and {_mb(self._floor)} must stay free; nothing was accepted."
            )


def _mb(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
