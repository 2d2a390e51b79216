"""ImageStore: finished pictures as files that have their final name only when they are whole."""

import asyncio
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from imagegen.core.errors import ImageNotFound, StorageFailed
from imagegen.core.task import ImageFormat, Pixels, StoredImage
from imagegen.storage.files import storage_error, write_whole

#: What this store names its folders (a day) and its files (task id and picture number); nothing else is ever opened.
FOLDER = re.compile(r"\d{8}")
FILE = re.compile(rf"[0-9a-f-]{{36}}-\d{{1,3}}\.({'|'.join(ImageFormat)})")


class ImageStore:
    """Encodes and writes in threads of its own, so that neither the loop nor the GPU waits."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="images")

    async def save(
        self, task_id: str, images: Iterable[Pixels], suffix: str, encode: Callable[[Pixels], bytes]
    ) -> tuple[StoredImage, ...]:
        """Encode and store a task's pictures. Raises StorageFull, StorageFailed, EncodingFailed; no half files."""
        loop = asyncio.get_running_loop()
        folder = f"{datetime.now(UTC):%Y%m%d}"
        saves = [
            loop.run_in_executor(self._threads, self._save, f"{folder}/{task_id}-{number}.{suffix}", pixels, encode)
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

    def _save(self, name: str, pixels: Pixels, encode: Callable[[Pixels], bytes]) -> StoredImage:
        data = encode(pixels)
        try:
            write_whole(self._root / name, data)
        except OSError as error:
            raise storage_error(error) from error
        shape = {"width": pixels.width, "height": pixels.height}
        return StoredImage(path=name, **shape, seed=pixels.seed, bytes=len(data), pixels_sha256=pixels.sha256)

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
