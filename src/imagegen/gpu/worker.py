"""The worker process: reads commands from its socket, runs them on a LocalEngine, writes answers."""

import logging
import sys
import threading
import warnings
from multiprocessing.connection import Connection

from structlog.contextvars import bind_contextvars, clear_contextvars

from imagegen import logs
from imagegen.core.children import follow_parent, ignore_signals
from imagegen.core.value import Value
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import (
    EngineOptions,
    Generate,
    Load,
    Measure,
    Step,
    StopGenerating,
    Traced,
    Unload,
    pack,
    unpack_command,
)


def main(fd: int, options: EngineOptions) -> None:
    """Serve commands until the parent closes the socket."""
    follow_parent()
    with Connection(fd) as connection:
        session = Session(connection, LocalEngine(options))
        try:
            while True:
                session.serve_one()
        except (EOFError, ConnectionError):
            return


class Session:
    """The connection to the parent."""

    def __init__(self, connection: Connection, engine: LocalEngine) -> None:
        self._connection = connection
        self._engine = engine
        self._stop = threading.Event()

    def serve_one(self) -> None:
        """Run the next command and send its answer."""
        command = unpack_command(self._connection.recv_bytes())
        clear_contextvars()
        if isinstance(command, Traced):
            bind_contextvars(**command.log_context)
        match command:
            case Load():
                self._send(self._engine.load(command))
            case Unload():
                self._send(self._engine.unload(command))
            case Generate():
                self._stop.clear()
                self._send(self._engine.generate(command, self._stop, self._on_step))
            case Measure():
                self._send(self._engine.measure())
            case StopGenerating():
                pass  # late: that call has already ended

    def _on_step(self, step: int, total: int, preview: bytes = b"") -> None:
        self._send(Step(step=step, total=total, preview=preview))
        # While a command runs, the parent sends nothing but StopGenerating.
        if self._connection.poll(0) and isinstance(unpack_command(self._connection.recv_bytes()), StopGenerating):
            self._stop.set()

    def _send(self, answer: Value) -> None:
        self._connection.send_bytes(pack(answer))


def quiet() -> None:
    """Log to stderr in the service's format; it is the service's stderr.

    Of the libraries, only errors are logged, because their warnings are meant for developers.
    """
    warnings.simplefilter("ignore")
    logs.configure(libraries=logging.ERROR)


if __name__ == "__main__":
    ignore_signals()
    quiet()
    main(int(sys.argv[1]), EngineOptions.model_validate_json(sys.argv[2]))
