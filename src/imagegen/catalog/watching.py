"""Notices that a file changed, however it was changed, and waits until whoever writes it is done."""

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from watchfiles import Change, awatch

from imagegen.catalog.file import ConfigFile, Stamp

#: Milliseconds after which a look is taken even if nothing was told: not every file system tells.
_LOOK_MS = 5000
#: Seconds between two tries where the folder itself is gone.
_AGAIN_S = 1.0
#: A file is whole once it has not changed for so long, and nobody has it open for writing ...
QUIET_S = 0.2
#: ... for which nobody is waited for longer than this.
_PATIENCE_S = 30.0


class Trail(NamedTuple):
    """The places at which a file can be exchanged for another: its own, and each link on the way to it."""

    places: frozenset[str]

    @property
    def folders(self) -> set[str]:
        return {os.path.dirname(place) for place in self.places}

    def concerns(self, change: Change, path: str) -> bool:
        return path in self.places


def trail(path: Path) -> Trail:
    """Follow the links. A ConfigMap is `models.yaml -> ..data/models.yaml`, `..data -> ..2026_11_23`: three places."""
    places: set[str] = set()
    rest = list(reversed(path.absolute().parts[1:]))
    here = Path(path.absolute().anchor)
    links = 0
    while rest and links < 40:  # as many as Linux follows
        here /= rest.pop()
        if here.is_symlink():
            links += 1
            places.add(str(here))
            target = here.readlink()
            rest += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here = Path(target.anchor) if target.is_absolute() else here.parent
        elif here.name == "..":
            here = here.parent.parent
    return Trail(frozenset({*places, str(here)}))


async def changes(file: ConfigFile, known: Stamp | None, stop: asyncio.Event) -> AsyncIterator[None]:
    """Yields after each change since it was `known`, once the file is whole. Ends soon after `stop`."""
    while not stop.is_set():
        try:
            async for _ in _hints(file, stop):
                if file.stamp() != known:
                    known = await settled(file, stop)
                    yield
        except (OSError, RuntimeError):  # the folder is gone, or there is nothing left to watch with: look now and then
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _AGAIN_S)


async def _hints(file: ConfigFile, stop: asyncio.Event) -> AsyncIterator[None]:
    """That something may have changed; ends when other folders are to be watched."""
    watched = trail(file.path)
    yield  # it may have changed while nobody watched
    async for _ in awatch(
        *watched.folders,
        watch_filter=watched.concerns,
        debounce=50,
        step=20,
        stop_event=stop,
        rust_timeout=_LOOK_MS,
        yield_on_timeout=True,
        recursive=False,
    ):
        yield
        if trail(file.path) != watched:
            return


async def settled(file: ConfigFile, stop: asyncio.Event) -> Stamp | None:
    """Wait until the file is left alone; what it is then."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE_S
    stamp = file.stamp()
    while not stop.is_set():
        await asyncio.sleep(QUIET_S)
        before, stamp = stamp, file.stamp()
        if loop.time() > deadline or (stamp == before and not is_being_written(file.path)):
            break
    return stamp


def is_being_written(path: Path) -> bool:
    """Whether some process has the file open for writing, where the system tells: Linux, for the file's owner.

    A read lease is granted only where nobody writes; it is given back at once.
    """
    if sys.platform != "linux":
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Should somebody open it at this very moment, the signal must not be SIGIO, which ends the process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
