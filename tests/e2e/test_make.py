"""`make vision` installs torchvision of torch's build, or none. Only pip and the import are simulated."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Stands for a virtual environment's python: says which torch it has, writes down what pip is asked for.
PYTHON = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
  *importlib.metadata*) cat "$here/built" ;;
  *"import torchvision"*) exit "$(cat "$here/import_exits")" ;;
  *"-m pip"*) echo "$*" >> "$here/pip.log"; case "$*" in *"$(cat "$here/there")"*) exit 0 ;; esac; exit 1 ;;
esac
"""


def make_torchvision(
    venv: Path, built: str, *, there: str = "torchvision", import_exits: int = 0, index: str = ""
) -> str:
    """The end of its stderr, and the calls of pip; `there`: a part of the calls that succeed."""
    (venv / "bin").mkdir()
    for name, text in {"built": built, "there": there, "import_exits": str(import_exits), "pip.log": ""}.items():
        (venv / "bin" / name).write_text(text)
    python = venv / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TORCH", "TORCH_INDEX", "MAKEFLAGS")
    }
    command = ["make", "torchvision", f"VENV={venv}", f"TORCH_INDEX={index}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    said = done.stderr.partition("\nmake")[0] if done.returncode else ""
    return f"{said}\n{(venv / 'bin' / 'pip.log').read_text()}"


@pytest.mark.parametrize(
    ("built", "wanted"), [("cpu", "torchvision==0.28.0+cpu"), ("cuda", "torchvision==0.28.0,!=0.28.0+cpu")]
)
def test_torchvision_is_of_the_build_that_torch_is(tmp_path: Path, built: str, wanted: str) -> None:
    said, *asked = make_torchvision(tmp_path, built).splitlines()
    assert said == ""
    assert [call.split()[-1] for call in asked] == [wanted]


def test_only_a_cpu_build_is_requested_from_torchs_own_index(tmp_path: Path) -> None:
    index = "https://torch.example/cpu"
    for built, calls in {"cpu": 2, "cuda": 1}.items():
        venv = tmp_path / built
        venv.mkdir()
        asked = make_torchvision(venv, built, there=f"--index-url {index}", index=index).splitlines()[1:]
        assert len(asked) == calls
        assert [index in call for call in asked] == [False, True][:calls]


def test_an_unavailable_build_is_reported(tmp_path: Path) -> None:
    assert "No cpu build of torchvision==0.28.0" in make_torchvision(tmp_path, "cpu", there="nothing")


def test_one_that_does_not_work_beside_torch_does_not_stay(tmp_path: Path) -> None:
    said = make_torchvision(tmp_path, "cuda", import_exits=1)
    assert "does not work with this torch and was removed again" in said
    assert said.splitlines()[-1].endswith("uninstall --quiet --yes torchvision")
