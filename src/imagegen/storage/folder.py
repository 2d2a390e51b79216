"""Folder: a FileStore in a folder of this machine. It does not follow links."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

from imagegen.core.errors import ImageNotFound, StorageFailed
from imagegen.storage.files import storage_error, write_whole

#: Bytes that are read at once. Most pictures are one piece; for a slow reader only one piece is in memory.
PIECE = 2 * 2**20


class Folder:
    """A FileStore that runs in the event loop's default threads."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, name: str, data: bytes, media_type: str) -> None:
        await asyncio.to_thread(self.write, name, data)

    def write(self, name: str, data: bytes) -> None:
        """Store a file atomically. Raises StorageFull or StorageFailed; then there is no file."""
        path = self._root / name
        try:
            try:
                write_whole(path, data)
            except FileNotFoundError:  # a deletion has just removed the folder, because it was empty
                write_whole(path, data)
        except OSError as error:
            raise storage_error(error) from error

    async def pieces(self, name: str, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        opened = self._opened(name)
        file = await asyncio.to_thread(opened.__enter__)
        try:
            for begin in range(start, stop, PIECE):
                yield await asyncio.to_thread(os.pread, file, min(PIECE, stop - begin), begin)
        except OSError as error:
            raise StorageFailed from error
        finally:
            await asyncio.to_thread(opened.__exit__, None, None, None)

    async def size(self, name: str) -> int:
        return await asyncio.to_thread(self._size, name)

    def _size(self, name: str) -> int:
        with self._opened(name) as file:
            return os.fstat(file).st_size

    async def delete(self, names: Collection[str]) -> None:
        """Remove files, and the folders that become empty."""
        await asyncio.to_thread(self.remove, names)

    def remove(self, names: Collection[str]) -> None:
        """Like `delete`, in the caller's thread."""
        stuck = list[str]()
        for folder, files in groupby(sorted(names), key=lambda name: name.partition("/")[0]):
            stuck += self._remove_from(folder, [name.partition("/")[2] for name in files])
        if stuck:
            raise StorageFailed(f"The file {self._root / stuck[0]} cannot be removed.")

    def _remove_from(self, folder: str, files: Collection[str]) -> list[str]:
        """Remove files of one folder, and the folder if it becomes empty. Returns the names that were not removed."""
        stuck = list[str]()
        try:
            with _descriptor(self._root / folder, os.O_DIRECTORY) as place:
                for file in files:
                    try:
                        os.unlink(file, dir_fd=place)
                    except FileNotFoundError:
                        continue
                    except OSError:
                        stuck.append(f"{folder}/{file}")
        except FileNotFoundError:
            return []
        except OSError:  # a link, for example, whose target must not be touched
            return [f"{folder}/{file}" for file in files]
        with suppress(OSError):  # not empty
            (self._root / folder).rmdir()
        return stuck

    async def url(self, name: str, method: str) -> str | None:
        """None: only the service can read these files."""
        return None

    def names(self) -> list[str]:
        """The names of all files, as `folder/file`."""
        return [str(path.relative_to(self._root)) for path in self._root.glob("*/*")]

    def sweep(self) -> None:
        """Remove the partial files of a killed process. To be called before anything is written."""
        for leftover in self._root.glob("*/*.part"):
            leftover.unlink(missing_ok=True)

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Raises ImageNotFound unless it is a regular file in a real folder, and StorageFailed for a failing disk."""
        folder, file = name.split("/")
        try:
            with _descriptor(self._root / folder, os.O_DIRECTORY) as place, _descriptor(file, dir_fd=place) as opened:
                if not stat.S_ISREG(os.fstat(opened).st_mode):
                    raise ImageNotFound
                yield opened
        except OSError as error:
            # A missing file, a forbidden one, a link and a missing folder get the same error, so that callers cannot
            # tell them apart.
            raise (StorageFailed if error.errno in _DISK_ERRORS else ImageNotFound) from error


#: The errors of a failing disk.
_DISK_ERRORS = (errno.EIO, errno.ESTALE)


@contextmanager
def _descriptor(path: Path | str, flags: int = 0, dir_fd: int | None = None) -> Iterator[int]:
    # Non-blocking, because it could be a pipe.
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags, dir_fd=dir_fd)
    try:
        yield opened
    finally:
        os.close(opened)
