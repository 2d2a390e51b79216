"""A real server process with a client on a real socket."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

#: How long any one thing may take here, in seconds; these machines are slow and shared.
PATIENCE_S = 120


def serve_command(data_dir: Path, config: Path | None = None, port: str = "0") -> list[str]:
    # A configuration of the tests may have fake models; the shipped one is served by the product itself.
    package = "imagegen" if config is None else "imagegen.testing"
    command = [sys.executable, "-m", package, "serve", "--port", port, "--data-dir", str(data_dir)]
    return command if config is None else [*command, "--config", str(config)]


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"IMAGEGEN_DEVICE": "cpu"} | variables


class Server:
    """`imagegen serve` in its own process group."""

    def __init__(self, data_dir: Path, config: Path | None = None, *, port: str = "0", **variables: str) -> None:
        """`port`: 0 lets the system choose a free one."""
        #: What it wrote to stderr, line by line.
        self.log: list[str] = []
        self.process = subprocess.Popen(
            serve_command(data_dir, config, port),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment(**variables),
        )
        # Read to the end: a full pipe would stop the server at its next line.
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        self.http = httpx.Client(base_url=self._address(), timeout=PATIENCE_S)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def _address(self) -> str:
        while self.process.poll() is None:
            for line in self.log:
                if '"listening"' in line:
                    return str(json.loads(line)["address"])
            time.sleep(0.01)
        raise AssertionError(f"the server did not start: {self.log}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.kill()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def submit(self, prompt: str = "a red circle on a blue background", **fields: Any) -> str:
        answer = self.http.post("/text2image", json={"prompt": prompt, **fields})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def task(self, task_id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/task/{task_id}").raise_for_status().json())

    def until(self, task_id: str, *statuses: str) -> dict[str, Any]:
        """Poll until the task has one of the statuses (default: until it has ended)."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            task = self.task(task_id)
            if task["status"] in (statuses or ("completed", "failed", "cancelled")):
                return task
            time.sleep(0.02)
        raise AssertionError(f"still {task['status']}")

    def pictures(self, task: dict[str, Any]) -> list[bytes]:
        return [self.http.get(image["url"]).raise_for_status().content for image in task["images"]]

    def worker(self) -> psutil.Process:
        """The living process that holds the models."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for child in psutil.Process(self.process.pid).children():
                if is_alive(child):
                    return child
            time.sleep(0.01)
        raise AssertionError("there is no worker")

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """kill -9 for the whole process group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
