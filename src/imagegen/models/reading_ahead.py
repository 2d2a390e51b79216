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

#: Files that take more than the available memory divided by this are not read: the page cache would drop them.
_SHARE = 2


class ReadingAhead:
    """Reads the files of one model in a thread, and remembers how far it has come. Event loop only."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._pieces: Iterator[None] = iter(())
        self._thread: asyncio.Future[None] | None = None

    @contextmanager
    def of(self, model: str | None, files: Callable[[], Sequence[Path]]) -> Iterator[None]:
        """Read a model's files while the context lasts; continue where its last context ended. None: read nothing.

        `files` is called in the thread. If it raises EngineError or OSError, nothing is read, and the load of the model
        reports the error. The thread may run on after the context until it has read one piece; a new thread starts only
        after it has ended.
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
        """Read all files again at the next context. The model was loaded, so its files may leave the page cache."""
        if model == self._model:
            self._model = None


def _read(pieces: Iterator[None], stop: Event) -> None:
    with suppress(EngineError, OSError):
        while not stop.is_set() and next(pieces, stop) is not stop:
            pass


def _pieces(files: Callable[[], Sequence[Path]]) -> Iterator[None]:
    """Read the files, one piece a step, if they fit into the memory.

    `posix_fadvise` would not read them: on Linux one call of it reads at most what the disk accepts in one request.
    """
    paths, buffer = files(), bytearray(PIECE)
    if sum(path.stat().st_size for path in paths) > available_bytes() // _SHARE:
        return
    for path in paths:
        with open(path, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                yield
