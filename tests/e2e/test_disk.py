"""A disk that refuses every write for a while: no restart is needed, and nothing is lost."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server import PATIENCE_S, Server


@contextmanager
def refusing_disk(server: Server) -> Iterator[None]:
    """The kernel lets the service write to no file; pipes and sockets go on."""
    process = psutil.Process(server.process.pid)
    before = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, before)


def test_a_disk_that_refuses_writes_is_reported_until_it_works_again(tmp_path: Path, fake_yaml: Path) -> None:
    data = tmp_path / "data"
    with Server(data, fake_yaml) as server:
        done = server.until(server.submit("fine", model="fake", steps=1))
        running = server.submit("runs", model="fake", steps=40)
        waiting = server.submit("waits", model="fake", steps=1)
        server.until(running, "processing")
        with refusing_disk(server):
            refused = server.http.post("/text2image", json={"prompt": "now?", "model": "fake"})
            assert refused.status_code in (503, 507)
            assert refused.json()["code"] in ("storage_failed", "storage_full")
            assert server.task(done["task_id"]) == done
            assert server.pictures(done)
            assert server.http.get("/livez").status_code == 200
            assert server.http.get("/tasks").json()["total"] == 3
            for task_id in (running, waiting):
                assert server.until(task_id)["error_code"] in ("storage_failed", "storage_full")
        assert server.until(server.submit("and now?", model="fake", steps=1))["status"] == "completed"
        assert not list(data.rglob("*.part"))
        assert server.terminate() == 0
    with Server(data, fake_yaml) as server:  # what the disk refused at first was written down later
        assert server.task(running)["error_code"] in ("storage_failed", "storage_full")


@pytest.mark.parametrize("lost", ["imagegen.sqlite3", "lock", ""])
def test_a_data_directory_that_is_removed_ends_the_service_with_a_reason(
    tmp_path: Path, fake_yaml: Path, lost: str
) -> None:
    """`lost`: the file that is removed; empty: the directory is moved."""
    data = tmp_path / "data"
    with Server(data, fake_yaml) as server:
        accepted = server.submit("runs", model="fake", steps=40)
        server.until(accepted, "processing")
        if lost:
            (data / lost).unlink()
        else:
            data.rename(tmp_path / "elsewhere")
        with suppress(httpx.TransportError):
            while True:  # until its end no task is accepted that would be lost
                answer = server.http.post("/text2image", json={"prompt": "now?", "model": "fake"})
                assert answer.status_code == 503 or lost == "lock"
                assert answer.status_code in (202, 503)
        assert server.process.wait(PATIENCE_S) == 74
        assert any("journal_lost" in line and "was removed" in line for line in server.log)
