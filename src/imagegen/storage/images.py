"""ImageStore: finished pictures as files that have their final name only when they are whole."""

import asyncio
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from imagegen.core.errors import ImageNotFound, StorageFailed
from imagegen.core.task import Pixels, StoredImage
from imagegen.storage.files import storage_error, write_whole
from imagegen.storage.png import encode_png

#: What this store names its folders (a day) and its files (task id and picture number); nothing else is ever opened.
FOLDER = re.compile(r"\d{8}")
FILE = re.compile(r"[0-9a-f-]{36}-\d{1,3}\.png")


class ImageStore:
    """Encodes and writes in threads of its own, so that neither the loop nor the GPU waits."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="images")

    async def save(self, task_id: str, images: Iterable[Pixels]) -> tuple[StoredImage, ...]:
        """Store the pictures of a task. Raises StorageFull or StorageFailed; whole files only, in any case."""
        loop = asyncio.get_running_loop()
        folder = f"{datetime.now(UTC):%Y%m%d}"
        saves = [
            loop.run_in_executor(self._threads, self._save, f"{folder}/{task_id}-{number}.png", pixels)
            for number, pixels in enumerate(images)
        ]
        outcomes = await asyncio.gather(*saves, return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        stored = [outcome for outcome in outcomes if isinstance(outcome, StoredImage)]
        if errors:
            with suppress(StorageFailed):
                await self.delete(stored)  # no record will ever name them
            raise errors[0]
        return tuple(stored)

    def _save(self, name: str, pixels: Pixels) -> StoredImage:
        data = encode_png(pixels.rgb, pixels.width, pixels.height)
        try:
            write_whole(self._root / name, data)
        except OSError as error:
            raise storage_error(error) from error
        shape = {"width": pixels.width, "height": pixels.height}
        return StoredImage(path=name, **shape, seed=pixels.seed, bytes=len(data))

    def locate(self, folder: str, file: str) -> Path:
        """The path of a stored image. Raises ImageNotFound for whatever this store did not write."""
        path = self._root / folder / file
        if not (FOLDER.fullmatch(folder) and FILE.fullmatch(file)) or not path.is_file():
            raise ImageNotFound
        if path.is_symlink() or path.parent.is_symlink():
            raise ImageNotFound
        return path

    async def delete(self, images: Iterable[StoredImage]) -> None:
        """Remove files, and folders that this leaves empty. Raises StorageFailed."""
        names = [image.path for image in images]
        await asyncio.get_running_loop().run_in_executor(self._threads, self._delete, names)

    def _delete(self, names: list[str]) -> None:
        try:
            for name in names:
                (self._root / name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageFailed from error
        for folder in {(self._root / name).parent for name in names}:
            with suppress(OSError):  # not empty, or not there
                folder.rmdir()

    def sweep(self) -> None:
        """Remove what a killed process left half-written. Only while nothing is being saved."""
        for leftover in self._root.glob("*/*.part"):
            leftover.unlink(missing_ok=True)

    def close(self) -> None:
        self._threads.shutdown()
