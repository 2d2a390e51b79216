"""Results through the real service and the real command: formats, receipts, replays, keys that survive kill -9."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.commands import command
from tests.e2e.test_cli import imagegen
from tests.server import PATIENCE_S, Server

PROMPT = "a red circle on a blue background"


def test_a_file_of_the_service_is_inspected_and_made_again_by_the_command(tiny: Server, tmp_path: Path) -> None:
    task = tiny.until(tiny.submit(PROMPT, seed=7, steps=4, batch_size=2, format="webp", quality=80))
    second = tmp_path / "second.webp"
    second.write_bytes(tiny.pictures(task)[1])
    receipt = json.loads(imagegen("inspect", second).stdout)
    assert receipt["request"] | {"prompt": PROMPT, "seed": 8, "batch_size": 1} == receipt["request"]
    assert receipt["pixels_sha256"] == task["images"][1]["pixels_sha256"]
    assert receipt["provenance"] == {k: v for k, v in task["receipt"]["provenance"].items() if v is not None}
    done = imagegen("replay", second, "-o", tmp_path / "again.png", env=None)
    assert done.stdout == f"{tmp_path / 'again.png'}\nEvery pixel is the same.\n", done.stderr
    assert done.returncode == 0


def test_the_service_makes_the_same_pixels_again(tiny: Server) -> None:
    first = tiny.until(tiny.submit(PROMPT, steps=4))
    again = tiny.http.post(first["links"]["replay"], headers={"Prefer": "wait=60"}).json()
    assert again["replay"] == {"of": first["task_id"], "identical": True, "differences": []}


def test_a_replay_that_cannot_be_the_same_has_the_reason(tmp_path: Path) -> None:
    out, config = tmp_path / "out.jpg", tmp_path / "models.yaml"
    made = command("generate", PROMPT, "-o", out, "--seed", 7, "--steps", 4)
    assert made.exit_code == 0, made.stderr
    entry = {"name": "T", "type": "flux", "local_path": "builtin:tiny", "base_size": 128}
    config.write_text(json.dumps({"models": {"tiny": entry | {"torch_dtype": "bfloat16", "max_sequence_length": 64}}}))
    done = command("replay", out, "--config", config)
    assert done.exit_code == 1
    assert "dtype: bfloat16, was float32" in done.stderr
    assert (tmp_path / "out-replay.jpg").exists()


def test_a_picture_made_from_another_needs_that_one_again(tmp_path: Path) -> None:
    start, other, out = tmp_path / "start.png", tmp_path / "other.png", tmp_path / "out.avif"
    Image.new("RGB", (64, 64), "red").save(start)
    Image.new("RGB", (64, 64), "blue").save(other)
    assert command("generate", "a star", "--image", start, "--steps", 4, "-o", out).exit_code == 0
    for arguments, words in (((), "was made from a file: give it"), (("--image", other), "from another file")):
        done = command("replay", out, *arguments)
        assert (done.exit_code, words in done.stderr) == (65, True)
    assert command("replay", out, "--image", start).stdout.endswith("Every pixel is the same.\n")


@pytest.mark.parametrize("content", [b"", b"<svg/>", b"\x89PNG\r\n\x1a\n", None])
def test_a_file_without_a_receipt_is_reported(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "file.png"
    if content is None:
        Image.new("RGB", (4, 4)).save(file)
    else:
        file.write_bytes(content)
    for name in ("inspect", "replay"):
        done = command(name, file)
        assert done.exit_code == 65


# -- Idempotency-Key ---------------------------------------------------------------------------------------------------


@contextmanager
def fifty_callers(server: Server, answers: list[str]) -> Iterator[None]:
    """Threads that send the same request with the same key at once, and record the task of each answer."""
    ready = threading.Barrier(51)

    def call() -> None:
        with httpx.Client(base_url=server.http.base_url, timeout=60) as http:
            ready.wait()
            try:
                answer = http.post(
                    "/text2image", json={"prompt": "x", "seed": 1}, headers={"Idempotency-Key": '"order-66"'}
                )
            except httpx.TransportError:
                return  # killed under it
            assert answer.status_code == 202, answer.text
            answers.append(answer.json()["task_id"])

    callers = [threading.Thread(target=call) for _ in range(50)]
    for caller in callers:
        caller.start()
    ready.wait()
    yield
    for caller in callers:
        caller.join()


def test_fifty_identical_requests_with_a_kill_9_among_them_are_one_task(tmp_path: Path, fake_yaml: Path) -> None:
    answers: list[str] = []
    for delay_s in (0.02, 0.06):
        with Server(tmp_path / "data", fake_yaml) as server, fifty_callers(server, answers):
            time.sleep(delay_s)
            server.kill()
    with Server(tmp_path / "data", fake_yaml) as server:
        with fifty_callers(server, answers):
            pass
        assert len(answers) >= 50
        assert len(set(answers)) == 1
        assert server.until(answers[0])["status"] == "completed"
        assert server.http.get("/tasks").json()["total"] == 1


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_pages_examples_work_unchanged(tiny: Server, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    script = "set -euo pipefail\n" + "\n".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL))
    done = subprocess.run(
        ["bash", "-c", script.replace("http://127.0.0.1:5050", str(tiny.http.base_url).rstrip("/"))],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'identical': True, 'differences': []" in (tmp_path / "replay.txt").read_text()
    assert "Every pixel is the same." in done.stdout
    one, two = (json.loads((tmp_path / f"attempt-{number}.json").read_text())["task_id"] for number in (1, 2))
    assert one == two
    assert json.loads((tmp_path / "found.json").read_text())["filtered"] >= 1
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        assert "task.json" in archive.namelist()
        assert len(archive.namelist()) == 3
