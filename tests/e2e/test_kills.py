"""Workers that die at every possible moment: a task is retried at most once, and the service keeps running."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import fake_config
from tests.server import Server


@contextmanager
def asked_all_the_while(server: Server) -> Iterator[None]:
    """Request /livez until the end of the block, and check that it is always answered."""
    done, bad = threading.Event(), list[object]()

    def ask() -> None:
        with httpx.Client(base_url=server.http.base_url, timeout=10) as http:
            while not done.wait(0.02):
                try:
                    bad.extend([] if http.get("/livez").status_code == 200 else ["refused"])
                except httpx.HTTPError as error:
                    bad.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        done.set()
        asking.join()
    assert not bad


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("kills")
    models = {"step_seconds": 0.05}, {"load_seconds": 0.3}
    (folder / "models.yaml").write_text(fake_config(**dict(zip(("quick", "slow"), models, strict=True))))
    with Server(folder / "data", folder / "models.yaml") as server:
        server.until(server.submit())
        with asked_all_the_while(server):
            yield server
        assert server.http.get("/health").json()["queue_size"] == 0
        assert len(psutil.Process(server.process.pid).children(recursive=True)) == 1
        assert server.terminate() == 0


def until_told(server: Server, task_id: str, name: str, times: int = 1) -> None:
    """Wait until the task's stream has had the event this often."""
    with server.http.stream("GET", f"/task/{task_id}/events") as stream:
        for line in stream.iter_lines():
            times -= line == f"event: {name}"
            if not times:
                return


@pytest.mark.parametrize(
    ("model", "event", "times", "how"),
    [
        ("slow", "loading", 1, signal.SIGKILL),
        ("quick", "step", 2, signal.SIGSEGV),
        ("quick", "step", 4, signal.SIGABRT),  # the last one: the picture is on its way
    ],
)
def test_a_task_whose_worker_is_killed_is_completed(
    server: Server, model: str, event: str, times: int, how: signal.Signals
) -> None:
    ids = [server.submit(model=model), server.submit(model="quick")]
    until_told(server, ids[0], event, times)
    server.worker().send_signal(how)
    done = [server.until(task_id) for task_id in ids]
    assert [task["status"] for task in done] == ["completed", "completed"]
    assert sum(task["attempt"] for task in done) <= 3
    if model == "quick":  # it kept its place
        assert done[0]["completed_at"] < done[1]["completed_at"]


def test_a_worker_that_is_killed_while_idle_causes_one_retry(server: Server) -> None:
    server.until(server.submit())
    server.worker().kill()
    done = server.until(server.submit())
    assert (done["status"], done["attempt"]) in [("completed", 1), ("completed", 2)]


def test_a_task_that_loses_two_workers_fails_its_model_is_left_alone_and_the_next_one_runs(server: Server) -> None:
    poisonous, other = server.submit(model="quick", priority=-1), server.submit(model="slow")
    until_told(server, poisonous, "step")
    for _ in range(2):
        worker = server.worker()
        worker.kill()
        while server.worker() == worker:
            time.sleep(0.01)
    assert server.until(poisonous)["error_code"] == "worker_crashed"
    assert server.http.post("/text2image", json={"prompt": "x", "model": "quick"}).json()["code"] == "model_quarantined"
    assert server.until(other)["status"] == "completed"
    server.http.post("/models/quick/load").raise_for_status()
    assert server.until(server.submit(model="quick"))["status"] == "completed"


def test_the_tasks_of_an_earlier_run_are_in_the_queue_before_the_first_request_is_answered(
    tmp_path: Path, fake_yaml: Path
) -> None:
    with Server(tmp_path / "data", fake_yaml) as server:
        running = server.submit(model="fake", steps=200)
        server.until(running, "processing")
        waiting = [server.submit(model="fake", steps=1) for _ in range(200)]
        server.kill()
    with Server(tmp_path / "data", fake_yaml) as server:
        cleared = server.http.post("/queue/clear").json()["cancelled"]
        assert cleared in (len(waiting), len(waiting) + 1)  # the one that ran may have begun again
        assert all(server.task(task_id)["status"] == "cancelled" for task_id in waiting)
