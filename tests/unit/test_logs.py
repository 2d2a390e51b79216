"""The log on stderr: one JSON object a line, including the whole error."""

import json
import logging
import socket
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
