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
from typing import Any, Literal, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from imagegen.core.errors import ImageNotFound, StorageFailed, StoreUnreachable
from imagegen.core.task import ImageFormat, Pixels, StoredImage
from imagegen.storage.folder import Folder

T = TypeVar("T")

#: Media types by suffix. No other file is stored or served.
MEDIA_TYPES: Mapping[str, str] = MappingProxyType({str(form): f"image/{form}" for form in ImageFormat})
#: The names of this store's files: day, task id and number of the picture.
NAME = re.compile(rf"\d{{8}}/([0-9a-f-]{{36}})-\d{{1,3}}\.(?:{'|'.join(MEDIA_TYPES)})")

#: Seconds between two attempts to reach a store that is down. The pauses double, from the first to the longest.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0

#: The object that a check writes.
CHECK_NAME = "reachable"

#: Seconds after which a silent store counts as unreachable.
CHECK_S = 5


class FileStore(Protocol):
    """Stores whole files by name, `folder/file`. Every method may raise StorageFailed or StoreUnreachable."""

    async def put(self, name: str, data: bytes, media_type: str) -> None:
        """Store or replace a file. If that fails, there is the old file, or none. Also raises StorageFull."""

    def pieces(self, name: str, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """A range of a file's bytes, in pieces of about PIECE bytes. It may be deleted while it is read.

        Raises ImageNotFound at the first piece.
        """
        ...

    async def size(self, name: str) -> int:
        """The size of a file in bytes. Raises ImageNotFound."""
        ...

    async def delete(self, names: Collection[str]) -> None:
        """Remove all files that can be removed, then raise an error if one cannot. A missing file is no error."""

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


class Spool(NamedTuple):
    """Pictures on this machine that are not in the bucket yet."""

    images: int
    bytes: int


class ImageStore:
    """Encodes and writes pictures in its own threads, so that neither the event loop nor the GPU waits.

    Pictures are first written to a folder of this machine. With a bucket, that folder is the spool, and `upload` copies
    them to the bucket.
    """

    def __init__(self, root: Path, bucket: FileStore | None = None, *, patient: bool = True) -> None:
        """`patient`: whether uploads wait while the bucket cannot be reached; if not, they fail."""
        self._local = Folder(root)
        self._bucket = bucket
        self._files: FileStore = bucket or self._local
        self._patient = patient
        #: The number of running uploads, and the pictures that they have to upload.
        self._uploads = 0
        self._spool = Spool(0, 0)
        self._reachable = True
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="images")

    @property
    def has_bucket(self) -> bool:
        """Whether saved pictures must be uploaded to a bucket."""
        return self._bucket is not None

    @property
    def patient(self) -> bool:
        return self._patient

    @property
    def spool(self) -> Spool:
        """What waits for its upload, or is being uploaded."""
        return self._spool

    @property
    def reachable(self) -> bool:
        """Whether the latest upload or check succeeded, and no read has failed since."""
        return self._reachable

    # -- storing ------------------------------------------------------------------------------------------------------

    async def save(
        self, task_id: str, images: Iterable[Pixels], suffix: str, encode: Callable[[Pixels], bytes]
    ) -> tuple[StoredImage, ...]:
        """Encode a task's pictures and write them to this machine.

        Raises StorageFull, StorageFailed, EncodingFailed; then no file stays.
        """
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
                await self._local.delete(_names(stored))  # no record will name these files
            raise errors[0]
        return tuple(stored)

    def _save(self, name: str, pixels: Pixels, encode: Callable[[Pixels], bytes]) -> StoredImage:
        data = encode(pixels)
        self._local.write(name, data)
        shape = {"width": pixels.width, "height": pixels.height, "bytes": len(data)}
        digest = hashlib.sha256(data).hexdigest()
        return StoredImage(path=name, **shape, seed=pixels.seed, sha256=digest, pixels_sha256=pixels.sha256)

    async def upload(self, images: Collection[StoredImage], on_wait: Callable[[], None]) -> None:
        """Upload spooled pictures to the bucket. The spool keeps them until `unspool`.

        If the bucket refuses or cannot be reached, a patient store calls `on_wait` and tries again until it succeeds;
        any other raises StoreUnreachable. `on_wait` is also called when an upload takes longer than CHECK_S. Raises
        StorageFailed if a picture is not in the spool.
        """
        self._uploads += 1
        remaining, size = list(images), sum(image.bytes for image in images)
        self._spool = Spool(self._spool.images + len(images), self._spool.bytes + size)
        try:
            for pause in pauses():
                try:
                    return await _with_notice(self._upload_all(remaining), CHECK_S, on_wait)
                except StoreUnreachable:
                    if not self._patient:
                        raise
                on_wait()
                await asyncio.sleep(pause)
        finally:
            self._uploads -= 1
            self._spool = Spool(self._spool.images - len(images), self._spool.bytes - size)

    async def _upload_all(self, remaining: list[StoredImage]) -> None:
        """Upload the pictures, and remove each from `remaining` when it is in the bucket."""
        while remaining:
            path = remaining[0].path
            try:
                data = b"".join([piece async for piece in self._local.pieces(path, 0, remaining[0].bytes)])
            except ImageNotFound as error:
                raise StorageFailed("A picture is missing in the spool.") from error
            await self._put(path, data)
            del remaining[0]

    async def spooled(self, images: Iterable[StoredImage]) -> bool:
        """Whether all pictures are in the spool and whole."""
        try:
            return self.has_bucket and all([await self._local.size(image.path) == image.bytes for image in images])
        except (ImageNotFound, StorageFailed):
            return False

    async def unspool(self, images: Iterable[StoredImage]) -> None:
        """Remove pictures from the spool. Files that cannot be removed now are removed at the next start."""
        if self.has_bucket:
            with suppress(StorageFailed):
                await self._local.delete(_names(images))

    async def delete(self, images: Iterable[StoredImage]) -> None:
        """Delete pictures from the store. Raises StorageFailed."""
        if names := _names(images):
            await self._note_reachability(self._files.delete(names))

    # -- reading ------------------------------------------------------------------------------------------------------

    async def known(self, image: StoredImage) -> StoredImage:
        """The picture with its size and digest, which older records lack. Raises ImageNotFound or StorageFailed."""
        if image.sha256:
            return image
        size, digest = await self.size(image), hashlib.sha256()
        async for piece in self.pieces(image, 0, size):
            await asyncio.to_thread(digest.update, piece)
        return image.evolve(bytes=size, sha256=digest.hexdigest())

    async def size(self, image: StoredImage) -> int:
        """The size of the file in bytes. Raises ImageNotFound or StorageFailed."""
        return await self._note_reachability(self._files.size(image.path))

    async def pieces(self, image: StoredImage, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a picture in pieces. Raises ImageNotFound or StorageFailed."""
        async with aclosing(self._files.pieces(image.path, start, stop)) as pieces:
            while (piece := await self._note_reachability(anext(pieces, None))) is not None:
                yield piece

    async def url(self, image: StoredImage, method: Literal["GET", "HEAD"]) -> str | None:
        """Like FileStore.url. Raises StorageFailed."""
        return await self._files.url(image.path, method)

    async def origin(self) -> str | None:
        """The origin (`https://host`) of the URLs that `url` makes; None: it makes none, or the store refuses."""
        with suppress(StorageFailed):
            if url := await self._files.url(CHECK_NAME, "GET"):
                return "://".join(urlsplit(url)[:2])
        return None

    # -- maintenance --------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Write a small object to find out whether the bucket accepts pictures, unless a running upload will tell."""
        if self._uploads:
            return
        try:
            async with asyncio.timeout(CHECK_S):
                await self._put(CHECK_NAME, b"ok")
        except (StoreUnreachable, TimeoutError):
            self._reachable = False

    async def _put(self, name: str, data: bytes) -> None:
        """Store a file in the bucket, and note whether that succeeded. A cancelled attempt tells nothing."""
        if self._bucket is None:
            return
        try:
            await self._bucket.put(name, data, media_type(name) if name != CHECK_NAME else "text/plain")
        except Exception:
            self._reachable = False
            raise
        self._reachable = True

    async def _note_reachability(self, operation: Awaitable[T]) -> T:
        """Note a failure to reach the store. Success is not noted, because a read does not show that writes succeed."""
        try:
            return await operation
        except StoreUnreachable:
            self._reachable = False
            raise

    def tidy(self, wanted: Iterable[StoredImage]) -> None:
        """Remove pictures from the spool that no task will upload. To be called before anything is saved."""
        kept = set(_names(wanted))
        if self.has_bucket:
            with suppress(StorageFailed):  # they are removed at the next start
                self._local.remove([name for name in self._local.names() if name not in kept])

    def sweep(self) -> None:
        """Remove the partial files of a killed process. To be called before anything is saved."""
        self._local.sweep()

    def close(self) -> None:
        self._threads.shutdown()


def pauses() -> Iterator[float]:
    """Seconds to wait before each retry, without end. They are random, so that the retries are not simultaneous."""
    longest = FIRST_PAUSE_S
    while True:
        yield random.uniform(longest / 2, longest)
        longest = min(2 * longest, LONGEST_PAUSE_S)


async def _with_notice(work: Coroutine[Any, Any, None], seconds: float, on_late: Callable[[], None]) -> None:
    """Await `work`; call `on_late` if it takes longer than `seconds`."""
    timer = asyncio.get_running_loop().call_later(seconds, on_late)
    try:
        await work
    finally:
        timer.cancel()


def _names(images: Iterable[StoredImage]) -> list[str]:
    return [image.path for image in images]
