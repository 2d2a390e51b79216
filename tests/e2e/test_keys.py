"""`imagegen keys`, as it is typed, and what a running service does with it."""

import re
import subprocess
from pathlib import Path

from tests.commands import command
from tests.e2e.test_cli import imagegen
from tests.server import PATIENCE_S, Server, environment, serve_command


def test_a_key_is_shown_once_and_listed_without_its_text(tmp_path: Path) -> None:
    made = command(
        *("keys", "create", "alice", "--data-dir", tmp_path, "--scope", "generate", "--scope", "read"),
        *("--models", "tiny,other", "--priority-floor", 5, "--queued", 10, "--images-per-day", 100),
        *("--device-seconds-per-day", 3600, "--rate", "60/min", "--expires", "2999-01-31"),
    )
    assert made.exit_code == 0, made.stderr
    text = made.stdout.strip()
    assert re.fullmatch(r"ig_[A-Za-z0-9]{43}", text)
    listed = command("keys", "list", "--data-dir", tmp_path)
    assert listed.exit_code == 0, listed.stderr
    assert text not in listed.stdout
    for word in ("alice", f"{text[:11]}...", "generate, read", "valid", "2999-01-31 00:00"):
        assert word in listed.stdout
    rotated = command("keys", "rotate", "alice", "--data-dir", tmp_path)
    assert re.fullmatch(r"ig_[A-Za-z0-9]{43}\n", rotated.stdout)
    assert rotated.stdout.strip() != text
    revoked = command("keys", "revoke", "alice", "--data-dir", tmp_path)
    assert revoked.exit_code == 0, revoked.stderr
    assert "revoked" in command("keys", "list", "--data-dir", tmp_path).stdout


def test_a_service_that_other_machines_reach_needs_a_key(tmp_path: Path) -> None:
    serve = ("serve", "--host", "0.0.0.0", "--port", 0, "--data-dir", tmp_path)
    done = imagegen(*serve)
    assert done.returncode == 78
    assert "Other machines reach 0.0.0.0, and there is no API key" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_running_service_sees_the_changes_of_the_command_at_once(tmp_path: Path) -> None:
    with Server(tmp_path, IMAGEGEN_HOST="127.0.0.1") as server:
        assert server.http.get("/tasks").status_code == 200
        text = command("keys", "create", "alice", "--data-dir", tmp_path).stdout.strip()
        assert server.http.get("/tasks").status_code == 401
        server.http.headers["X-API-Key"] = text
        assert server.until(server.submit(steps=1))["status"] == "completed"
        command("keys", "revoke", "alice", "--data-dir", tmp_path)
        assert server.http.get("/tasks").status_code == 401
        assert server.http.get("/livez").status_code == 200
        assert server.terminate() == 0
        assert text not in "".join(server.log)


def test_the_first_start_of_a_container_prints_a_key_once(tmp_path: Path) -> None:
    serve = [*serve_command(tmp_path), "--host", "0.0.0.0"]
    variables = environment(IMAGEGEN_FIRST_KEY="admin")
    shown = []
    for _ in range(2):
        process = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
        assert process.stderr is not None
        while '"listening"' not in (line := process.stderr.readline()):
            assert line
        process.terminate()
        out, log = process.communicate(timeout=PATIENCE_S)
        shown.append(re.findall(r"ig_[A-Za-z0-9]{43}", out))
        assert "ig_" not in log
    assert [len(texts) for texts in shown] == [1, 0]
