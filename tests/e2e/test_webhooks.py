"""Webhooks with a real server: the examples of the page, and kill -9 between and during attempts."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.conftest import fake_config
from tests.receiver import OLDER_SECRET, SECRET, Received, as_variables, hooks, receiving
from tests.server import PATIENCE_S, Server, environment

PAGE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
ALL = ["started", "completed", "failed", "cancelled"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_the_pages_examples_work_unchanged(tmp_path: Path) -> None:
    ports = {"5050": str(free_port()), "8000": str(free_port())}
    blocks = {
        language: [
            re.sub(r"\b(5050|8000)\b", lambda found: ports[found[0]], block)
            for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
        ]
        for language in ("python", "bash")
    }
    (tmp_path / "receiver.py").write_text(blocks["python"][0])
    script = "set -euo pipefail\n" + "\n".join(blocks["bash"])
    running = subprocess.Popen(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment(
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            IMAGEGEN_DATA_DIR=str(tmp_path / "data"),
            IMAGEGEN_PORT=ports["5050"],
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        # The shell ends, what it has started goes on and holds the pipe.
        assert running.wait(PATIENCE_S) == 0
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        said = running.communicate()[0]
    assert '"state":"delivered"' in said
    assert (tmp_path / "told.txt").read_text().startswith("task.completed ")


def by_id(received: list[Received]) -> dict[str, list[Received]]:
    tries = defaultdict(list)
    for each in received:
        tries[each.id].append(each)
    return tries


def types(received: list[Received], task_id: str, secret: str) -> list[str]:
    """The delivered events of a task, each one once."""
    said = [tries[0].verified(secret) for tries in by_id(received).values()]
    return [each["type"] for each in said if each["data"]["task_id"] == task_id]


def test_through_kill_9_each_event_arrives_at_least_once_with_the_same_id_on_each_try(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(fake_config(fake={"step_seconds": 0.02}))
    with receiving() as receiver:
        old = as_variables(hooks(receiver, secrets=(OLDER_SECRET,), delays_s="600"))
        new = as_variables(hooks(receiver, secrets=(SECRET, OLDER_SECRET), delays_s="600"))
        # Killed while the first attempt is under way.
        receiver.replies_with("/in", "hang")
        with Server(tmp_path / "data", config, **old) as server:
            quick = server.submit(webhook_url=receiver.url("/in"), webhook_events=ALL, steps=1)
            server.until(quick)
            slow = server.submit(webhook_url=receiver.url("/in"), webhook_events=ALL, steps=100)
            server.until(slow, "processing")
            receiver.until("/in", 2)
            server.kill()
        # Killed between two attempts, and signed by two secrets from now on.
        receiver.replies_with("/in", 500)
        with Server(tmp_path / "data", config, **new) as server:
            receiver.until("/in", 4)
            server.until(slow)
            server.kill()
        receiver.replies_with("/in", 200)
        with Server(tmp_path / "data", config, **new) as server:
            left = ["pending"]
            while left:
                left = server.http.get("/webhooks/deliveries?state=pending").raise_for_status().json()["deliveries"]
            assert server.terminate() == 0
        received = receiver.received
    for tries in by_id(received).values():
        assert len({each.body for each in tries}) == 1
        assert all(each.verified(OLDER_SECRET) for each in tries)
        assert tries[-1].verified(SECRET)
    assert types(received, quick, OLDER_SECRET) == ["task.started", "task.completed"]
    of_slow = types(received, slow, OLDER_SECRET)
    assert of_slow[-1] == "task.completed"
    assert set(of_slow[:-1]) == {"task.started"}
    assert len(of_slow) >= 3  # it was begun again
    assert max(len(tries) for tries in by_id(received).values()) >= 3
