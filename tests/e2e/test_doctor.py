"""`imagegen doctor` on the command line, on a working machine and on a faulty one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server import PATIENCE_S, Server, environment

SECRETS = {
    "HF_TOKEN": "hf_canary0123456789",
    "AWS_SECRET_ACCESS_KEY": "aws-canary0123456789",
    "IMAGEGEN_WEBHOOK_SECRETS": "whsec_Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5LTAx",
}


def doctor(
    data_dir: Path, *arguments: str | Path, module: str = "imagegen", **variables: str
) -> subprocess.CompletedProcess[str]:
    names = {"IMAGEGEN_DATA_DIR": str(data_dir), "COLUMNS": "80"} | SECRETS | variables
    return subprocess.run(
        [sys.executable, "-m", module, "doctor", *map(str, arguments)],
        env=environment(**names),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    told = json.loads(done.stdout)
    assert told["exit_code"] == done.returncode
    return {finding["about"]: finding for finding in told["findings"]}


def test_a_working_machine_is_reported_in_eighty_columns(tmp_path: Path) -> None:
    done = doctor(tmp_path / "data", TMPDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    told = "".join(done.stdout.split())  # what is long is broken in two
    for words in ("torch", "c compiler", str(tmp_path), "`imagegen models pull flux.1-dev`", "All is well."):
        assert words.replace(" ", "") in told
    assert "drawn on the CPU in" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not [word for word in SECRETS.values() if word in done.stdout]
    assert not (tmp_path / "data").exists()


def files_of(data: Path) -> list[Path]:
    """All but the ballast, which the service itself writes some time after its start."""
    return sorted(path for path in data.rglob("*") if path.name != "ballast")


def test_while_the_service_runs_it_names_its_process_and_changes_nothing(tmp_path: Path, fake_yaml: Path) -> None:
    data = tmp_path / "data"
    with Server(data, fake_yaml) as server:
        task = server.until(server.submit("fine", model="fake", steps=1))
        before = files_of(data)
        done = doctor(data, "--json", "--config", fake_yaml, module="imagegen.testing")
        assert done.returncode == 0, done.stdout
        assert findings(done)["data"]["says"].endswith(f"in use by process {server.process.pid} (the service)")
        assert files_of(data) == before
        assert server.task(task["task_id"]) == task
        assert server.http.get("/tasks").json()["total"] == 1
        assert not [word for word in SECRETS.values() if word in done.stdout]
        assert server.terminate() == 0


@pytest.fixture
def broken_torchvision(tmp_path: Path) -> Path:
    """A folder with a torchvision that was built for another torch, as far as anyone can tell who imports it."""
    site = tmp_path / "site"
    for folder in ("torchvision", "torchvision-0.28.0.dist-info"):
        (site / folder).mkdir(parents=True)
    (site / "torchvision" / "__init__.py").write_text(
        'import torch\n\n\n@torch.library.register_fake("torchvision::nms")\ndef nms(dets, scores, iou):\n    ...\n'
    )
    metadata = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    (site / "torchvision-0.28.0.dist-info" / "METADATA").write_text(metadata)
    return site


def test_every_fault_is_reported_and_the_first_decides_the_exit_code(tmp_path: Path, broken_torchvision: Path) -> None:
    path = os.pathsep.join(filter(None, [str(broken_torchvision), os.environ.get("PYTHONPATH")]))
    done = doctor(tmp_path / "data", "--json", PYTHONPATH=path, TMPDIR="/nowhere/at/all")
    assert done.returncode == 73
    found = findings(done)
    assert [found[about]["level"] for about in ("temporary", "torchvision", "picture")] == ["fault"] * 3
    assert "TMPDIR names /nowhere/at/all: No such file or directory" in found["temporary"]["says"]
    assert "operator torchvision::nms does not exist" in found["torchvision"]["says"]
    assert "make vision" in found["torchvision"]["mend"]


def test_a_full_temporary_folder_is_found(tmp_path: Path) -> None:
    """A full file system of four pages, in a mount namespace that ends with the command."""
    unshare, script = shutil.which("unshare"), 'mount -t tmpfs -o size=16k tmpfs "$TMPDIR" && cd / && '
    assert unshare is not None
    script += 'head -c 16384 /dev/zero > "$TMPDIR/taken"; exec "$@"'
    full = tmp_path / "full"
    full.mkdir()
    command = [unshare, "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", script, "sh"]
    done = subprocess.run(
        [*command, sys.executable, "-m", "imagegen", "doctor", "--json"],
        env=environment(IMAGEGEN_DATA_DIR=str(tmp_path / "data"), TMPDIR=str(full)),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 73, done.stderr
    says = findings(done)["temporary"]["says"]
    assert f"TMPDIR names {full}: No space left on device" in says
