"""A bucket that cannot be reached: pictures wait for it or their tasks fail; nothing is lost or left behind."""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from imagegen.models.manager import DynamicModelManager
from imagegen.storage import folder, images, s3
from tests.api.conftest import Client, FullDisk, Start
from tests.api.test_tasks import events
from tests.s3 import SECRET, Bucket


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setattr(s3, "RETRIES", 0)
    monkeypatch.setattr(images, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(images, "LONGEST_PAUSE_S", 0.02)
    with Bucket() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


@asynccontextmanager
async def away(bucket: Bucket) -> AsyncIterator[None]:
    """Make the bucket unreachable until the end of the block."""
    await asyncio.to_thread(bucket.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(bucket.start)


async def storing(client: Client, task_id: str) -> dict[str, Any]:
    """Wait until its pictures wait for the bucket."""
    while not (task := await client.task(task_id)).get("storing"):
        assert task["status"] in ("pending", "processing"), task
        await asyncio.sleep(0.01)
    return task


def spooled(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "data" / "spool").rglob("*") if path.is_file()]


async def health(client: Client) -> str:
    return str((await client.get("/health")).json()["store"])


async def test_tasks_wait_for_the_bucket_and_are_completed_when_it_is_back(
    start: Start, bucket: Bucket, tmp_path: Path
) -> None:
    async with start(store=bucket.address) as client:
        before = await client.until(await client.submit())
        assert (await health(client), spooled(tmp_path)) == ("ok", [])
        async with away(bucket):
            waiting = await client.submit(batch_size=2)
            task = await storing(client, waiting)
            assert (task["status"], task["images"], "result_files" in task) == ("processing", [], False)
            assert len(spooled(tmp_path)) == 2
            assert await health(client) == "unreachable"
            assert (await client.get("/livez")).status_code == (await client.get("/readyz")).status_code == 200
            unread = await client.get(before["images"][0]["url"])
            assert (unread.status_code, unread.json()["code"]) == (503, "store_unreachable")
        done = await client.until(waiting)
        assert (done["status"], len(done["images"]), "storing" in done) == ("completed", 2, False)
        for image in done["images"]:
            assert (await client.get(image["url"])).status_code == 200
        names = [name for _, name, _ in events((await client.get(f"/task/{waiting}/events")).text)]
        assert (names[-3:], names.count("storing")) == (["storing", "saved", "completed"], 1)
        assert (await health(client), spooled(tmp_path)) == ("ok", [])


async def test_the_gpu_continues_for_some_tasks_while_all_are_accepted_and_configured(
    start: Start, bucket: Bucket
) -> None:
    async with start(store=bucket.address) as client:
        async with away(bucket):
            ids = [await client.submit() for _ in range(6)]
            for task_id in ids[:3]:  # two may be on their way to the bucket, and one more
                await storing(client, task_id)
            assert [(await client.task(task_id))["status"] for task_id in ids[3:]] == ["pending"] * 3
            cancelled = await client.post(f"/task/{ids[5]}/cancel")
            assert cancelled.json()["status"] == "cancelled"
            changed = await client.put("/config/global", json={"auto_unload_minutes": 7})
            assert changed.status_code == 200, changed.text
        done = [(await client.until(task_id))["status"] for task_id in ids]
        assert done == ["completed"] * 5 + ["cancelled"]


async def test_a_task_that_waits_for_the_bucket_can_be_cancelled_and_leaves_nothing(
    start: Start, bucket: Bucket, tmp_path: Path
) -> None:
    async with start(store=bucket.address) as client:
        async with away(bucket):
            waiting = await client.submit()
            await storing(client, waiting)
            await client.post(f"/task/{waiting}/cancel")
            assert (await client.until(waiting))["status"] == "cancelled"
            while spooled(tmp_path):
                await asyncio.sleep(0.01)
        assert (await client.until(await client.submit()))["status"] == "completed"
        assert not [name for name in bucket.names() if waiting in name]


async def test_a_bucket_that_hangs_does_not_hold_a_cancel(
    start: Start, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # takes connections and says nothing
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr(s3, "CONNECT_S", 1)
        async with start(store=bucket.address, drain_timeout_s=0) as client:
            waiting = await client.submit()
            while not spooled(tmp_path):
                await asyncio.sleep(0.01)
            await client.post(f"/task/{waiting}/cancel")
            assert (await client.until(waiting))["status"] == "cancelled"


async def test_stopping_does_not_wait_for_a_bucket_and_the_next_run_uploads_the_pictures(
    start: Start, bucket: Bucket, tmp_path: Path
) -> None:
    async with away(bucket):
        async with start(store=bucket.address, drain_timeout_s=3600) as client:
            waiting = await client.submit(batch_size=2)
            await storing(client, waiting)
        made = {path.name: path.read_bytes() for path in spooled(tmp_path)}
        assert len(made) == 2
        async with start(store=bucket.address) as client:  # twice: a task may be interrupted as often as it likes
            await storing(client, waiting)
    # A model that cannot make them again.
    async with start(store=bucket.address, models={"fake": {"fault": "error", "fault_prompt": "a picture"}}) as client:
        done = await client.until(waiting)
        assert (done["status"], done["attempt"]) == ("completed", 1)
        for image in done["images"]:
            assert (await client.get(image["url"])).content == made[image["url"].rpartition("/")[2]]
    assert spooled(tmp_path) == []


async def test_pictures_finished_during_a_forced_stop_are_uploaded_by_the_next_run(
    start: Start, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = DynamicModelManager.generate

    async with start(store=bucket.address, drain_timeout_s=0) as client:
        tasks = client.app.state.services.tasks

        async def hurried(self: DynamicModelManager, *args: Any, **options: Any) -> Any:
            outcome = await generate(self, *args, **options)
            tasks.begin_drain()
            tasks.hurry()  # too late for a stop between two steps
            return outcome

        with monkeypatch.context() as patch:
            patch.setattr(DynamicModelManager, "generate", hurried)
            task_id = await client.submit()
            while not client.app.state.lifecycle.ended:
                await asyncio.sleep(0.01)
            assert (await client.task(task_id))["status"] == "processing"
    async with start(store=bucket.address) as client:
        done = await client.until(task_id)
        assert (done["status"], done["attempt"]) == ("completed", 1)


async def test_an_end_that_the_disk_refused_leaves_the_spool_for_the_next_run(
    start: Start, bucket: Bucket, tmp_path: Path
) -> None:
    async with start(store=bucket.address, journal=FullDisk(tmp_path, "update")) as client:
        task_id = await client.submit()
        assert (await client.until(task_id))["status"] == "completed"
    assert len(spooled(tmp_path)) == 1
    async with start(store=bucket.address) as client:
        done = await client.until(task_id)
        assert (done["status"], done["attempt"]) == ("completed", 1)
    assert spooled(tmp_path) == []


async def test_pictures_lost_from_the_spool_are_made_again(start: Start, bucket: Bucket, tmp_path: Path) -> None:
    async with away(bucket), start(store=bucket.address) as client:
        waiting = await client.submit()
        await storing(client, waiting)
    for path in spooled(tmp_path):
        path.unlink()
    async with start(store=bucket.address) as client:
        done = await client.until(waiting)
        assert (done["status"], done["attempt"]) == ("completed", 1)


async def test_waiting_pictures_are_made_again_after_a_change_to_the_folder(start: Start, bucket: Bucket) -> None:
    async with away(bucket), start(store=bucket.address) as client:
        waiting = await client.submit()
        await storing(client, waiting)
    async with start() as client:
        done = await client.until(waiting)
        assert (done["status"], done["attempt"]) == ("completed", 1)
        assert (await client.get(done["images"][0]["url"])).status_code == 200


async def test_with_fail_tasks_fail_with_a_code_and_leave_nothing(start: Start, bucket: Bucket, tmp_path: Path) -> None:
    async with start(store=bucket.address, store_down="fail") as client:
        async with away(bucket):
            task_id = await client.submit()
            failed = await client.until(task_id)
            assert (failed["status"], failed["error_code"], failed["images"]) == ("failed", "storage_failed", [])
            assert "store of pictures" in failed["error_message"]
            assert SECRET not in failed["error_message"]
            assert (await client.get("/readyz")).json()["code"] == "store_unreachable"
            assert (await client.get("/livez")).status_code == 200
            while spooled(tmp_path):
                await asyncio.sleep(0.01)
        assert (await client.until(await client.submit()))["status"] == "completed"
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.delete(f"/task/{task_id}")).status_code == 204


async def test_housekeeping_notices_that_the_bucket_is_back(start: Start, bucket: Bucket) -> None:
    async with start(store=bucket.address, store_down="fail", housekeeping_s=0.02) as client:
        async with away(bucket):
            while await health(client) == "ok":
                await asyncio.sleep(0.01)
        while await health(client) != "ok":
            await asyncio.sleep(0.01)


async def test_a_deletion_that_the_bucket_refuses_keeps_the_record_and_can_be_repeated(
    start: Start, bucket: Bucket
) -> None:
    async with start(store=bucket.address) as client:
        task_id = await client.submit()
        await client.until(task_id)
        async with away(bucket):
            answer = await client.delete(f"/task/{task_id}")
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unreachable")
            assert (await client.task(task_id))["status"] == "completed"
        assert (await client.delete(f"/task/{task_id}")).status_code == 204
        assert bucket.names() == []


async def test_uploaded_files_of_a_failed_task_are_deleted_with_its_record(
    start: Start, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put = s3.S3.put

    async def stop_after_one(self: s3.S3, name: str, data: bytes, media_type: str) -> None:
        await put(self, name, data, media_type)
        await asyncio.to_thread(bucket.stop)

    async with start(store=bucket.address, store_down="fail") as client:
        with monkeypatch.context() as patch:
            patch.setattr(s3.S3, "put", stop_after_one)
            task_id = await client.submit(batch_size=2)
            assert (await client.until(task_id))["error_code"] == "storage_failed"
            while spooled(tmp_path):  # that is the last thing to go
                await asyncio.sleep(0.01)
        await asyncio.to_thread(bucket.start)
        assert len(bucket.names()) == 1
        assert (await client.delete(f"/task/{task_id}")).status_code == 204
        assert bucket.names() == []


async def test_a_full_disk_under_the_spool_fails_the_task_and_not_the_service(
    start: Start, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with start(store=bucket.address) as client:
        with monkeypatch.context() as patch:
            patch.setattr(folder, "write_whole", full)
            failed = await client.until(await client.submit(batch_size=2))
            assert (failed["status"], failed["error_code"]) == ("failed", "storage_full")
        assert (await client.until(await client.submit()))["status"] == "completed"
        assert spooled(tmp_path) == []


async def test_the_worker_does_not_get_the_bucket_s_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    from imagegen.gpu.worker_engine import worker_environment

    told = worker_environment({"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": "http://x", "PATH": "/bin"})
    assert [name for name in told if name.startswith("AWS_")] == []
