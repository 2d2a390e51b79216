"""Mistakes in `imagegen keys`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from imagegen.cli import app


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["revoke", "bob"], 65, "There is no API key with this name."),
        (["rotate", "bob"], 65, "There is no API key with this name."),
        (["create", "b b"], 65, "name: must be 1 to 64 letters"),
        (["create", "bob", "--scope", "all"], 2, "--scope"),
        (["create", "bob", "--rate", "fast"], 2, "write it as 60/min"),
        (["create", "bob", "--expires", "soon"], 2, "write it as 2027-01-31"),
        (["create", "bob", "--queued", "0"], 65, "queued: "),
    ],
)
def test_a_mistake_ends_the_command(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = CliRunner().invoke(app, ["keys", *arguments, "--data-dir", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr


def test_a_folder_that_cannot_be_written_to_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["keys", "create", "bob", "--data-dir", str(tmp_path / "file")])
    assert done.exit_code == 73
    assert "Cannot use the journal" in done.stderr
