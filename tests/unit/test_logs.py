"""What the log says, where no one watches: one JSON object a line, with the whole error in it."""

import json
from collections.abc import Iterator

import pytest
import structlog

from imagegen import logs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_an_error_is_logged_with_its_traceback_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    try:
        raise ValueError("why")
    except ValueError as error:
        structlog.get_logger().critical("service_crashed", reason=repr(error), exc_info=error)
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"]) == ("service_crashed", "critical")
    assert "ValueError: why" in entry["exception"]
    assert "test_logs.py" in entry["exception"]
