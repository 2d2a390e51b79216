"""A backup of a busy service, restored elsewhere: every acknowledged task, with the same bytes."""

import threading
from pathlib import Path
from typing import Any

from tests.commands import command
from tests.conftest import fake_config
from tests.server import Server


def test_a_backup_of_a_busy_service_has_every_acknowledged_task_with_the_same_bytes(tmp_path: Path) -> None:
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
        before, made, ended = [], [], list[dict[str, Any]]()
        for number in range(3):
            ended = server.http.get("/tasks", params={"status": "completed", "limit": 20}).json()["tasks"]
            before.append(list(acknowledged))
            made.append(command("backup", backups / str(number), "--data-dir", tmp_path / "data", "--config", config))
        done.set()
        for caller in callers:
            caller.join()
        assert [it.exit_code for it in made] == [0] * 3, made[0].output
        refused = command("restore", backups / "0", "--data-dir", tmp_path / "data", "--config", config)
        assert (refused.exit_code, "Another instance" in refused.stderr) == (75, True)
        pictures = {it["task_id"]: server.pictures(it) for it in ended}
        server.terminate()
    new = tmp_path / "new"
    restored = command("restore", backups / "2", "--data-dir", new / "data", "--config", new / "models.yaml")
    assert restored.exit_code == 0, restored.stderr
    again = command("restore", backups / "1", "--data-dir", new / "data", "--config", new / "models.yaml")
    assert (again.exit_code, "is not empty" in again.stderr) == (73, True)
    assert (new / "models.yaml").read_text() == config.read_text()
    assert len(pictures) == 20
    with Server(new / "data", new / "models.yaml") as server:
        for task_id in before[2]:
            assert server.task(task_id)["task_id"] == task_id
        for task_id, data in pictures.items():
            assert server.pictures(server.task(task_id)) == data
