"""models.yaml with a real server: the examples of the page, SIGHUP, restarts, kill -9."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagegen.catalog.loading import load_catalog, parse_catalog
from imagegen.testing import SPECS
from tests.conftest import fake_config
from tests.server import PATIENCE_S, Server

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
ADDRESS = "http://127.0.0.1:5050"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The page's own example, in a folder of its own."""
    path = tmp_path / "config" / "models.yaml"
    path.parent.mkdir()
    path.write_text(blocks("yaml")[0])
    return path


@pytest.fixture
def server(tmp_path: Path, config: Path) -> Iterator[Server]:
    with Server(tmp_path / "data", config) as server:
        yield server


def test_the_pages_examples_work_unchanged(server: Server, config: Path) -> None:
    script = "set -euo pipefail\n" + "\n".join(blocks("bash"))
    done = subprocess.run(
        ["bash", "-c", script.replace(ADDRESS, str(server.http.base_url).rstrip("/"))],
        cwd=config.parent,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert config.read_text() == blocks("yaml")[0]
    # SIGHUP reads the file again, and a broken one ends nothing.
    config.write_text("models: [\n")
    server.process.send_signal(signal.SIGHUP)
    until_ok(server, ok=False)
    assert server.http.get("/readyz").status_code == 200
    config.write_text(blocks("yaml")[0] + "    description: After.\n")
    server.process.send_signal(signal.SIGHUP)
    until_ok(server, ok=True)
    assert server.http.get("/models/tiny").json()["description"] == "After."
    assert server.terminate() == 0
    assert not any("Traceback" in line for line in server.log)


def until_ok(server: Server, *, ok: bool) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (status := server.http.get("/config/status").json())["ok"] != ok or status["waiting"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_yaml_on_the_page_reads(block: str) -> None:
    models = "" if "models:" in block else blocks("yaml")[0]  # a part that needs some
    assert parse_catalog(block + models, SPECS).models


def test_acknowledged_edits_survive_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(fake_config(fake={}))
    for steps in (5, 6):
        with Server(tmp_path / "data", path) as server:
            assert server.http.put("/models/fake", json={"steps": steps}).status_code == 200
            server.kill()
        assert load_catalog(path, SPECS).model("fake").steps == steps
    assert [it.name for it in tmp_path.iterdir() if it.name.endswith(".part")] == []
