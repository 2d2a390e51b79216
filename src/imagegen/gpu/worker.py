"""The worker process: reads commands from its socket, runs them on a LocalEngine, writes answers."""

import logging
import sys
import threading
import warnings
from multiprocessing.connection import Connection

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
    Unload,
    pack,
    unpack_command,
)


def main(fd: int, options: EngineOptions) -> None:
    """Serve until the parent closes its end."""
    follow_parent()
    with Connection(fd) as connection:
        session = Session(connection, LocalEngine(options))
        try:
            while True:
                session.serve_one()
        except (EOFError, ConnectionError):
            return


class Session:
    """One conversation with the parent."""

    def __init__(self, connection: Connection, engine: LocalEngine) -> None:
        self._connection = connection
        self._engine = engine
        self._stop = threading.Event()

    def serve_one(self) -> None:
        """Run the next command and send its answer."""
        match unpack_command(self._connection.recv_bytes()):
            case Load() as command:
                self._send(self._engine.load(command))
            case Unload() as command:
                self._send(self._engine.unload(command))
            case Generate() as command:
                self._stop.clear()
                self._send(self._engine.generate(command, self._stop, self._on_step))
            case Measure():
                self._send(self._engine.measure())
            case StopGenerating():
                pass  # what it meant has already ended

    def _on_step(self, step: int, total: int, *preview: bytes) -> None:
        self._send(Step(step=step, total=total, preview=b"".join(preview)))
        # The parent says nothing but "stop" while a command runs.
        if self._connection.poll(0) and isinstance(unpack_command(self._connection.recv_bytes()), StopGenerating):
            self._stop.set()

    def _send(self, answer: Value) -> None:
        self._connection.send_bytes(pack(answer))


def quiet() -> None:
    """Only our own words go to stderr: the libraries' advice is for whoever wrote the loader."""
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.ERROR)


if __name__ == "__main__":
    ignore_signals()
    quiet()
    main(int(sys.argv[1]), EngineOptions.model_validate_json(sys.argv[2]))
