"""The log on stderr: one JSON object a line, including the whole error."""

import io
import json
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from imagegen import logs
from imagegen.core.errors import FailureCode
from imagegen.gpu.executor import GpuExecutor
from imagegen.gpu.protocol import Failed, Measure, Unload, pack, unpack_answer, unpack_command
from imagegen.gpu.worker import Session, quiet
from imagegen.gpu.worker_engine import _traced


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def configured(configure: Callable[[], object]) -> None:
    """Configure without the handlers of pytest: where there is a handler, `logging` adds none."""
    logging.getLogger().handlers.clear()
    configure()


def test_an_error_is_logged_with_its_traceback_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configured(logs.configure)
    try:
        raise ValueError("why")
    except ValueError as error:
        structlog.get_logger().critical("service_crashed", reason=repr(error), exc_info=error)
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"]) == ("service_crashed", "critical")
    assert "ValueError: why" in entry["exception"]
    assert "test_logs.py" in entry["exception"]


def logged(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (line,) = capsys.readouterr().err.splitlines()
    return dict(json.loads(line))


def test_a_line_has_the_ids_of_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    configured(logs.configure)
    with structlog.contextvars.bound_contextvars(request_id="r-1", model="a"):
        structlog.get_logger().info("model_unloaded", model="b")
    entry = logged(capsys)
    assert (entry["request_id"], entry["model"]) == ("r-1", "b")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://user:pass%2Fword@mirror.internal/x?a=b@c", "GET https://***@mirror.internal/x?a=b@c"),
        ("'http://token@host:80'", "'http://***@host:80'"),
        ("https://host/a@b and user@example.com", "https://host/a@b and user@example.com"),
        (f"hf_{'a1' * 17}, ig_{'b2' * 21}c and whsec_{'c3' * 16}==.", "***, *** and ***."),
        (f"a\nig_{'b2' * 21}c", "a\n***"),
        (f"a\thf_{'a1' * 17}", "a\t***"),
        (f"a\x1bwhsec_{'c3' * 16}==", "a\x1b***"),
        ("hf_hub_download, big_picture_of_forty_three_or_more_characters", None),
    ],
)
def test_no_line_shows_a_secret(capsys: pytest.CaptureFixture[str], text: str, shown: str | None) -> None:
    """`shown`: None: the text as it is."""
    configured(logs.configure)
    try:
        raise ValueError(text)
    except ValueError as error:
        structlog.get_logger().error("failed", reason=text, exc_info=error)
    entry = logged(capsys)
    assert entry["reason"] == (shown or text)
    assert (shown or text) in entry["exception"]
    logging.getLogger("some.library").warning("no: %s", text)
    assert logged(capsys)["event"] == f"no: {shown or text}"


def test_a_library_logs_in_the_same_format(capsys: pytest.CaptureFixture[str]) -> None:
    configured(logs.configure)
    with structlog.contextvars.bound_contextvars(task_id="t-1"):
        logging.getLogger("some.library").info("not this")
        logging.getLogger("some.library").warning("the %s is odd", "config")
    entry = logged(capsys)
    assert (entry["event"], entry["level"], entry["logger"]) == ("the config is odd", "warning", "some.library")
    assert entry["task_id"] == "t-1"


def test_what_a_library_logs_in_the_worker_has_the_ids_of_the_task(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    configured(quiet)

    def unload(command: Unload) -> Failed:
        logging.getLogger("some.library").error("%s is broken", command.model)
        return Failed(code=FailureCode.LOAD_FAILED, message="x")

    here, there = (Connection(end.detach()) for end in socket.socketpair())
    with here, there:
        session = Session(there, cast("Any", SimpleNamespace(unload=unload)))
        ids = {"task_id": "t-1", "request_id": "r-1", "model": "a"}
        here.send_bytes(pack(Unload(model="a", log_context=ids)))
        session.serve_one()
        assert isinstance(unpack_answer(here.recv_bytes()), Failed)
    entry = logged(capsys)
    assert entry["event"] == "a is broken"
    assert ids.items() <= entry.items()


def test_a_command_carries_the_ids_of_its_context_to_the_worker() -> None:
    ids = {"task_id": "t-1", "request_id": "r-1", "model": "a"}
    with structlog.contextvars.bound_contextvars(**ids):
        sent = _traced(Unload(model="a"))
        assert _traced(Measure()) == Measure()
    assert unpack_command(pack(sent)) == Unload(model="a", log_context=ids)


async def test_what_is_logged_in_the_thread_of_the_gpu_has_the_ids_of_the_caller() -> None:
    seen: list[dict[str, Any]] = []
    engine = SimpleNamespace(unload=lambda _: seen.append(structlog.contextvars.get_contextvars()), close=lambda: None)
    executor = GpuExecutor(lambda: cast("Any", engine))
    for task_id in ("t-1", "t-2"):
        with structlog.contextvars.bound_contextvars(task_id=task_id):
            await executor.unload(Unload(model="a"))
    await executor.close(5)
    assert seen == [{"task_id": "t-1"}, {"task_id": "t-2"}]


# -- characters, and the lines of others -------------------------------------------------------------------------------

HOSTILE = "a\x1b[2Jb\x7fc\x9b1md\u202ee\u2066f\ud800g\nh"


def written_to(monkeypatch: pytest.MonkeyPatch, *, human: bool) -> io.StringIO:
    """What is written to stderr, a terminal or not."""
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: human, raising=False)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    for module in (sys, threading):
        monkeypatch.setattr(module, "excepthook", module.excepthook)
    logs.configure()
    return stderr


def test_nothing_that_a_terminal_obeys_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for human in (True, False):
        stderr = written_to(monkeypatch, human=human)
        structlog.get_logger().warning("asked", prompt=HOSTILE)
        written = stderr.getvalue()
        for character in "\x7f\x9b\u202e\u2066\ud800":
            assert character not in written
        assert "\x1b[2J" not in written
        if not human:
            assert json.loads(written)["prompt"] == HOSTILE


def test_a_traceback_on_a_terminal_shows_no_values_and_nothing_that_it_obeys(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = written_to(monkeypatch, human=True)
    token = "ig_canary"
    try:
        raise ValueError(f"{len(token)}\x1b[2J\x9b")
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("a.library").exception("failed, too")
    written = stderr.getvalue()
    assert written.count("ValueError: 9") == 2
    assert written.count("\nTraceback (most recent call last):\n") == 2
    assert "ig_canary" not in written
    assert "\x1b[2J" not in written
    assert "\x9b" not in written


def test_the_lines_of_the_standard_library_have_the_same_form(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = written_to(monkeypatch, human=False)
    logging.getLogger("uvicorn.error").warning("Invalid %s request\nreceived.", "HTTP\x7f")
    (line,) = stderr.getvalue().splitlines()
    assert "\x7f" not in line
    told = json.loads(line)
    assert (told["event"], told["level"], told["logger"]) == (
        "Invalid HTTP\x7f request\nreceived.",
        "warning",
        "uvicorn.error",
    )


def test_a_traceback_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = written_to(monkeypatch, human=False)
    monkeypatch.setattr(logging, "captureWarnings", lambda _: None)
    logs.log_unhandled()
    try:
        raise ValueError("wrong")
    except ValueError as error:
        logging.getLogger("asyncio").exception("Task exception was never retrieved")
        sys.excepthook(type(error), error, error.__traceback__)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    lines = [json.loads(line) for line in stderr.getvalue().splitlines()]
    assert ["ValueError: wrong" in line["exception"] for line in lines] == [True, True, False]
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert "Traceback" in lines[0]["exception"]
