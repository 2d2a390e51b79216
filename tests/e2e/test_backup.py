"""A backup of a busy service, restored elsewhere: every acknowledged task, with the same bytes."""

import threading
from pathlib import Path

import pytest

from tests.commands import command
from tests.conftest import fake_config
from tests.e2e.test_readme import run_blocks
from tests.server import Server


def test_a_backup_of_a_busy_service_has_every_acknowledged_task_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(fake_config(fake={"step_seconds": 0.001}))
    acknowledged: list[str] = []
    done, backups = threading.Event(), tmp_path / "backups"
    with Server(tmp_path / "data", config) as server:

        def submit() -> None:
            while not done.is_set():
                acknowledged.append(server.submit(f"picture {len(acknowledged)}", steps=1))

        callers = [threading.Thread(target=submit) for _ in range(2)]
        for caller in callers:
            caller.start()
        server.until(server.submit())
        monkeypatch.setenv("IMAGEGEN_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("IMAGEGEN_CONFIG", str(config))
        run_blocks("docs/backup.md", server, tmp_path)
        ended = server.http.get("/tasks", params={"status": "completed", "limit": 20}).json()["tasks"]
        before = list(acknowledged)
        made = command("backup", backups / "tuesday")
        done.set()
        for caller in callers:
            caller.join()
        assert made.exit_code == 0, made.output
        refused = command("restore", backups / "monday")
        assert (refused.exit_code, "Another instance" in refused.stderr) == (75, True)
        pictures = {it["task_id"]: server.pictures(it) for it in ended}
        server.terminate()
    new = tmp_path / "new"
    restored = command("restore", backups / "tuesday", "--data-dir", new / "data", "--config", new / "models.yaml")
    assert restored.exit_code == 0, restored.stderr
    again = command("restore", backups / "monday", "--data-dir", new / "data", "--config", new / "models.yaml")
    assert (again.exit_code, "is not empty" in again.stderr) == (73, True)
    assert (new / "models.yaml").read_text() == config.read_text()
    assert len(pictures) == 20
    with Server(new / "data", new / "models.yaml") as server:
        for task_id in before:
            assert server.task(task_id)["task_id"] == task_id
        for task_id, data in pictures.items():
            assert server.pictures(server.task(task_id)) == data
