"""ImageStore: keeps finished pictures in a folder or a bucket. A file has its final name only when it is whole."""

import asyncio
import hashlib
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar

from imagegen.core.errors import ImageNotFound, StorageFailed, StoreUnreachable
from imagegen.core.task import ImageFormat, Pixels, StoredImage
from imagegen.storage.folder import Folder

T = TypeVar("T")

#: Media types by suffix. No other file is stored or served.
MEDIA_TYPES: Mapping[str, str] = MappingProxyType({str(form): f"image/{form}" for form in ImageFormat})
#: The names of this store's files: day, task id and number of the picture.
NAME = re.compile(rf"\d{{8}}/([0-9a-f-]{{36}})-\d{{1,3}}\.(?:{'|'.join(MEDIA_TYPES)})")

#: Seconds between two attempts to reach a store that is down: the first pause and the longest; each one doubles.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0

#: The object that a check writes.
CHECK_NAME = "reachable"

#: Seconds after which a silent store counts as unreachable.
CHECK_S = 5


class FileStore(Protocol):
    """Stores whole files by name, `folder/file`. Every method may raise StorageFailed or StoreUnreachable."""

    async def put(self, name: str, data: bytes, media_type: str) -> None:
        """Store or replace a file. If it fails, the old file or no file is there. Also raises StorageFull."""

    def pieces(self, name: str, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """A range of a file's bytes, in pieces of about PIECE. The file is opened once, so it may be deleted meanwhile.

        Raises ImageNotFound at the first piece.
        """
        ...

    async def size(self, name: str) -> int:
        """The size of a file in bytes. Raises ImageNotFound."""
        ...

    async def delete(self, names: Collection[str]) -> None:
        """Remove all files that can be removed, then raise for one that cannot. A missing file is no error."""

    async def url(self, name: str, method: Literal["GET", "HEAD"]) -> str | None:
        """A short-lived URL from which a caller can fetch a file directly; None: only the service can read it."""


def media_type(path: str) -> str:
    """The media type of a file of this store."""
    return MEDIA_TYPES[path.rpartition(".")[2]]


def task_of(path: str) -> str:
    """The id of the task that a file belongs to. Raises ImageNotFound for any other name."""
    found = NAME.fullmatch(path)
    if found is None:
        raise ImageNotFound
    return found[1]


class ImageStore:
    """Encodes and writes in its own threads, so that neither the event loop nor the GPU waits.

    Pictures are written to this machine first. With a bucket, that is the spool, and `ship` uploads them.
    """

    def __init__(self, root: Path, bucket: FileStore | None = None, *, patient: bool = True) -> None:
        """`patient`: whether uploads wait for as long as the bucket is down."""
        self._here = Folder(root)
        self._bucket = bucket
        self._files: FileStore = bucket or self._here
        self._patient = patient
        self._shipping = 0
        self._reachable = True
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="images")

    @property
    def ships(self) -> bool:
        """Whether saved pictures must be uploaded to a bucket."""
        return self._bucket is not None

    @property
    def patient(self) -> bool:
        return self._patient

    @property
    def reachable(self) -> bool:
        """Whether the latest upload, or check by an upload, succeeded, and no read has failed since."""
        return self._reachable

    # -- storing ------------------------------------------------------------------------------------------------------

    async def save(
        self, task_id: str, images: Iterable[Pixels], suffix: str, encode: Callable[[Pixels], bytes]
    ) -> tuple[StoredImage, ...]:
        """Encode a task's pictures and store them here. Raises StorageFull, StorageFailed, EncodingFailed."""
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
                await self._here.delete(_names(stored))  # no record will name them
            raise errors[0]
        return tuple(stored)

    def _save(self, name: str, pixels: Pixels, encode: Callable[[Pixels], bytes]) -> StoredImage:
        data = encode(pixels)
        self._here.write(name, data)
        shape = {"width": pixels.width, "height": pixels.height, "bytes": len(data)}
        digest = hashlib.sha256(data).hexdigest()
        return StoredImage(path=name, **shape, seed=pixels.seed, sha256=digest, pixels_sha256=pixels.sha256)

    async def ship(self, images: Collection[StoredImage], on_wait: Callable[[], None]) -> None:
        """Upload spooled pictures to the bucket. The spool keeps them until `unspool`.

        A patient store calls `on_wait` when the bucket refuses, or is silent for CHECK_S, and waits until it is back;
        another one raises StoreUnreachable. Both raise StorageFailed when the spool has lost a picture.
        """
        self._shipping += 1
        left = list(images)
        try:
            for pause in pauses():
                try:
                    return await _with_notice(self._ship_all(left), CHECK_S, on_wait)
                except StoreUnreachable:
                    if not self._patient:
                        raise
                on_wait()
                await asyncio.sleep(pause)
        finally:
            self._shipping -= 1

    async def _ship_all(self, left: list[StoredImage]) -> None:
        while left:
            path = left[0].path
            try:
                data = b"".join([piece async for piece in self._here.pieces(path, 0, left[0].bytes)])
            except ImageNotFound as error:
                raise StorageFailed("The spool has lost a picture.") from error
            await self._put(path, data)
            del left[0]

    async def spooled(self, images: Iterable[StoredImage]) -> bool:
        """Whether all pictures are still whole in the spool."""
        try:
            return self.ships and all([await self._here.size(image.path) == image.bytes for image in images])
        except (ImageNotFound, StorageFailed):
            return False

    async def unspool(self, images: Iterable[StoredImage]) -> None:
        """Remove pictures from the spool. What the disk does not remove is removed at the next start."""
        if self.ships:
            with suppress(StorageFailed):
                await self._here.delete(_names(images))

    async def delete(self, images: Iterable[StoredImage]) -> None:
        """Delete pictures from the store. Raises StorageFailed."""
        if names := _names(images):
            await self._noting(self._files.delete(names))

    # -- reading ------------------------------------------------------------------------------------------------------

    async def known(self, image: StoredImage) -> StoredImage:
        """The picture with size and digest, which older records lack. Raises ImageNotFound or StorageFailed."""
        if image.sha256:
            return image
        size, digest = await self.size(image), hashlib.sha256()
        async for piece in self.pieces(image, 0, size):
            await asyncio.to_thread(digest.update, piece)
        return image.evolve(bytes=size, sha256=digest.hexdigest())

    async def size(self, image: StoredImage) -> int:
        """The size of the file in bytes. Raises ImageNotFound or StorageFailed."""
        return await self._noting(self._files.size(image.path))

    async def pieces(self, image: StoredImage, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a picture in pieces. Raises ImageNotFound or StorageFailed."""
        async with aclosing(self._files.pieces(image.path, start, stop)) as pieces:
            while (piece := await self._noting(anext(pieces, None))) is not None:
                yield piece

    async def url(self, image: StoredImage, method: Literal["GET", "HEAD"]) -> str | None:
        """As FileStore.url. Raises StorageFailed."""
        return await self._files.url(image.path, method)

    # -- maintenance --------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Check by a write of a few bytes whether the bucket accepts pictures, unless an upload is about to tell."""
        if self._shipping:
            return
        with suppress(StoreUnreachable, TimeoutError):
            async with asyncio.timeout(CHECK_S):
                await self._put(CHECK_NAME, b"ok")

    async def _put(self, name: str, data: bytes) -> None:
        """Store a file in the bucket. Only this makes the store count as reachable again."""
        if self._bucket is None:  # a disk reports its errors when something is stored
            return
        reached = False
        try:
            await self._bucket.put(name, data, media_type(name) if name != CHECK_NAME else "text/plain")
            reached = True
        finally:  # also after a timeout
            self._reachable = reached

    async def _noting(self, operation: Awaitable[T]) -> T:
        """Note whether the files can be reached. An answer does not show that the store accepts pictures as well."""
        try:
            return await operation
        except StoreUnreachable:
            self._reachable = False
            raise

    def tidy(self, wanted: Iterable[StoredImage]) -> None:
        """Remove pictures from the spool that no task will upload. Only while nothing is saved."""
        kept = set(_names(wanted))
        if self.ships:
            with suppress(StorageFailed):  # removed at the next start
                self._here.remove([name for name in self._here.names() if name not in kept])

    def sweep(self) -> None:
        """Remove the partial files of a killed process. Only while nothing is saved."""
        self._here.sweep()

    def close(self) -> None:
        self._threads.shutdown()


def pauses() -> Iterator[float]:
    """Seconds to wait before each attempt, without end; randomised so that not all retry at once."""
    longest = FIRST_PAUSE_S
    while True:
        yield random.uniform(longest / 2, longest)
        longest = min(2 * longest, LONGEST_PAUSE_S)


async def _with_notice(work: Coroutine[Any, Any, None], seconds: float, on_late: Callable[[], None]) -> None:
    """Await `work`; call `on_late` if it takes longer than so many seconds."""
    timer = asyncio.get_running_loop().call_later(seconds, on_late)
    try:
        await work
    finally:
        timer.cancel()


def _names(images: Iterable[StoredImage]) -> list[str]:
    return [image.path for image in images]
