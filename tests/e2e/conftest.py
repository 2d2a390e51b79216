"""Servers for the tests of this folder."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import fake_config
from tests.server import Server


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A suite that a script runs in its background is started with Ctrl-C ignored, and so would be what it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def fake_yaml(tmp_path: Path) -> Path:
    """A models.yaml with one slow fake model, `fake`, that dies of the prompt `poison`."""
    path = tmp_path / "models.yaml"
    path.write_text(fake_config(fake={"step_seconds": 0.05, "fault": "abort", "fault_prompt": "poison"}))
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the shipped configuration."""
    with Server(tmp_path_factory.mktemp("tiny")) as server:
        yield server
