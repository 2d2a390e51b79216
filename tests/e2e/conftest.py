"""Servers for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import fake_config
from tests.server import Server


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
