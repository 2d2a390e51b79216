"""Pictures in a bucket: a real service, a local S3 server that stops and returns, signals, and kill -9."""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import fake_config
from tests.s3 import SECRET, Bucket
from tests.server import PATIENCE_S, Server

PAGE = (Path(__file__).parents[2] / "docs" / "storage.md").read_text()
ADDRESS = "http://127.0.0.1:5050"


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket() as made:
        yield made


def serve(tmp_path: Path, bucket: Bucket, *, steps: int = 4, **settings: str) -> Server:
    """A service with a fake model whose pictures are kept in the bucket."""
    config = tmp_path / "models.yaml"
    config.write_text(fake_config(fake={"step_seconds": 0.02, "steps": steps}))
    # In a thread: no worker process to wait for at each of many starts.
    usual = {"IMAGEGEN_STORE": bucket.address, "IMAGEGEN_ISOLATION": "thread"} | bucket.environment
    return Server(tmp_path / "data", config, **usual | settings)


def storing(server: Server, task_id: str) -> None:
    """Wait until the task's pictures wait for the bucket."""
    deadline = time.monotonic() + PATIENCE_S
    while not server.task(task_id).get("storing"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def spooled(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "data" / "spool").rglob("*") if path.is_file()]


def whole(server: Server, task: dict[str, Any]) -> bool:
    """Whether its pictures are there and match their digests."""
    answers = [server.http.get(image["url"], follow_redirects=True) for image in task["images"]]
    return task["status"] == "completed" and all(
        answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"' for answer in answers
    )


def run_the_pages_examples(server: Server, folder: Path) -> None:
    """The blocks of the page run unchanged, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 3
    script = "set -euo pipefail\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script.replace(ADDRESS, str(server.http.base_url).rstrip("/"))],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pictures_go_to_the_bucket_come_from_it_and_the_pages_examples_work(tmp_path: Path, bucket: Bucket) -> None:
    with serve(tmp_path, bucket) as server:
        task = server.until(server.submit(batch_size=2))
        assert whole(server, task)
        assert sorted(bucket.names()) == sorted(task["result_files"])
        run_the_pages_examples(server, tmp_path)
        assert server.terminate() == 0
    assert spooled(tmp_path) == []
    # The same pictures, as the bucket itself gives them out.
    with serve(tmp_path, bucket, IMAGEGEN_STORE_URLS="presigned", IMAGEGEN_STORE_URL_S="60") as server:
        for image in task["images"]:
            answer = server.http.get(image["url"])
            assert answer.status_code == 307
            assert httpx.get(answer.headers["location"]).content.startswith(b"\x89PNG")
        server.http.delete(f"/task/{task['task_id']}").raise_for_status()
        assert not set(task["result_files"]) & set(bucket.names())


def test_nothing_is_lost_while_the_bucket_is_down_whatever_happens_to_the_service(
    tmp_path: Path, bucket: Bucket
) -> None:
    bucket.stop()
    with serve(tmp_path, bucket) as server:
        ids = [server.submit(seed=seed) for seed in range(5)]
        storing(server, ids[0])
        server.kill()
    made = {path.name: path.read_bytes() for path in spooled(tmp_path)}
    with serve(tmp_path, bucket, IMAGEGEN_DRAIN_TIMEOUT_S="3600") as server:
        storing(server, ids[0])
        assert server.http.get("/health").json()["store"] == "unreachable"
        assert server.terminate() == 0  # which waits for no bucket
        assert any('"store_refused"' in line for line in server.log)
        said = server.log
    bucket.start()
    with serve(tmp_path, bucket) as server:
        done = [server.until(task_id) for task_id in ids]
        assert all(whole(server, task) for task in done)
        # None was made twice, and none failed for having been interrupted.
        assert done[0]["attempt"] == 1
        assert server.http.get(done[0]["images"][0]["url"]).content == made[f"{ids[0]}-0.png"]
        assert sorted(bucket.names()) == sorted(name for task in done for name in task["result_files"])
        said += [server.http.get(path).text for path in ("/health", "/tasks", "/openapi.json")]
        assert server.terminate() == 0
    assert spooled(tmp_path) == []
    assert SECRET not in "".join(said + server.log)


def test_with_fail_a_task_ends_with_a_clear_code(tmp_path: Path, bucket: Bucket) -> None:
    bucket.stop()
    with serve(tmp_path, bucket, IMAGEGEN_STORE_DOWN="fail") as server:
        failed = server.until(server.submit())
        assert (failed["status"], failed["error_code"]) == ("failed", "storage_failed")
        assert server.http.get("/readyz").status_code == 503
    bucket.start()
    assert bucket.names() == []


@pytest.mark.slow
def test_twenty_kills_at_any_moment_with_an_unreliable_bucket(tmp_path: Path, bucket: Bucket) -> None:
    ids = list[str]()
    for number in range(20):
        with serve(tmp_path, bucket) as server:
            ids += [server.submit(seed=seed) for seed in range(2)]
            time.sleep(0.07 * number % 0.5)
            bucket.stop()
            time.sleep(0.11 * number % 0.5)
            server.kill()
        bucket.start()
    with serve(tmp_path, bucket) as server:
        done = [server.until(task_id) for task_id in ids]
        ended = {task["task_id"]: (task["status"], task.get("error_code")) for task in done}
        # A kill counts against a task only while its pictures are made.
        assert set(ended.values()) <= {("completed", None), ("failed", "interrupted")}
        assert all(whole(server, task) for task in done if task["status"] == "completed")
        named = {name for task in done for name in task.get("result_files", [])}
        assert named <= set(bucket.names())
    assert spooled(tmp_path) == []


def test_keys_that_are_missing_exit_78_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "imagegen", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"IMAGEGEN_STORE": "s3://pictures", "AWS_SECRET_ACCESS_KEY": SECRET}
    refused = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment)
    assert refused.returncode == 78
    assert "settings of the store" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert SECRET not in refused.stderr
