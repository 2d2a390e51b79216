"""`imagegen config check` also checks the existing folders that a models.yaml names."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from imagegen.builtin import builtin_model
from imagegen.cli import app


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMAGEGEN_MODELS_DIR", str(tmp_path))
    return tmp_path


def check(home: Path, entry: str) -> tuple[int, str]:
    """The exit code, and its output after the name of the file."""
    file = home / "models.yaml"
    file.write_text(f"models:\n  a:\n    name: A\n    type: flux\n{entry}")
    result = CliRunner().invoke(app, ["config", "check", str(file)])
    return result.exit_code, result.output.strip().removeprefix(f"{file}:")


def test_an_entry_that_names_no_weights_is_a_problem(home: Path) -> None:
    assert check(home, "") == (78, "2:3: no weights are named; give hf_path or local_path")


def test_a_folder_with_only_its_index_is_a_problem(home: Path) -> None:
    (home / "flux").mkdir()
    shutil.copy(builtin_model("tiny") / "model_index.json", home / "flux")
    code, said = check(home, "    local_path: flux\n")
    assert code == 78
    assert said == "5:5: The model's folder has no files for 'scheduler'."


def test_a_folder_that_is_not_there_may_come_later(home: Path) -> None:
    assert check(home, "    local_path: flux\n") == (0, " 1 models, default a")


def test_a_complete_folder_is_no_problem(home: Path) -> None:
    shutil.copytree(builtin_model("tiny"), home / "flux")
    assert check(home, "    local_path: flux\n")[0] == 0


def test_an_incomplete_folder_with_a_repository_is_no_problem(home: Path) -> None:
    (home / "flux").mkdir()
    assert check(home, "    local_path: flux\n    hf_path: org/flux\n")[0] == 0
