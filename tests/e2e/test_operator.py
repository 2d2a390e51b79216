"""An operator's hour: nginx in front, keys, a broken models.yaml, a dead worker, a failed task, a backup elsewhere."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from imagegen.testing.config import fake_config
from tests.collector import Received, collecting
from tests.commands import command
from tests.metrics import Scrape
from tests.proxies import DEPLOY, NGINX, NO_NGINX, free_port, nginx, trusting
from tests.server import PATIENCE_S, Server

MODELS = fake_config(good={}, slow={"step_seconds": 0.5, "steps": 100}, bad={"fault": "error"})


class Operator:
    """What an operator sees through the proxy, with a key for everything."""

    def __init__(self, base: str, folder: Path, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=base, verify=trusting(folder), headers=headers, timeout=PATIENCE_S)

    def run(self, model: str) -> dict[str, object]:
        asked = {"prompt": "a picture", "model": model}
        return dict(self.http.post("/text2image", json=asked, headers={"Prefer": "wait=60"}).json())

    def metrics(self) -> Scrape:
        return Scrape(self.http.get("/metrics").raise_for_status().text)

    def pictures(self, task_id: object) -> list[bytes]:
        task = self.http.get(f"/task/{task_id}").raise_for_status()
        urls = [task.url.join(image["url"]) for image in task.json()["images"]]
        return [self.http.get(url).raise_for_status().content for url in urls]


@contextmanager
def behind_nginx(server: Server, folder: Path, key: str) -> Iterator[Operator]:
    folder.mkdir()
    port, upstream = free_port(), server.http.base_url.port
    assert upstream is not None
    with nginx(folder, "imagegen.conf", port, upstream):
        operator = Operator(f"https://localhost:{port}/imagegen", folder, key)
        with operator.http:
            yield operator


def alert(name: str) -> str:
    """The expression of an alert."""
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    found = re.search(rf"alert: {name}\n +expr: (.*)\n", rules)
    assert found is not None
    return found[1]


def until(true: Callable[[], bool]) -> None:
    """Ask again until it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ids_of(span: Received) -> tuple[object, object]:
    return span.attributes.get("imagegen.task_id"), span.attributes.get("error.type")


@pytest.mark.skipif(NGINX is None, reason=NO_NGINX)
def test_an_operators_drill(tmp_path: Path) -> None:
    config, data = tmp_path / "models.yaml", tmp_path / "data"
    config.write_text(MODELS)
    made = command("keys", "create", "operator", "--data-dir", data, *("--scope", "admin"), *("--scope", "read"))
    key = made.stdout.strip()
    proxied = {"IMAGEGEN_ROOT_PATH": "/imagegen", "IMAGEGEN_TRUSTED_PROXIES": "127.0.0.1"}
    with (
        collecting() as collector,
        Server(data, config, **proxied, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as server,
        behind_nginx(server, tmp_path / "nginx", key) as operator,
    ):
        assert server.http.get("/tasks").status_code == 401  # no key, no answer
        done = operator.run("good")
        assert done["status"] == "completed"
        assert operator.metrics().value("tasks_total", model="good", end="completed") == 1

        # models.yaml is broken: the service goes on, says so, and is mended.
        assert alert("ImagegenConfigBroken") == "imagegen_config_ok == 0"
        config.write_text("models: [\n")
        until(lambda: operator.http.get("/health").json()["status"] == "degraded")
        assert operator.metrics().value("config_ok") == 0
        assert operator.run("good")["status"] == "completed"
        config.write_text(MODELS)
        until(lambda: operator.metrics().value("config_ok") == 1)
        assert operator.http.get("/health").json()["status"] == "healthy"

        # The worker dies under a task, which runs again.
        running = operator.http.post("/text2image", json={"prompt": "x", "model": "slow", "steps": 4}).json()["task_id"]
        with operator.http.stream("GET", f"/task/{running}/events") as events:
            next(line for line in events.iter_lines() if line == "event: step")
        server.worker().kill()
        until(lambda: operator.http.get(f"/task/{running}").json()["status"] not in ("pending", "processing"))
        task = operator.http.get(f"/task/{running}").json()
        assert (task["status"], task["attempt"]) == ("completed", 2)
        assert operator.metrics().value("worker_restarts_total", reason="crashed") == 1

        # A failed task is found by its id in the log and in its trace, and by its code in the metrics.
        failed = operator.run("bad")
        task_id, code = failed["task_id"], failed["error_code"]
        assert failed["status"] == "failed"
        assert operator.metrics().value("tasks_total", model="bad", end="failed", code=str(code)) == 1
        lines = [json.loads(line) for line in server.log if str(task_id) in line]
        assert {"task_accepted", "task_started", "task_ended"} <= {line["event"] for line in lines}
        assert [line["code"] for line in lines if line["event"] == "task_ended"] == [code]
        until(lambda: any(it.name == "task" and ids_of(it) == (task_id, code) for it in collector.spans))
        (span,) = (it for it in collector.spans if it.name == "task" and ids_of(it) == (task_id, code))
        assert {it.name for it in collector.trace(span.trace)} >= {"queue", "task"}

        # A backup, while the service runs.
        backup = command("backup", tmp_path / "backup", "--data-dir", data, "--config", config)
        assert backup.exit_code == 0, backup.output
        pictures = operator.pictures(done["task_id"])
        assert server.terminate() == 0

    there = tmp_path / "elsewhere"
    restored = command(
        *("restore", tmp_path / "backup", "--data-dir", there / "data", "--config", there / "models.yaml")
    )
    assert restored.exit_code == 0, restored.output
    with (
        Server(there / "data", there / "models.yaml", **proxied) as server,
        behind_nginx(server, tmp_path / "nginx-there", key) as operator,
    ):
        assert operator.pictures(done["task_id"]) == pictures
        assert operator.http.get(f"/task/{task_id}").json()["error_code"] == code
        assert server.terminate() == 0
