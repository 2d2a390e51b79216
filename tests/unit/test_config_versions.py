"""`imagegen config versions` and `rollback`, for a service that does not start because of its models.yaml."""

from pathlib import Path

import pytest

from imagegen.catalog.versions import Versions
from imagegen.storage.lock import exclusive
from imagegen.testing import WITH_FAKE
from tests.commands import command

GOOD = "models: {a: {name: A, type: fake}}  # the first\n"
NEWER = "models: {a: {name: A, type: fake}, b: {name: B, type: fake}}\n"


@pytest.fixture
def options(tmp_path: Path) -> tuple[str, ...]:
    """Of a data directory with two versions of a file that is not there any more."""
    config, data = tmp_path / "models.yaml", tmp_path / "data"
    versions = Versions.of(config, data)
    versions.add(GOOD, "start")
    versions.add(NEWER, "rest")
    return ("--config", str(config), "--data-dir", str(data))


def test_a_version_replaces_a_file_that_is_broken_or_was_deleted(tmp_path: Path, options: tuple[str, ...]) -> None:
    listed = command("config", "versions", *options).stdout
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["2", "1"]
    done = command("config", "rollback", 1, *options, families=WITH_FAKE)
    assert (done.exit_code, (tmp_path / "models.yaml").read_text()) == (0, GOOD), done.stderr
    (tmp_path / "models.yaml").write_text("models: [half an hour's work")
    done = command("config", "rollback", 2, *options, families=WITH_FAKE)
    assert (done.exit_code, (tmp_path / "models.yaml").read_text()) == (0, NEWER), done.stderr
    listed = command("config", "versions", *options).stdout
    assert [line.split()[-1] for line in listed.splitlines()[1:]] == ["rollback", "file", "rollback", "rest", "start"]
    assert Versions.of(tmp_path / "models.yaml", tmp_path / "data").text(4) == "models: [half an hour's work"


def test_a_rollback_that_cannot_be_done_changes_nothing(tmp_path: Path, options: tuple[str, ...]) -> None:
    refused = command("config", "rollback", 9, *options, families=WITH_FAKE)
    assert (refused.exit_code, refused.stdout) == (65, "")
    invalid = command("config", "rollback", 1, *options)  # without the family `fake`
    assert (invalid.exit_code, "version 1:1:" in invalid.stderr) == (78, True)
    with exclusive(tmp_path / "data"):
        running = command("config", "rollback", 1, *options, families=WITH_FAKE)
    assert (running.exit_code, "`POST /config/rollback`" in running.stderr) == (75, True)
    assert not (tmp_path / "models.yaml").exists()
