"""Watches a file for changes of any kind, and waits until its writer is done."""

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

#: Milliseconds after which the file is checked without a notification, because not every file system sends them.
_LOOK_MS = 5000
#: Seconds between two attempts while the folder is missing.
_AGAIN_S = 1.0
#: A file is complete once it has not changed for this many seconds and no process has it open for writing.
QUIET_S = 0.2
#: The most seconds to wait for a process that has it open for writing.
_PATIENCE_S = 30.0


class Trail(NamedTuple):
    """The places where a file can be replaced: its own path, and each link that leads to it."""

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
    while rest and links < 40:  # Linux follows as many
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
    """Yield after each change since `known`, once the file is complete. Ends soon after `stop` is set."""
    while not stop.is_set():
        try:
            async for _ in _hints(file, stop):
                if file.stamp() != known:
                    known = await settled(file, stop)
                    yield
        except (OSError, RuntimeError):  # the folder is missing, or cannot be watched: poll
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _AGAIN_S)


async def _hints(file: ConfigFile, stop: asyncio.Event) -> AsyncIterator[None]:
    """Yield when something may have changed; end when other folders must be watched."""
    watched = trail(file.path)
    yield  # it may have changed before the watch began
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
    """Wait until the file stops changing, at most _PATIENCE_S. Returns its stamp."""
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
    """Whether some process has the file open for writing. Works on Linux only, and for the file's owner.

    The kernel grants a read lease only while no process writes. The lease is released at once.
    """
    if sys.platform != "linux":
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # If a process opens the file at this moment, the signal must not be SIGIO, which ends this process.
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
