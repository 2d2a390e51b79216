"""The service as a whole: restart, drain, crash, files, documents."""

import asyncio
import re
import sqlite3
from collections import deque
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from structlog.testing import capture_logs

from imagegen.api.sse import Streams
from imagegen.catalog.writer import CatalogWriter
from imagegen.core.errors import StorageFailed, StorageFull, TooManyStreams
from imagegen.core.owner import ANYONE, Owner
from imagegen.hub.puller import ModelPuller
from imagegen.storage.images import ImageStore
from imagegen.storage.journal import TaskJournal
from imagegen.tasks.records import Records
from imagegen.testing.service import new_service
from imagegen.webhooks.sender import WebhookSender
from tests.api.conftest import Client, FullDisk, Start

SLOW = {"fake": {"step_seconds": 0.02}}


async def test_draining_refuses_new_tasks_ends_streams_and_keeps_answering(start: Start) -> None:
    async with start(models=SLOW) as client:
        running = await client.submit(steps=20)
        await client.until(running, "processing")
        stream = asyncio.create_task(client.get(f"/task/{running}/events"))
        await asyncio.sleep(0)
        client.app.state.lifecycle.begin_drain()
        answer = await client.post("/text2image", json={"prompt": "x"})
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert int(answer.headers["retry-after"]) > 0
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/health")).json()["status"] == "draining"
        assert (await client.post("/models/unload")).json()["code"] == "draining"
        assert "completed" not in (await stream).text
        assert (await client.until(running))["status"] == "completed"


async def test_a_drain_that_is_asked_for_before_the_tasks_run_begins_when_they_do(tmp_path: Path) -> None:
    """SIGTERM in the first moments of a start, while the folder of pictures is read."""
    service = new_service(tmp_path)
    service.lifecycle.begin_drain()
    async with asyncio.timeout(60), service.lifecycle.run():
        while not service.lifecycle.ended:
            await asyncio.sleep(0.01)


async def test_a_drain_that_is_short_of_time_puts_the_running_task_back(start: Start) -> None:
    async with start(models=SLOW, drain_timeout_s=0.05) as client:
        ids = [await client.submit(str(i), steps=50, seed=i) for i in range(3)]
        await client.until(ids[0], "processing")
    async with start(models=SLOW) as client:
        done = [await client.until(task_id) for task_id in ids]
    assert [(task["status"], task["attempt"]) for task in done] == [("completed", 1)] * 3
    assert [task["images"][0]["seed"] for task in done] == [0, 1, 2]


async def test_a_device_fault_in_thread_mode_ends_the_service_and_the_task_is_tried_once_more(start: Start) -> None:
    models = {"fake": {"fault": "device_fault", "fault_prompt": "poison"}}
    async with start(models=models) as client:
        task_id = await client.submit("poison")
        while not client.app.state.lifecycle.crashed:
            await asyncio.sleep(0.01)
        assert (await client.task(task_id))["status"] == "processing"
    async with start(models=models) as client:
        while not client.app.state.lifecycle.crashed:
            await asyncio.sleep(0.01)
    async with start(models=models) as client:
        task = await client.until(task_id)
        assert (task["status"], task["error_code"], task["attempt"]) == ("failed", "interrupted", 2)
        assert not client.app.state.lifecycle.crashed


@pytest.mark.parametrize(
    ("owner", "method", "job"),
    [
        (ModelPuller, "run", "pulls"),
        (CatalogWriter, "run", "config file"),
        (WebhookSender, "run", "webhooks"),
        (Records, "write_ends", "write_ends"),
    ],
)
async def test_a_job_that_an_error_ends_ends_the_service(
    start: Start, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, job: str
) -> None:
    let = asyncio.Event()

    async def fail(self: object) -> None:
        await let.wait()
        raise RuntimeError("a bug")

    with capture_logs() as lines, monkeypatch.context() as patch:
        fail.__name__ = method
        patch.setattr(owner, method, fail)
        async with start(housekeeping_s=0.01) as client:
            lifecycle = client.app.state.lifecycle
            assert (await client.until(await client.submit()))["status"] == "completed"
            assert not lifecycle.crashed
            let.set()
            async with asyncio.timeout(60):
                while not lifecycle.ended:
                    await asyncio.sleep(0.01)
            assert lifecycle.crashed
            assert (await client.get("/readyz")).status_code == 503
            said = (await client.get("/health")).json()
            assert (said["status"], said["problems"][0]["code"]) == ("unhealthy", "service_crashed")
            patch.undo()
    (line,) = [line for line in lines if line["event"] == "service_crashed"]
    assert (line["job"], line["reason"], line["log_level"]) == (job, "RuntimeError('a bug')", "critical")
    (line,) = [line for line in lines if line["event"] == "draining"]
    assert (line["reason"], line["waiting"], line["running"]) == ("crash", 0, 0)


