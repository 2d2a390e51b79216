"""Vitals: the machine below the service: processor, memory, disk, cards. No read of them delays the event loop."""

import asyncio
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from imagegen.core.value import Value
from imagegen.gpu.nvml import CardNow, cards
from imagegen.loaders.host_memory import available_bytes, machine_bytes

T = TypeVar("T")

#: Seconds for which an answer is given again, and seconds after which a question without an answer is left.
FRESH_S, LIMIT_S = 1.0, 1.0


class Asked(Generic[T]):
    """A question that the system may answer late or never. It is asked in a thread of its own, once at a time."""

    def __init__(self, ask: Callable[[], T], name: str, limit_s: float = LIMIT_S) -> None:
        self._ask = ask
        self._limit_s = limit_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._running: asyncio.Future[T] | None = None
        self._answered = float("-inf")
        self._answer: T | None = None

    async def answer(self) -> T | None:
        """The answer, at most FRESH_S old; None: there is none within the limit, or the system refuses."""
        if time.monotonic() - self._answered < FRESH_S:
            return self._answer
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().run_in_executor(self._thread, self._ask)
            self._running.add_done_callback(self._note)
        await asyncio.wait([self._running], timeout=self._limit_s)
        return self._answer if time.monotonic() - self._answered < FRESH_S else None

    def _note(self, done: asyncio.Future[T]) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is not None and not isinstance(error, OSError | ValueError):
            raise error
        self._answer, self._answered = (None if error else done.result()), time.monotonic()

    def close(self) -> None:
        """Do not wait for the thread, which may hang."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Host(Value):
    """Processor and memory. Bytes, and per cent of one core."""

    cores: int
    #: Of the last 1, 5 and 15 minutes.
    load: tuple[float, float, float]
    #: What this process has used since the answer before, or since its start.
    cpu: float
    memory_total: int
    memory_available: int
    #: Resident memory of this process.
    memory_ours: int


class _Used(NamedTuple):
    at: float
    seconds: float


class Vitals:
    """Asks the system. The answers are for people and monitors; nothing depends on them."""

    def __init__(self, free: Callable[[], int], pid: Callable[[], int | None]) -> None:
        """`free`: the free bytes of the data directory. `pid`: the process whose device memory is the service's own."""
        self._began = time.monotonic()
        self._used = _Used(self._began, time.process_time())
        self._free = Asked(free, "health-disk")
        self._cards = Asked(lambda: cards(pid()), "health-cards")
        self._host = Asked(self._look, "health-host")

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._began

    async def free(self) -> int | None:
        """Free bytes of the data directory; None: its disk does not answer."""
        return await self._free.answer()

    async def cards(self) -> tuple[CardNow, ...] | None:
        """All cards of the machine; None: there is no NVML, or it does not answer."""
        return await self._cards.answer()

    async def host(self) -> Host | None:
        """The machine; None: it does not answer."""
        return await self._host.answer()

    async def aclose(self) -> None:
        for asked in (self._free, self._cards, self._host):
            asked.close()

    def _look(self) -> Host:
        before, now = self._used, _Used(time.monotonic(), time.process_time())
        self._used = now
        return Host(
            cores=len(os.sched_getaffinity(0)),
            load=os.getloadavg(),
            cpu=100 * (now.seconds - before.seconds) / max(0.001, now.at - before.at),
            memory_total=machine_bytes(),
            memory_available=available_bytes(),
            memory_ours=_resident_bytes(),
        )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
