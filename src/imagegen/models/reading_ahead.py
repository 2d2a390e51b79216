"""ReadingAhead: brings the files of the model that is loaded next into the page cache while another model works."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from imagegen.core.errors import EngineError
from imagegen.loaders.host_memory import available_bytes

#: Bytes that are read at a time. Between two pieces the thread looks whether it is to stop.
PIECE = 8 * 2**20

#: The files may take this share of the memory that is available: the page cache gives way to whatever needs memory.
_SHARE = 2


class ReadingAhead:
    """Owns how far it has come. Used on the loop; a thread reads."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._pieces: Iterator[None] = iter(())
        self._thread: asyncio.Future[None] | None = None

    @contextmanager
    def of(self, model: str | None, files: Callable[[], Sequence[Path]]) -> Iterator[None]:
        """Read a model's files while the context lasts, from where the last context for it ended. None: no model.

        `files` is called in the thread; if it raises EngineError or OSError, nothing is read: the load will tell why.
        The thread may end after the context does, with the piece that it reads; until then no other one begins.
        """
        stop = Event()
        if model is not None and (self._thread is None or self._thread.done()):
            if model != self._model:
                self._model, self._pieces = model, _pieces(files)
            self._thread = asyncio.get_running_loop().run_in_executor(None, _read, self._pieces, stop)
        try:
            yield
        finally:
            stop.set()

    def forget(self, model: str) -> None:
        """It was loaded. Until it is needed again, its files may have left the page cache."""
        if model == self._model:
            self._model = None


def _read(pieces: Iterator[None], stop: Event) -> None:
    with suppress(EngineError, OSError):
        while not stop.is_set() and next(pieces, stop) is not stop:
            pass


def _pieces(files: Callable[[], Sequence[Path]]) -> Iterator[None]:
    """Read the files if there is memory for them, a piece at each step.

    By reading and not by `posix_fadvise`: Linux lets one such call fetch no more than a request of the disk may have.
    """
    paths, buffer = files(), bytearray(PIECE)
    if sum(path.stat().st_size for path in paths) > available_bytes() // _SHARE:
        return
    for path in paths:
        with open(path, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                yield
