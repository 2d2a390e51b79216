"""Pulling weights: the command and the service against a fake hub."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from imagegen.builtin import builtin_model
from tests.e2e import test_cli
from tests.hub import Hub
from tests.server import PATIENCE_S, Server

#: Bytes of everything that a pull fetches.
WEIGHTS = sum(
    file.stat().st_size for file in builtin_model("tiny").rglob("*") if file.is_file() and file.suffix != ".md"
)
BIG = "transformer/diffusion_pytorch_model.safetensors"
TINY = {
    "name": "Tiny from the hub",
    "type": "flux",
    "hf_path": "org/tiny",
    "torch_dtype": "float32",
    "base_size": 128,
    "steps": 4,
    "guidance_scale": 0,
    "max_sequence_length": 64,
}
imagegen = partial(test_cli.imagegen, module="imagegen.testing")

FAKE = {"name": "fake", "type": "fake", "base_size": 64, "steps": 2}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        hub.add_folder("org/tiny", builtin_model("tiny"))
        yield hub


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def write_config(tmp_path: Path, **settings: Any) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(json.dumps({"global": settings, "models": {"fake": FAKE, "tiny-hub": TINY}}))
    return path


def pull(hub: Hub, home: Path, config: Path, token: str | None = None) -> subprocess.CompletedProcess[str]:
    return imagegen("models", "pull", "tiny-hub", "--config", config, env=os.environ | hub.environment(home, token))


def wait_for_half(hub: Hub) -> None:
    """Wait until the paused hub has sent everything."""
    deadline = time.monotonic() + PATIENCE_S
    sent = -1
    while not hub.downloads(BIG) or hub.sent != sent or sent < 1_000_000:
        sent = hub.sent
        assert time.monotonic() < deadline
        time.sleep(0.3)


def red_circle(server: Server, task: dict[str, Any]) -> bool:
    with Image.open(io.BytesIO(server.pictures(task)[0])) as image:
        red, _, blue = image.getpixel((64, 64))  # type: ignore[misc]
    return bool(red > 150 > blue)


# -- the command ---------------------------------------------------------------------------------------------------


def test_a_model_is_pulled_listed_and_drawn_with_without_a_network(hub: Hub, tmp_path: Path, config: Path) -> None:
    home, env = tmp_path / "hf", os.environ | hub.environment(tmp_path / "hf")
    assert "not here" in imagegen("models", "--config", config, env=env).stdout
    done = pull(hub, home, config)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The weights of tiny-hub are here.\n"
    assert re.search(r"(\d+\.\d)/\1 MB", done.stderr)
    assert "not here" not in imagegen("models", "--config", config, env=env).stdout
    assert pull(hub, home, config).stdout == "The weights of tiny-hub are already here.\n"
    hub.asked.clear()
    out = tmp_path / "out.png"
    drawn = imagegen(
        "generate", "a red circle on a blue background", "-m", "tiny-hub", "-o", out, "--config", config, env=env
    )
    assert drawn.returncode == 0, drawn.stderr
    assert hub.asked == []
    with Image.open(out) as image:
        assert image.size == (128, 128)


def test_ctrl_c_keeps_the_arrived_bytes_and_the_next_pull_resumes(hub: Hub, tmp_path: Path, config: Path) -> None:
    hub.flowing.clear()
    command = [sys.executable, "-m", "imagegen.testing", "models", "pull", "tiny-hub", "--config", str(config)]
    env = os.environ | hub.environment(tmp_path)
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        wait_for_half(hub)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 1
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "the same command resumes the pull" in said
    assert "Traceback" not in said
    assert not children[0].is_running()
    hub.flowing.set()
    hub.asked.clear()
    assert pull(hub, tmp_path, config).returncode == 0
    assert all(asked.first_byte > 0 for asked in hub.downloads(BIG))


def test_a_pull_whose_command_is_killed_ends_with_it(hub: Hub, tmp_path: Path, config: Path) -> None:
    hub.flowing.clear()
    command = [sys.executable, "-m", "imagegen.testing", "models", "pull", "tiny-hub", "--config", str(config)]
    env = os.environ | hub.environment(tmp_path)
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
        wait_for_half(hub)
        (child,) = psutil.Process(process.pid).children()
        process.kill()
    gone, _ = psutil.wait_procs([child], PATIENCE_S)
    assert gone == [child]


@pytest.mark.parametrize(
    ("faults", "code", "words"),
    [
        ({"gated": True}, 77, "'org/tiny' is gated"),
        ({"private": True}, 69, "There is no repository 'org/tiny' on the hub, or it is private"),
        ({"damaged": {BIG}}, 75, "arrived damaged"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line_with_an_exit_code(
    hub: Hub, tmp_path: Path, config: Path, faults: dict[str, Any], code: int, words: str
) -> None:
    hub.add_folder("org/tiny", builtin_model("tiny"), **faults)
    done = pull(hub, tmp_path, config)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rate_limit_ends_the_command_with_when_to_come_back(hub: Hub, tmp_path: Path, config: Path) -> None:
    hub.rate_limit = 120
    done = pull(hub, tmp_path, config)
    assert done.returncode == 75
    assert "try again in 120 seconds" in done.stderr


def test_impossible_pulls(hub: Hub, tmp_path: Path, config: Path) -> None:
    env = os.environ | hub.environment(tmp_path)
    unknown = imagegen("models", "pull", "nope", "--config", config, env=env)
    assert (unknown.returncode, unknown.stderr) == (65, "There is no model 'nope'; `imagegen models` lists them.\n")
    assert (
        imagegen("models", "--config", config, "pull", "fake", env=env).stdout
        == "The weights of fake are already here.\n"
    )


# -- the service ---------------------------------------------------------------------------------------------------


def until_pulled(server: Server, *states: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        model = dict(server.http.get("/models/tiny-hub").raise_for_status().json())
        if model["pull"] and model["pull"]["state"] in states:
            return model
        time.sleep(0.02)
    raise AssertionError(model["pull"])


def test_the_service_pulls_reports_and_draws(hub: Hub, tmp_path: Path, config: Path) -> None:
    with Server(tmp_path / "data", config, **hub.environment(tmp_path / "hf")) as server:
        before = server.http.get("/models/tiny-hub").json()
        assert (before["weights_here"], before["pull"]) == (False, None)
        failed = server.until(server.submit(model="tiny-hub"))
        assert failed["error_code"] == "weights_missing"
        assert "`imagegen models pull tiny-hub`" in failed["error_message"]
        hub.flowing.clear()
        begun = server.http.post("/models/tiny-hub/pull")
        assert begun.status_code == 202
        assert begun.json()["state"] in ("waiting", "downloading")
        wait_for_half(hub)
        assert server.http.post("/models/tiny-hub/pull").json()["state"] == "downloading"
        half = until_pulled(server, "downloading")["pull"]
        assert 0 < half["bytes_done"] < half["bytes_total"] == WEIGHTS
        hub.flowing.set()
        with server.http.stream("GET", "/models/tiny-hub/pull/events") as events:
            lines = [line for line in events.iter_lines() if line.startswith("event: ")]
        assert lines[-1] == "event: ready"
        after = server.http.get("/models/tiny-hub").json()
        assert (after["weights_here"], after["pull"]["bytes_done"]) == (True, WEIGHTS)
        assert server.http.post("/models/tiny-hub/pull").json()["code"] == "weights_here"
        assert red_circle(server, server.until(server.submit(model="tiny-hub", seed=7, steps=8)))


def test_the_service_cancels_and_refuses_what_makes_no_sense(hub: Hub, tmp_path: Path, config: Path) -> None:
    with Server(tmp_path / "data", config, **hub.environment(tmp_path / "hf")) as server:
        for method, path, code in (
            ("POST", "/models/fake/pull", "no_repository"),
            ("POST", "/models/nope/pull", "model_not_found"),
            ("DELETE", "/models/tiny-hub/pull", "not_pulling"),
            ("GET", "/models/tiny-hub/pull/events", "not_pulling"),
        ):
            assert server.http.request(method, path).json()["code"] == code
        hub.flowing.clear()
        server.http.post("/models/tiny-hub/pull")
        wait_for_half(hub)
        cancelled = server.http.delete("/models/tiny-hub/pull").json()
        assert (cancelled["state"], cancelled["error_code"]) == ("cancelled", "pull_cancelled")
        assert cancelled["bytes_done"] > 0
        hub.flowing.set()
        hub.asked.clear()
        server.http.post("/models/tiny-hub/pull")
        until_pulled(server, "ready")
        assert all(asked.first_byte > 0 for asked in hub.downloads(BIG))


def test_a_request_pulls_its_model_while_other_tasks_run(hub: Hub, tmp_path: Path) -> None:
    config = write_config(tmp_path, auto_download=True)
    with Server(tmp_path / "data", config, **hub.environment(tmp_path / "hf")) as server:
        hub.flowing.clear()
        far = server.submit(model="tiny-hub", seed=7, steps=8)
        assert server.until(server.submit(model="fake"))["status"] == "completed"
        wait_for_half(hub)
        waiting = server.task(far)
        assert (waiting["status"], waiting["position"]) == ("pending", 0)
        assert waiting["download"]["state"] == "downloading"
        assert 0 < waiting["download"]["bytes_done"] < waiting["download"]["bytes_total"]
        hub.flowing.set()
        with server.http.stream("GET", f"/task/{far}/events") as events:
            names = [line for line in events.iter_lines() if line.startswith("event: ")]
        assert names[:2] == ["event: queued", "event: downloading"]
        assert names[-1] == "event: completed"
        assert red_circle(server, server.task(far))
        assert "download" not in server.task(far)


def test_a_waiting_task_and_its_download_survive_a_kill(hub: Hub, tmp_path: Path) -> None:
    config, env = write_config(tmp_path, auto_download=True), hub.environment(tmp_path / "hf")
    hub.flowing.clear()
    with Server(tmp_path / "data", config, **env) as server:
        far = server.submit(model="tiny-hub", seed=7)
        wait_for_half(hub)
        children = psutil.Process(server.process.pid).children(recursive=True)
        server.kill()
    psutil.wait_procs(children, PATIENCE_S)
    hub.flowing.set()
    hub.asked.clear()
    with Server(tmp_path / "data", config, **env) as server:
        assert server.until(far)["status"] == "completed"
    assert all(asked.first_byte > 0 for asked in hub.downloads(BIG))


def test_sigterm_does_not_wait_for_a_download(hub: Hub, tmp_path: Path) -> None:
    config = write_config(tmp_path, auto_download=True)
    hub.flowing.clear()
    with Server(tmp_path / "data", config, **hub.environment(tmp_path / "hf")) as server:
        far = server.submit(model="tiny-hub")
        wait_for_half(hub)
        children = psutil.Process(server.process.pid).children(recursive=True)
        with server.http.stream("GET", "/models/tiny-hub/pull/events") as events:
            server.process.send_signal(signal.SIGTERM)
            assert "ready" not in events.read().decode()
        assert server.process.wait(PATIENCE_S) == 0
    assert not any(child.is_running() for child in children)
    hub.flowing.set()
    with Server(tmp_path / "data", config, **hub.environment(tmp_path / "hf")) as server:
        assert server.until(far)["status"] == "completed"


def test_a_download_that_is_refused_fails_the_task_and_the_token_appears_nowhere(hub: Hub, tmp_path: Path) -> None:
    config = write_config(tmp_path, auto_download=True)
    hub.add_folder("org/tiny", builtin_model("tiny"), gated=True)
    environment = hub.environment(tmp_path / "hf", hub.token)
    with Server(tmp_path / "data", config, **environment) as server:
        failed = server.until(server.submit(model="tiny-hub"))
        assert failed["error_code"] == "hub_gated"
        assert "accept its licence" in failed["error_message"]
        said = [server.http.get(path).text for path in ("/models/tiny-hub", "/tasks", "/health")]
        worker = server.worker().environ()
        server.terminate()
    assert hub.token in {asked.token for asked in hub.asked}  # it was used
    assert hub.token not in "".join([*said, *server.log, json.dumps(failed)])
    assert hub.token not in worker.values()
