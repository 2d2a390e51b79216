"""`imagegen keys`, as it is typed, and what a running service does with it."""

import re
from pathlib import Path

from tests.e2e.test_cli import imagegen


def test_a_key_is_shown_once_and_listed_without_its_text(tmp_path: Path) -> None:
    made = imagegen(
        *("keys", "create", "alice", "--data-dir", tmp_path, "--scope", "generate", "--scope", "read"),
        *("--models", "tiny,other", "--priority-floor", 5, "--queued", 10, "--images-per-day", 100),
        *("--device-seconds-per-day", 3600, "--rate", "60/min", "--expires", "2999-01-31"),
    )
    assert made.returncode == 0, made.stderr
    text = made.stdout.strip()
    assert re.fullmatch(r"ig_[A-Za-z0-9]{43}", text)
    listed = imagegen("keys", "list", "--data-dir", tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert text not in listed.stdout
    for word in ("alice", f"{text[:11]}...", "generate, read", "valid", "2999-01-31 00:00"):
        assert word in listed.stdout
    rotated = imagegen("keys", "rotate", "alice", "--data-dir", tmp_path)
    assert re.fullmatch(r"ig_[A-Za-z0-9]{43}\n", rotated.stdout)
    assert rotated.stdout.strip() != text
    revoked = imagegen("keys", "revoke", "alice", "--data-dir", tmp_path)
    assert revoked.returncode == 0, revoked.stderr
    assert "revoked" in imagegen("keys", "list", "--data-dir", tmp_path).stdout


def test_a_service_that_other_machines_reach_needs_a_key(tmp_path: Path) -> None:
    serve = ("serve", "--host", "0.0.0.0", "--port", 0, "--data-dir", tmp_path)
    done = imagegen(*serve)
    assert done.returncode == 78
    assert "Other machines reach 0.0.0.0, and there is no API key" in done.stderr
    assert "Traceback" not in done.stderr
