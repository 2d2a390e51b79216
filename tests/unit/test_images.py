"""The ImageStore: a file has its final name only when it is complete, and only such files are served."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from imagegen.core.errors import ImageNotFound, StorageFailed, StorageFull
from imagegen.core.task import StoredImage
from imagegen.storage import images
from imagegen.storage.files import write_whole
from imagegen.storage.folder import Folder
from imagegen.storage.images import ImageStore, task_of
from tests.unit.conftest import grey, save, task_id

FOLDER, FILE = "20261123", f"{task_id(1)}-0.png"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def store(root: Path) -> Iterator[ImageStore]:
    made = ImageStore(root)
    yield made
    made.close()


def files(root: Path) -> list[str]:
    """Everything in the store that is not a folder."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def failing(number: int) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


# -- saving ------------------------------------------------------------------------------------------------------------


async def test_a_picture_is_stored_under_its_day_task_and_number(store: ImageStore, root: Path) -> None:
    stored = await save(store, task_id(1), [grey(7), grey(8)])
    assert [(image.width, image.height, image.seed) for image in stored] == [(8, 6, 7), (8, 6, 8)]
    assert [image.path for image in stored] == files(root)
    assert [image.path.split("/")[1] for image in stored] == [f"{task_id(1)}-0.png", f"{task_id(1)}-1.png"]


async def test_the_stored_file_is_the_picture(store: ImageStore, root: Path) -> None:
    (stored,) = await save(store, task_id(1), [grey(width=5, height=3)])
    with Image.open(root / stored.path) as image:
        assert image.size == (5, 3)
        assert image.tobytes() == grey(width=5, height=3).rgb


async def test_the_order_of_a_batch_is_kept(store: ImageStore) -> None:
    stored = await save(store, task_id(1), [grey(seed) for seed in range(20)])
    assert [image.seed for image in stored] == list(range(20))


async def test_a_stored_picture_is_found(store: ImageStore, root: Path) -> None:
    (stored,) = await save(store, task_id(1), [grey()])
    assert await find(store, *stored.path.split("/")) == (root / stored.path).stat().st_size


async def test_saving_again_replaces_the_picture(store: ImageStore, root: Path) -> None:
    await save(store, task_id(1), [grey(width=4)])
    (stored,) = await save(store, task_id(1), [grey(width=9)])
    with Image.open(root / stored.path) as image:
        assert image.size == (9, 6)


# -- failing disks -----------------------------------------------------------------------------------------------------

FULL = [errno.ENOSPC, errno.EDQUOT]
FAILED = [errno.EIO, errno.EROFS, errno.EACCES]


