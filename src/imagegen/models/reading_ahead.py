"""ReadingAhead: reads the files of the model that is loaded next into the page cache while another model works."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from imagegen.core.errors import EngineError
from imagegen.loaders.host_memory import available_bytes

#: Bytes that are read at a time. The thread checks between two pieces whether it must stop.
PIECE = 8 * 2**20

#: Files that are larger than the available memory divided by this are not read: the page cache would drop them.
_SHARE = 2


class ReadingAhead:
    """Owns the position in the files of one model. Event loop only; a thread reads."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._pieces: Iterator[None] = iter(())
        self._thread: asyncio.Future[None] | None = None

    @contextmanager
    def of(self, model: str | None, files: Callable[[], Sequence[Path]]) -> Iterator[None]:
        """Read a model's files while the context lasts, from where its last context stopped. None: read nothing.

        `files` is called in the thread. If it raises EngineError or OSError, nothing is read: the load reports it.
        The thread may outlast the context by one piece; no other thread starts before it ends.
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
        """Start over at the next context: the model was loaded, and its files may leave the page cache."""
        if model == self._model:
            self._model = None


def _read(pieces: Iterator[None], stop: Event) -> None:
    with suppress(EngineError, OSError):
        while not stop.is_set() and next(pieces, stop) is not stop:
            pass


def _pieces(files: Callable[[], Sequence[Path]]) -> Iterator[None]:
    """Read the files, one piece at each step, if the memory holds them.

    `posix_fadvise` would not do: on Linux one such call reads no more than the disk accepts in one request.
    """
    paths, buffer = files(), bytearray(PIECE)
    if sum(path.stat().st_size for path in paths) > available_bytes() // _SHARE:
        return
    for path in paths:
        with open(path, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                yield