async def test_a_chore_that_the_system_refuses_is_tried_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([OSError(24, "Too many open files")])

    async def refuse(self: object) -> None:
        if (error := next(left, None)) is not None:
            raise error

    refuse.__name__ = "write_ends"
    with capture_logs() as lines, monkeypatch.context() as patch:
        patch.setattr(Records, "write_ends", refuse)
        async with start(housekeeping_s=0.01) as client:
            while not (failed := [line for line in lines if line["event"] == "housekeeping_failed"]):
                await asyncio.sleep(0.01)
            assert not client.app.state.lifecycle.crashed
    assert (failed[0]["chore"], failed[0]["code"]) == ("write_ends", "os_error")


async def test_a_full_disk_fails_the_task_and_not_the_service(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise StorageFull

    async with start() as client:
        with monkeypatch.context() as patch:
            patch.setattr(ImageStore, "_save", refuse)
            failed = await client.until(await client.submit())
            assert (failed["status"], failed["error_code"]) == ("failed", "storage_full")
        assert (await client.until(await client.submit()))["status"] == "completed"


async def test_an_end_that_the_disk_refused_is_true_and_written_down_later(start: Start, tmp_path: Path) -> None:
    disk = FullDisk(tmp_path, "update")
    async with start(housekeeping_s=0.02, journal=disk) as client:
        task_id = await client.submit()
        task = await client.until(task_id)
        assert (task["status"], len(task["images"])) == ("completed", 1)
        assert (await client.get("/tasks")).json()["tasks"][0]["status"] != "completed"
        disk.full = ()
        while (await client.get("/tasks")).json()["tasks"][0]["status"] != "completed":
            await asyncio.sleep(0.01)
        assert await client.task(task_id) == task


async def test_a_task_that_the_journal_cannot_store_is_not_accepted(start: Start, tmp_path: Path) -> None:
    disk = FullDisk(tmp_path, "insert")
    async with start(journal=disk) as client:
        answer = await client.post("/text2image", json={"prompt": "x"})
        assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
        disk.full = ()
        assert (await client.get("/health")).json()["queue_size"] == 0
        assert (await client.until(await client.submit()))["status"] == "completed"


async def test_images_are_served_safely_and_nothing_else_is(client: Client, tmp_path: Path) -> None:
    task = await client.until(await client.submit())
    answer = await client.get(task["images"][0]["url"])
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "immutable" in answer.headers["cache-control"]
    head = await client.head(task["images"][0]["url"])
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", answer.headers["etag"])
    part = await client.get(task["images"][0]["url"], headers={"range": "bytes=0-7"})
    assert (part.status_code, part.content) == (206, b"\x89PNG\r\n\x1a\n")

    (tmp_path / "data" / "images" / "20260101").mkdir()
    planted = tmp_path / "data" / "images" / "20260101" / ("0" * 36 + "-0.png")
    planted.symlink_to(tmp_path / "data" / "imagegen.sqlite3")
    for path in (
        "/images/20260101/" + planted.name,
        "/images/../imagegen.sqlite3",
        "/images/%2e%2e/imagegen.sqlite3",
        "/images/..%2fimagegen.sqlite3/x",
        "/images/20260101/..%2f..%2fimagegen.sqlite3",
    ):
        answer = await client.get(path)
        assert answer.status_code == 404, path
        assert b"SQLite" not in answer.content


async def test_a_bug_answers_500_without_its_text(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: TaskJournal) -> int:
        raise RuntimeError("secret")

    monkeypatch.setattr(TaskJournal, "count", fail)
    answer = await client.get("/health")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


async def test_every_operation_is_documented(client: Client) -> None:
    document = (await client.get("/openapi.json")).json()
    ids = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            ids.append(operation["operationId"])
            assert operation["summary"], where
            assert operation["description"], where
            assert re.fullmatch(r"[a-z0-9_]{3,20}", operation["operationId"]), where
            assert "HTTPValidationError" not in str(operation), where
    assert len(ids) == len(set(ids))
    for reference in re.findall(r"#/components/schemas/(\w+)", str(document)):
        assert reference in document["components"]["schemas"]


async def test_the_documentation_needs_no_other_host(client: Client) -> None:
    page = (await client.get("/docs")).text
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources
    for source in sources:
        assert source.startswith("/"), source
        assert (await client.get(source)).status_code == 200


async def test_housekeeping_continues_after_the_disk_refused_once(start: Start, tmp_path: Path) -> None:
    disk = FullDisk(tmp_path, "surplus")
    async with start(housekeeping_s=0.01, journal=disk) as client:
        while disk.refused < 3:
            await asyncio.sleep(0.01)
        assert (await client.until(await client.submit()))["status"] == "completed"


async def test_a_journal_of_a_newer_version_is_left_alone(start: Start, tmp_path: Path) -> None:
    async with start() as client:
        await client.until(await client.submit())
    database = sqlite3.connect(tmp_path / "data" / "imagegen.sqlite3")
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.commit()
    database.close()
    with pytest.raises(StorageFailed, match="by a newer imagegen"):
        async with start():
            pass


# -- event streams -----------------------------------------------------------------------------------------------------


async def test_event_streams_are_bounded_for_each_caller_and_together() -> None:
    streams, alice = Streams(3, 2), Owner(name="alice")
    with streams.one(ANYONE, "a"), streams.one(ANYONE, "a"):
        with pytest.raises(TooManyStreams) as raised, streams.one(ANYONE, "a"):
            pass
        assert raised.value.retry_after
        with streams.one(ANYONE, "b"), pytest.raises(TooManyStreams), streams.one(ANYONE, "c"):
            pass
    with streams.one(alice, "a"), streams.one(alice, "b"):  # a key counts wherever it is used
        with pytest.raises(TooManyStreams), streams.one(alice, "c"):
            pass
        with streams.one(Owner(name="bob"), "a"):
            pass
        with streams.one(ANYONE, "alice"):
            pass
    assert repr(streams) == "<Streams [0], Callers: 0>"


async def test_a_stream_too_many_is_told_when_to_come_back(start: Start) -> None:
    async with start(max_event_streams=1) as client:
        task_id = await client.submit()
        with client.app.state.streams.one(ANYONE, "another"):
            for path in ("/events", f"/task/{task_id}/events"):
                answer = await client.get(path)
                assert (answer.status_code, answer.json()["code"]) == (503, "too_many_streams")
                assert answer.headers["retry-after"] == "5"
        assert (await client.get(f"/task/{task_id}/events")).status_code == 200
        assert repr(client.app.state.streams) == "<Streams [0], Callers: 0>"


def entries(start: Any) -> int:
    """The entries of all containers that the service's objects hold."""
    found, waiting, seen = 0, [start], set[int]()
    while waiting:
        it = waiting.pop()
        if id(it) in seen:
            continue
        seen.add(id(it))
        if isinstance(it, dict | MappingProxyType):
            found, waiting = found + len(it), [*waiting, *it.values()]
        elif isinstance(it, list | tuple | set | frozenset | deque):
            found, waiting = found + len(it), [*waiting, *it]
        elif type(it).__module__.startswith(("imagegen", "asyncio.queues", "limits")):
            waiting += vars(it).values() if hasattr(it, "__dict__") else ()
    return found


async def test_nothing_is_kept_of_names_that_do_not_exist(client: Client) -> None:
    async def ask(name: str) -> None:
        for method, path in (
            *(("GET", path) for path in ("/models/{}", "/task/{}", "/images/{}/x", "/tasks?model={}", "/keys/{}")),
            *(("POST", path) for path in ("/models/{}/load", "/models/{}/pull", "/task/{}/cancel", "/keys/{}/rotate")),
        ):
            key = {"X-API-Key": name * 10}
            answer = await client.request(method, path.format(name), headers=key)
            assert answer.status_code == (200 if "?" in path else 404), path
        for path in ("/text2image", "/plan"):
            answer = await client.post(path, json={"prompt": "x", "model": name})
            assert answer.json()["code"] == "model_not_found"

    await ask("once")
    before = entries(client.app.state.services)
    await client.until(await client.submit())
    assert entries(client.app.state.services) > before  # something is kept of a task that exists
    before = entries(client.app.state.services)
    for number in range(30):
        await ask(f"unknown-{number}")
    assert entries(client.app.state.services) == before