@pytest.mark.parametrize("number", FULL)
async def test_a_full_disk_has_its_own_error(
    store: ImageStore, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(StorageFull):
        await save(store, task_id(1), [grey()])
    assert files(root) == []


@pytest.mark.parametrize("number", FAILED)
async def test_any_other_refusal_is_a_failed_disk(
    store: ImageStore, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Path, "replace", failing(number))
    with pytest.raises(StorageFailed):
        await save(store, task_id(1), [grey()])
    assert files(root) == []


@pytest.fixture
def no_folder(root: Path) -> str:
    root.write_text("a file where the folder should be")
    return str(root)


@pytest.mark.usefixtures("no_folder")
async def test_a_folder_that_cannot_be_made_is_a_failed_disk(store: ImageStore) -> None:
    with pytest.raises(StorageFailed):
        await save(store, task_id(1), [grey()])


async def test_a_failure_contains_no_path(store: ImageStore, no_folder: str) -> None:
    with pytest.raises(StorageFailed) as raised:
        await save(store, task_id(1), [grey()])
    assert no_folder not in raised.value.detail


async def test_a_batch_that_fails_in_part_leaves_nothing_that_no_record_names(
    store: ImageStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def fail_for_the_last(path: Path, target: Path) -> Path:
        if target.name.endswith("-2.png"):
            raise OSError(errno.ENOSPC, "full")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail_for_the_last)
    with pytest.raises(StorageFull):
        await save(store, task_id(1), [grey(), grey(), grey()])
    store.close()
    assert files(root) == []


async def test_a_disk_that_turns_read_only_in_the_middle_of_a_batch_is_a_failed_disk(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def turn_read_only(path: Path, target: Path) -> Path:
        if target.name.endswith("-1.png"):
            monkeypatch.setattr(Path, "unlink", failing(errno.EROFS))
            raise OSError(errno.EROFS, "read-only")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", turn_read_only)
    with pytest.raises(StorageFailed):
        await save(store, task_id(1), [grey(), grey()])


# -- write_whole -------------------------------------------------------------------------------------------------------


class HalfWritten:
    """A file that writes half of the data, then raises a full disk."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> NoReturn:
        self._file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "full")

    def __enter__(self) -> "HalfWritten":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def half_written(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: HalfWritten(real(path, mode)))


def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))


def no_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", failing(errno.EIO))


@pytest.mark.parametrize("breaking", [half_written, no_fsync, no_rename])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaking: Callable[[pytest.MonkeyPatch], None]
) -> None:
    old, new = tmp_path / "old.png", tmp_path / "new.png"
    old.write_bytes(b"old")
    breaking(monkeypatch)
    for path in (old, new):
        with pytest.raises(OSError, match=r"."):
            write_whole(path, b"new data")
    monkeypatch.undo()
    assert files(tmp_path) == ["old.png"]
    assert old.read_bytes() == b"old"


def test_the_final_name_appears_after_the_data_is_on_disk_and_is_then_on_disk_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "a.png", list[tuple[bool, bool]]()
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        is_folder = os.path.samestat(os.fstat(descriptor), tmp_path.stat())
        seen.append((is_folder, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_whole(path, b"data")
    assert seen == [(False, False), (True, True)]


# -- locating ----------------------------------------------------------------------------------------------------------


async def find(store: ImageStore, folder: str, file: str) -> int:
    """Sweep like TaskManager, with records that name everything."""
    path = f"{folder}/{file}"
    task_of(path)
    return await store.size(StoredImage(path=path, width=1, height=1, seed=0))


def plant(root: Path, folder: str = FOLDER, file: str = FILE) -> Path:
    path = root / folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("..", FILE),
        (".", FILE),
        ("", FILE),
        ("/etc", "passwd"),
        (FOLDER, "../../secret.txt"),
        (FOLDER, "..%2f..%2fsecret.txt"),
        (FOLDER, f"../{FOLDER}/{FILE}"),
        (FOLDER, ""),
        (FOLDER, "."),
        (FOLDER, FILE + "\n"),
        (FOLDER + "\n", FILE),
        (FOLDER, FILE + "\0"),
        (FOLDER, FILE + ".part"),
        (FOLDER, FILE.upper()),
        (FOLDER, f"{task_id(1)}-1000.png"),
        (FOLDER, "notes.txt"),
        ("2026112", FILE),
        ("thumbs", FILE),
        (FOLDER, f"{task_id(2)}-0.png"),
        ("20261124", FILE),
    ],
)
async def test_whatever_this_store_did_not_write_is_not_found(
    store: ImageStore, root: Path, folder: str, file: str
) -> None:
    plant(root)
    plant(root, FOLDER, "notes.txt")
    plant(root, FOLDER, FILE + ".part")
    plant(root, "thumbs")
    (root.parent / "secret.txt").write_text("secret")
    with pytest.raises(ImageNotFound):
        await find(store, folder, file)


async def test_a_link_is_not_followed(store: ImageStore, root: Path) -> None:
    target = plant(root)
    link = root / FOLDER / f"{task_id(2)}-0.png"
    link.symlink_to(target)
    with pytest.raises(ImageNotFound):
        await find(store, FOLDER, link.name)


async def test_a_folder_that_is_a_link_is_not_followed(store: ImageStore, root: Path) -> None:
    elsewhere = plant(root.parent / "elsewhere")
    root.mkdir()
    (root / FOLDER).symlink_to(elsewhere.parent)
    with pytest.raises(ImageNotFound):
        await find(store, FOLDER, FILE)


async def test_a_folder_named_like_a_picture_is_no_picture(store: ImageStore, root: Path) -> None:
    (root / FOLDER / FILE).mkdir(parents=True)
    with pytest.raises(ImageNotFound):
        await find(store, FOLDER, FILE)


async def test_a_pipe_is_no_picture_and_blocks_no_request(store: ImageStore, root: Path) -> None:
    (root / FOLDER).mkdir(parents=True)
    os.mkfifo(root / FOLDER / FILE)
    with pytest.raises(ImageNotFound):
        await find(store, FOLDER, FILE)


async def test_missing_forbidden_and_linked_have_one_answer(store: ImageStore, root: Path) -> None:
    answers = set()
    plant(root, FOLDER, f"{task_id(3)}-0.png").chmod(0)
    (root / FOLDER / f"{task_id(2)}-0.png").symlink_to("/etc/passwd")
    for number in (1, 2, *([3] if os.getuid() else [])):
        with pytest.raises(ImageNotFound) as raised:
            await find(store, FOLDER, f"{task_id(number)}-0.png")
        answers.add(raised.value.detail)
    assert len(answers) == 1


async def test_a_disk_that_cannot_be_read_is_no_missing_picture(
    store: ImageStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(root)
    monkeypatch.setattr(os, "open", failing(errno.EIO))
    with pytest.raises(StorageFailed):
        await find(store, FOLDER, FILE)


def test_a_folder_that_a_deletion_takes_away_is_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    took_away = list[Path]()
    real = Path.open

    def take_away(path: Path, mode: str) -> Any:
        if not took_away:
            took_away.append(path.parent)
            path.parent.rmdir()
        return real(path, mode)

    monkeypatch.setattr(Path, "open", take_away)
    Folder(root).write(f"{FOLDER}/{FILE}", b"whole")
    monkeypatch.undo()
    assert (root / FOLDER / FILE).read_bytes() == b"whole"
    assert took_away == [root / FOLDER]


NAMES = st.text(max_size=50) | st.from_regex(r"(\.\./|/|\d{8}|[0-9a-f-]{36}-\d|\.png|%2e|\0){1,4}", fullmatch=True)


@given(NAMES, NAMES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_name_leads_outside(store: ImageStore, root: Path, folder: str, file: str) -> None:
    plant(root)
    try:
        await find(store, folder, file)
    except ImageNotFound:
        return
    assert (folder, file) == (FOLDER, FILE)


# -- deleting ----------------------------------------------------------------------------------------------------------


def stored(path: Path, root: Path) -> StoredImage:
    return StoredImage(path=str(path.relative_to(root)), width=1, height=1, seed=0)


async def test_deleting_removes_the_files_and_the_folders_that_become_empty(store: ImageStore, root: Path) -> None:
    gone = [plant(root, "20261101", f"{task_id(n)}-0.png") for n in (1, 2)] + [plant(root, "20261102")]
    kept = plant(root, "20261102", f"{task_id(9)}-0.png")
    await store.delete([stored(path, root) for path in gone])
    assert files(root) == [str(kept.relative_to(root))]
    assert folders(root) == ["20261102"]


async def test_deleting_a_missing_object_is_no_failure(store: ImageStore, root: Path) -> None:
    image = stored(plant(root), root)
    await store.delete([image])
    await store.delete([image])
    assert not (root / FOLDER).exists()


async def test_deleting_nothing_is_no_failure(store: ImageStore) -> None:
    await store.delete([])


# -- sweeping ----------------------------------------------------------------------------------------------------------


def test_a_sweep_removes_only_the_files_of_a_killed_process(store: ImageStore, root: Path) -> None:
    kept = [plant(root), plant(root, FOLDER, "notes.txt")]
    plant(root, FOLDER, FILE + ".part")
    plant(root, "20261101", "x.part")
    store.sweep()
    assert files(root) == sorted(str(path.relative_to(root)) for path in kept)


def test_a_sweep_of_a_store_that_is_not_there_is_no_failure(store: ImageStore) -> None:
    store.sweep()


# -- a bucket ----------------------------------------------------------------------------------------------------------


class Silent(Folder):
    """A bucket that does not answer."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked = asyncio.Event()

    async def put(self, name: str, data: bytes, media_type: str) -> None:
        self.asked.set()
        await asyncio.Event().wait()


async def test_a_cancelled_upload_tells_nothing_about_the_bucket(root: Path, tmp_path: Path) -> None:
    bucket = Silent(tmp_path / "bucket")
    store = ImageStore(root, bucket)
    stored = await save(store, task_id(1), [grey(7)])
    upload = asyncio.create_task(store.upload(stored, lambda: None))
    await bucket.asked.wait()
    upload.cancel()
    await asyncio.wait([upload])
    assert store.reachable
    store.close()


async def test_a_bucket_that_does_not_answer_a_check_is_unreachable(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CHECK_S", 0.01)
    store = ImageStore(root, Silent(tmp_path / "bucket"))
    await store.check()
    assert not store.reachable
    store.close()
