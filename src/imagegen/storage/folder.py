"""Folder: whole files below one folder of this machine; no link in it is followed."""

import asyncio
import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagegen.core.errors import ImageNotFound, StorageFailed
from imagegen.storage.files import storage_error, write_whole


class Folder:
    """A FileStore, in threads of the loop's own."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, name: str, data: bytes, media_type: str) -> None:
        await asyncio.to_thread(self.write, name, data)

    def write(self, name: str, data: bytes) -> None:
        """Store a whole file. Raises StorageFull or StorageFailed; then there is none."""
        try:
            self._write(self._root / name, data)
        except OSError as error:
            raise storage_error(error) from error

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_whole(path, data)
        except FileNotFoundError:  # its folder was empty for a moment, and a deletion took it away
            write_whole(path, data)

    async def read(self, name: str, start: int, stop: int) -> bytes:
        return await asyncio.to_thread(self._read, name, start, stop)

    def _read(self, name: str, start: int, stop: int) -> bytes:
        with self._opened(name) as file:
            return os.pread(file, stop - start, start)

    async def size(self, name: str) -> int:
        return await asyncio.to_thread(self._size, name)

    def _size(self, name: str) -> int:
        with self._opened(name) as file:
            return os.fstat(file).st_size

    async def delete(self, names: Collection[str]) -> None:
        """Remove files, and folders that this leaves empty."""
        await asyncio.to_thread(self.remove, names)

    def remove(self, names: Collection[str]) -> None:
        """The same, in the caller's thread."""
        try:
            for name in names:
                (self._root / name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageFailed from error
        for folder in {(self._root / name).parent for name in names}:
            with suppress(OSError):  # not empty, or not there
                folder.rmdir()

    async def check(self) -> None:
        """A disk tells when it is asked to store something."""

    async def url(self, name: str, method: str) -> str | None:
        """Nobody but the service has these files."""
        return None

    def names(self) -> list[str]:
        """Of all files, as far as they are in a folder."""
        return [str(path.relative_to(self._root)) for path in self._root.glob("*/*")]

    def sweep(self) -> None:
        """Remove what a killed process left half-written. Only while nothing is being saved."""
        for leftover in self._root.glob("*/*.part"):
            leftover.unlink(missing_ok=True)

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Raises ImageNotFound for all that is not a plain file in a plain folder, StorageFailed for a failing disk."""
        folder, file = name.split("/")
        try:
            with _descriptor(self._root / folder, os.O_DIRECTORY) as place, _descriptor(file, dir_fd=place) as opened:
                if not stat.S_ISREG(os.fstat(opened).st_mode):
                    raise ImageNotFound
                yield opened
        except OSError as error:
            # What is missing, forbidden, a link or no folder has one answer: nobody learns which.
            raise (StorageFailed if error.errno in _DISK_ERRORS else ImageNotFound) from error


#: What a disk says that does not work.
_DISK_ERRORS = (errno.EIO, errno.ESTALE)


@contextmanager
def _descriptor(path: Path | str, flags: int = 0, dir_fd: int | None = None) -> Iterator[int]:
    # Not blocking: somebody may have put a pipe there.
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags, dir_fd=dir_fd)
    try:
        yield opened
    finally:
        os.close(opened)
