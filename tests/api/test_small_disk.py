"""A small disk survives what callers send, and a full one is used again without a restart."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from bench.disk import flood

from imagegen.core.errors import StorageFull
from imagegen.core.events import EventBus
from imagegen.core.task import GenerationTask, InputPictures, Pixels, TaskStatus
from imagegen.storage.images import ImageStore
from imagegen.storage.journal import Retention, TaskJournal
from imagegen.storage.room import Room
from imagegen.tasks.records import Records
from tests.api.conftest import Start
from tests.conftest import request_for
from tests.unit.conftest import insert_one, save, task_of

MiB = 2**20


def fill(disk: Path, left: int = 0) -> Path:
    """Another program's file, which leaves so many bytes of the disk."""
    free = os.statvfs(disk)
    file = disk / "filler"
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        for size in (max(0, free.f_bavail * free.f_frsize - left), *((4096, 512, 1) if not left else ())):
            filler.write(bytes(size))
    return file


# -- the floor ---------------------------------------------------------------------------------------------------------


async def test_below_the_floor_new_tasks_are_refused_and_everything_else_goes_on(
    start: Start, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(96 * MiB)
    key = {"Idempotency-Key": "before"}
    async with start(data_dir=disk / "data", min_free_mb=32) as client:
        before = await client.post("/text2image", json={"prompt": "a picture"}, headers=key)
        done = await client.until(before.json()["task_id"])
        filler = fill(disk, left=20 * MiB)
        refused = await client.post("/text2image", json={"prompt": "now?"})
        assert (refused.status_code, refused.json()["code"]) == (507, "storage_full")
        assert "MiB free, and 32 MiB must stay free" in refused.json()["detail"]
        assert str(disk) not in refused.text
        assert (await client.post(f"/task/{done['task_id']}/replay")).status_code == 507
        again = await client.post("/text2image", json={"prompt": "a picture"}, headers=key)
        assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
        assert await client.task(done["task_id"]) == done
        assert (await client.get(done["images"][0]["url"])).status_code == 200
        for path in ("/livez", "/readyz", "/tasks", "/health"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/health")).json()["disk_free"] < 32 / 1024
        assert (await client.get("/tasks")).json()["total"] == 1
        filler.unlink()
        assert (await client.until(await client.submit()))["status"] == "completed"


def test_the_fullest_disk_counts_and_a_folder_that_is_not_there_yet_does_not(tmp_path: Path) -> None:
    free = Room([tmp_path], 0).free()
    Room([tmp_path, tmp_path / "images"], free // 2).check()
    Room([tmp_path / "images"], 2**60).check()  # the next write will tell
    with pytest.raises(StorageFull):
        Room([Path("/proc"), tmp_path], 2**60).check()


# -- retention ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def kept(folder: Path) -> AsyncIterator[tuple[TaskJournal, ImageStore, Records]]:
    journal, images = TaskJournal(folder / "imagegen.sqlite3"), ImageStore(folder / "images")
    try:
        yield journal, images, Records(journal, images, EventBus())
    finally:
        await journal.close()
        images.close()


async def ended(journal: TaskJournal, images: ImageStore, number: int, **changes: Any) -> GenerationTask:
    """A completed task with its picture."""
    task = await insert_one(journal, task_of(number, **changes))
    stored = await save(images, task.id, [Pixels(width=100, height=100, seed=1, rgb=os.urandom(30_000))])
    task = task.evolve(status=TaskStatus.COMPLETED, images=stored)
    await journal.update(task)
    return task


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "prompts"])
async def test_retention_frees_a_disk_without_a_free_byte(small_disk: Callable[[int], Path], pictures: bool) -> None:
    disk, long = small_disk(40 * MiB), request_for(prompt=os.urandom(4096).hex())
    async with kept(disk / "data") as (journal, images, records):
        await journal.tidy()
        for number in range(1, 81):
            if pictures:
                await ended(journal, images, number)
            else:
                task = await insert_one(journal, task_of(number, request=long))
                await journal.update(task.evolve(status=TaskStatus.CANCELLED))
        filler = fill(disk)
        with pytest.raises(StorageFull):
            await asyncio.gather(*(insert_one(journal, task_of(number, request=long)) for number in range(100, 300)))
        assert await records.expire(Retention(tasks=1)) == 79
        await insert_one(journal, task_of(300))
        filler.unlink()
        await journal.tidy()
        assert (disk / "data" / "ballast").stat().st_blocks > 0  # for the next time


async def test_a_flood_of_long_prompts_does_not_make_the_journal_larger_than_its_limit(tmp_path: Path) -> None:
    rows = await flood(tmp_path, megabytes=2, journal_mb=1, between_mb=1)
    kept, on_disk = [int(row[1]) for row in rows], [float(row[4]) for row in rows]
    assert kept[0] == kept[1] < 50  # so many fit, and no more
    assert max(on_disk) < 40  # 1 MiB, 16 MiB that stay free for the next writes, and the log


async def test_input_pictures_of_the_oldest_tasks_go_before_any_task(tmp_path: Path) -> None:
    async with kept(tmp_path) as (journal, _, records):
        tasks = []
        for number in range(1, 5):
            picture = InputPictures(init_image=os.urandom(MiB), mask_image=b"mask" if number == 1 else None)
            size = MiB + len(picture.mask_image or b"")
            tasks.append(await insert_one(journal, task_of(number, input_bytes=size), picture))
        for task in tasks[:3]:
            await journal.update(task.evolve(status=TaskStatus.COMPLETED))
        assert await records.expire(Retention(journal=4 * MiB)) == 0
        assert [bool((await journal.pictures(task.id)).init_image) for task in tasks] == [True] * 4
        assert await records.expire(Retention(journal=3 * MiB)) == 0
        assert [bool((await journal.pictures(task.id)).init_image) for task in tasks] == [False, True, True, True]
        assert await records.expire(Retention(journal=4000)) == 2
        # The task that waits keeps its picture.
        assert [bool((await journal.pictures(task.id)).init_image) for task in tasks] == [False, False, False, True]
        assert await journal.count() == 2


async def test_what_is_deleted_from_the_journal_is_given_back_to_the_disk(tmp_path: Path) -> None:
    async with kept(tmp_path) as (journal, _, _):
        for number in range(1, 5):
            task = await insert_one(journal, task_of(number), InputPictures(init_image=os.urandom(16 * MiB)))
            await journal.update(task.evolve(status=TaskStatus.CANCELLED))
        await journal.tidy()

        def size() -> int:
            return sum(file.stat().st_size for file in tmp_path.glob("imagegen.sqlite3*"))

        # Free pages that stay for the next writes, and what the log keeps.
        assert size() < 16 * MiB + 64 * MiB + 2 * MiB
        assert (tmp_path / "imagegen.sqlite3").stat().st_size < 20 * MiB
