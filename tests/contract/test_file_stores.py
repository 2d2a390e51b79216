"""The contract of FileStore, for a folder and for a bucket."""

import asyncio
import errno
import hashlib
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Literal

import httpx
import pytest

from imagegen.core.errors import ImageNotFound, StorageFailed, StoreMisconfigured, StoreUnreachable
from imagegen.core.task import StoredImage
from imagegen.storage import folder, images, s3
from imagegen.storage.folder import Folder
from imagegen.storage.images import CHECK_NAME, FileStore, ImageStore
from imagegen.storage.s3 import S3
from tests.s3 import SECRET, Bucket
from tests.unit.conftest import grey, save, task_id

NAME = f"20261123/{task_id(1)}-0.png"


@pytest.fixture(params=["folder", "bucket"])
async def files(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    if request.param == "folder":
        return Folder(tmp_path)
    return S3(request.getfixturevalue("bucket").address)


async def content(files: FileStore, name: str, start: int, stop: int) -> bytes:
    return b"".join([piece async for piece in files.pieces(name, start, stop)])


# -- both --------------------------------------------------------------------------------------------------------------


async def test_a_stored_object_is_read_whole_or_in_part(files: FileStore) -> None:
    data = bytes(range(256)) * 100
    await files.put(NAME, data, "image/png")
    assert await files.size(NAME) == len(data)
    assert await content(files, NAME, 0, len(data)) == data
    assert await content(files, NAME, 300, 310) == data[300:310]


async def test_a_second_put_replaces_the_first(files: FileStore) -> None:
    await files.put(NAME, b"first", "image/png")
    await files.put(NAME, b"2nd", "image/png")
    assert await content(files, NAME, 0, await files.size(NAME)) == b"2nd"


async def test_a_deleted_object_is_missing_and_deleting_it_again_is_no_failure(files: FileStore) -> None:
    other = NAME.replace("-0", "-1")
    for name in (NAME, other):
        await files.put(name, b"x", "image/png")
    await files.delete([NAME])
    await files.delete([NAME, NAME.replace("-0", "-7")])
    await files.delete([])
    assert await files.size(other) == 1
    for looking in (files.size(NAME), content(files, NAME, 0, 1)):
        with pytest.raises(ImageNotFound):
            await looking


async def test_a_file_that_is_deleted_while_it_is_read_is_read_to_its_end(
    files: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (folder, s3):
        monkeypatch.setattr(module, "PIECE", 1000)
    data = bytes(range(256)) * 1000
    await files.put(NAME, data, "image/png")
    pieces = files.pieces(NAME, 0, len(data))
    begun = await anext(pieces)
    assert len(begun) < len(data)
    await files.delete([NAME])
    assert begun + b"".join([piece async for piece in pieces]) == data


async def test_nothing_is_read_of_an_empty_range(files: FileStore) -> None:
    await files.put(NAME, b"x", "image/png")
    assert await content(files, NAME, 1, 1) == b""


# -- an ImageStore in front of either ----------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "bucket"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ImageStore]:
    bucket = None if request.param == "folder" else S3(request.getfixturevalue("bucket").address)
    made = ImageStore(tmp_path, bucket)
    yield made
    made.close()


async def ship(store: ImageStore, stored: tuple[StoredImage, ...]) -> None:
    if store.has_bucket:
        await store.upload(stored, lambda: None)
        await store.unspool(stored)


async def read(store: ImageStore, image: StoredImage) -> bytes:
    return b"".join([piece async for piece in store.pieces(image, 0, image.bytes)])


async def test_records_know_the_size_and_the_digest(store: ImageStore) -> None:
    stored = await save(store, task_id(1), [grey(1), grey(2)])
    await ship(store, stored)
    for image in stored:
        data = await read(store, image)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (image.bytes, image.sha256)
        assert await store.known(image) is image
    await store.delete(stored)


async def test_records_of_earlier_versions_learn_them(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "PIECE", 100)  # in many pieces
    (stored,) = await save(store, task_id(1), [grey(width=64, height=64)])
    await ship(store, (stored,))
    assert stored.bytes > 100
    assert await store.known(stored.evolve(bytes=0, sha256="")) == stored
    await store.delete([stored])
    with pytest.raises(ImageNotFound):
        await store.known(stored.evolve(bytes=0, sha256=""))


# -- a bucket ----------------------------------------------------------------------------------------------------------


async def test_a_url_for_a_while_needs_no_credentials(bucket: Bucket) -> None:
    files = S3(bucket.address, url_s=60)
    await files.put(NAME, b"picture", "image/png")
    url = await files.url(NAME, "GET")
    assert url is not None
    assert "X-Amz-Expires=60&" in url
    assert SECRET not in url
    answer = await asyncio.to_thread(httpx.get, url)
    assert (answer.content, answer.headers["content-type"]) == (b"picture", "image/png")
    assert answer.headers["cache-control"] == s3.CACHE_CONTROL
    assert answer.headers["content-disposition"] == f'inline; filename="{task_id(1)}-0.png"'


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "RETRIES", 0)
    monkeypatch.setattr(s3, "REQUEST_S", 0.2)
    monkeypatch.setattr(images, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def silent(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The endpoint accepts connections and does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield


@pytest.fixture
def refusing(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["silent", "refusing", "no bucket"])
async def test_a_missing_bucket_is_a_storage_failure_without_secrets(
    request: pytest.FixtureRequest, bucket: Bucket, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    if how != "no bucket":
        request.getfixturevalue(how)
    files = S3(bucket.address if how != "no bucket" else "s3://nobody-made-this")
    asked = (
        files.put(NAME, b"x", "image/png"),
        content(files, NAME, 0, 1),
        files.delete([NAME]),
        *([files.size(NAME)] if how != "no bucket" else []),  # HEAD has no body to tell by
    )
    for asking in asked:
        with pytest.raises(StoreUnreachable) as raised:
            await asking
        assert raised.value.code == "store_unreachable"
        for secret in (SECRET, "somebody", "127.0.0.1", bucket.name, NAME):
            assert secret not in raised.value.detail + caplog.text
        assert raised.value.__suppress_context__


async def test_while_a_bucket_hangs_the_loop_does_not(bucket: Bucket, silent: None) -> None:
    asking = asyncio.ensure_future(S3(bucket.address).put(NAME, bytes(5_000_000), "image/png"))
    for _ in range(3):
        await asyncio.sleep(0.01)
    assert not asking.done()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_waiting_store_reports_a_bucket_that_does_not_answer(
    bucket: Bucket, silent: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CHECK_S", 0.01)  # and a request may take REQUEST_S
    store, waits = ImageStore(tmp_path, S3(bucket.address)), asyncio.Event()
    stored = await save(store, task_id(1), [grey()])
    shipping = asyncio.create_task(store.upload(stored, waits.set))
    await waits.wait()
    assert not shipping.done()
    shipping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await shipping
    store.close()


def test_unusable_settings_are_reported_at_the_start(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreMisconfigured, match="AccessKeyId"):
        S3(bucket.address)


# -- shipping ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def spooling(bucket: Bucket, impatient: None, tmp_path: Path) -> AsyncIterator[ImageStore]:
    made = ImageStore(tmp_path / "spool", S3(bucket.address))
    yield made
    made.close()


def spool(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "spool").rglob("*") if path.is_file())


async def test_pictures_are_complete_in_the_spool_before_their_upload_and_stay_until_unspooled(
    spooling: ImageStore, bucket: Bucket, tmp_path: Path
) -> None:
    stored = await save(spooling, task_id(3), [grey(1), grey(2)])
    assert await spooling.spooled(stored)
    assert not {image.path for image in stored} & set(bucket.names())
    await spooling.upload(stored, lambda: None)
    assert {image.path for image in stored} <= set(bucket.names())
    assert await spooling.spooled(stored)
    await spooling.unspool(stored)
    assert not await spooling.spooled(stored)
    assert spool(tmp_path) == []


async def test_a_waiting_store_reports_it_and_waits_until_the_bucket_is_back(
    spooling: ImageStore, bucket: Bucket
) -> None:
    stored = await save(spooling, task_id(4), [grey(1), grey(2)])
    waiting = asyncio.Event()
    bucket.stop()
    try:
        shipping = asyncio.create_task(spooling.upload(stored, waiting.set))
        await waiting.wait()
        assert not spooling.reachable
        assert spooling.spool == (2, sum(image.bytes for image in stored))
        await spooling.check()  # shipping tells; nobody else asks
    finally:
        bucket.start()
    await shipping
    assert spooling.reachable
    assert spooling.spool == (0, 0)
    assert {image.path for image in stored} <= set(bucket.names())


async def test_an_impatient_store_gives_up(bucket: Bucket, refusing: None, impatient: None, tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "spool", S3(bucket.address), patient=False)
    stored = await save(store, task_id(5), [grey()])
    with pytest.raises(StoreUnreachable):
        await store.upload(stored, pytest.fail)
    await store.check()
    assert not store.reachable
    store.close()


async def test_an_uploaded_picture_is_not_uploaded_again(spooling: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = await save(spooling, task_id(6), [grey(n) for n in range(3)])
    put, failing, told = S3.put, [stored[1].path, stored[2].path], list[str]()

    async def sometimes(self: S3, name: str, data: bytes, media_type: str) -> None:
        if name in failing:
            failing.remove(name)
            raise StoreUnreachable
        told.append(name)
        await put(self, name, data, media_type)

    monkeypatch.setattr(S3, "put", sometimes)
    await spooling.upload(stored, lambda: None)
    assert told == [image.path for image in stored]


async def test_a_picture_that_the_spool_has_lost_is_no_reason_to_wait(spooling: ImageStore) -> None:
    stored = await save(spooling, task_id(7), [grey()])
    await spooling.unspool(stored)
    with pytest.raises(StorageFailed, match="missing in the spool"):
        await spooling.upload(stored, pytest.fail)


async def test_a_truncated_file_in_the_spool_does_not_count_as_complete(spooling: ImageStore, tmp_path: Path) -> None:
    (stored,) = await save(spooling, task_id(8), [grey()])
    (tmp_path / "spool" / stored.path).write_bytes(b"short")
    assert not await spooling.spooled([stored])


async def test_unneeded_files_in_the_spool_are_removed(spooling: ImageStore, tmp_path: Path) -> None:
    kept, lost = [await save(spooling, task_id(n), [grey()]) for n in (1, 2)]
    spooling.tidy(kept)
    assert spool(tmp_path) == [Path(kept[0].path).name]
    assert not await spooling.spooled(lost)


async def test_a_spool_that_cannot_be_tidied_is_no_reason_not_to_start(
    spooling: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    await save(spooling, task_id(1), [grey()])
    monkeypatch.setattr(Path, "unlink", refuse)
    spooling.tidy([])


async def test_where_pictures_are_kept_nothing_is_tidied_away(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "spool")
    stored = await save(store, task_id(1), [grey()])
    store.tidy([])
    await store.unspool(stored)
    assert len(spool(tmp_path)) == 1
    store.close()


def test_the_pauses_between_attempts_grow_to_a_bound() -> None:
    made = images.pauses()
    told = [next(made) for _ in range(20)]
    assert images.FIRST_PAUSE_S / 2 <= told[0] <= images.FIRST_PAUSE_S
    assert all(images.LONGEST_PAUSE_S / 2 <= pause <= images.LONGEST_PAUSE_S for pause in told[8:])


# -- a bucket that answers and refuses ---------------------------------------------------------------------------------


class Refusing:
    """A bucket that may be read, and refuses what is put while `refuses` is set."""

    def __init__(self, bucket: S3) -> None:
        self._bucket = bucket
        self.refuses = False

    async def put(self, name: str, data: bytes, media_type: str) -> None:
        if self.refuses:
            raise StoreUnreachable
        await self._bucket.put(name, data, media_type)

    def pieces(self, name: str, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        return self._bucket.pieces(name, start, stop)

    async def size(self, name: str) -> int:
        return await self._bucket.size(name)

    async def delete(self, names: Collection[str]) -> None:
        await self._bucket.delete(names)

    async def url(self, name: str, method: Literal["GET", "HEAD"]) -> str | None:
        return await self._bucket.url(name, method)


async def test_a_store_that_refused_a_picture_is_unreachable_until_it_takes_one(bucket: Bucket, tmp_path: Path) -> None:
    refusing = Refusing(S3(bucket.address))
    store = ImageStore(tmp_path, refusing, patient=False)
    (image,) = stored = await save(store, task_id(1), [grey()])
    await store.upload(stored, lambda: None)
    refusing.refuses = True
    with pytest.raises(StoreUnreachable):
        await store.upload(stored, lambda: None)
    for _ in range(2):  # neither an answer to a read nor the next check makes it well
        assert await read(store, image)
        await store.check()
        assert not store.reachable
    refusing.refuses = False
    await store.check()
    assert store.reachable
    store.close()


async def test_a_bucket_that_was_deleted_stays_unreachable(bucket: Bucket, tmp_path: Path) -> None:
    place = f"{bucket.url}/short-lived"
    (await asyncio.to_thread(httpx.put, place)).raise_for_status()
    store = ImageStore(tmp_path, S3("s3://short-lived"), patient=False)
    await store.check()
    assert store.reachable
    await S3("s3://short-lived").delete([CHECK_NAME])
    (await asyncio.to_thread(httpx.delete, place)).raise_for_status()
    for _ in range(2):
        await store.check()
        assert not store.reachable
    store.close()
