"""Hostile callers hold what they can: heads that never end, event streams, uploads that hang. Does the service go on?

python -m bench.hostile [--half-open 150] [--streams 1000] [--uploads 20] [--seconds 60]
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import uvloop
from tests.server import PATIENCE_S, Server

from bench._shared import machine, quantile, table
from bench.livez import probe
from imagegen.testing.config import fake_config

#: Seconds between two bytes of a caller that only wants to stay, and before it comes back.
TRICKLE_S, AGAIN_S = 1.0, 1.0

#: Bytes that an upload announces, and those that it sends at once; then it sends just enough not to be late.
ANNOUNCED, AT_ONCE, TRICKLE = 30 * 2**20, 25 * 2**20, 2048
PIECE = bytes(64 * 2**10)

#: Tasks that are submitted and awaited in the meantime, one after the other.
STEPS, STEP_S = 4, 0.05


class Crowd:
    """Hostile callers of one service, and what they were answered."""

    def __init__(self, server: Server) -> None:
        url = server.http.base_url
        self._host, self._port = url.host, int(url.port or 0)
        #: By what the caller wanted and the status; 0: the connection was closed without an answer.
        self.answers: Counter[tuple[str, int]] = Counter()
        #: Streams that are open now, and events that came on all streams.
        self.streams = 0
        self.events = 0
        #: Streams that were told why they end.
        self.told = 0
        self._opened = asyncio.Event()

    async def until(self, streams: int) -> None:
        """Return once so many streams are open."""
        while self.streams < streams:
            self._opened.clear()
            await self._opened.wait()

    @asynccontextmanager
    async def there(self, half_open: int = 0, streams: int = 0, uploads: int = 0) -> AsyncIterator[None]:
        """So many of each kind, until the block ends."""
        kinds: list[tuple[int, Callable[[], Coroutine[None, None, None]]]] = [
            (half_open, self._half_open),
            (uploads, self._upload),
            (streams, self._stream),
        ]
        callers = [asyncio.create_task(self._stay(come)) for number, come in kinds for _ in range(number)]
        try:
            yield
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)

    async def _stay(self, come: Callable[[], Coroutine[None, None, None]]) -> None:
        """Come back as soon as the service has closed the connection."""
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                await come()
            await asyncio.sleep(AGAIN_S)

    async def _half_open(self) -> None:
        await self._talk("head", "GET /tasks HTTP/1.1", b"", b"a: b\r\n")

    async def _upload(self) -> None:
        head = f"POST /image2image HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {ANNOUNCED}\r\n"
        await self._talk("upload", head.rstrip(), b"\r\n", bytes(TRICKLE), PIECE, AT_ONCE)

    async def _talk(
        self, kind: str, head: str, end: bytes, trickle: bytes, piece: bytes = b"", at_once: int = 0
    ) -> None:
        """Send a head, `at_once` bytes and then a trickle, until there is an answer."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        answer = asyncio.create_task(reader.read(65_536))
        try:
            writer.write(f"{head}\r\nhost: {self._host}:{self._port}\r\n".encode() + end)
            while not answer.done() and at_once > 0:
                writer.write(piece)
                at_once -= len(piece)
                draining = asyncio.create_task(writer.drain())
                await asyncio.wait([answer, draining], return_when=asyncio.FIRST_COMPLETED)
                draining.cancel()
                await asyncio.gather(draining, return_exceptions=True)
            while not answer.done():
                writer.write(trickle)
                await asyncio.wait([answer], timeout=TRICKLE_S)
            status = answer.result()[9:12]
            self.answers[kind, int(status or 0)] += 1
        except OSError:
            self.answers[kind, 0] += 1
            raise
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
            writer.transport.abort()

    async def _stream(self) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=2**20)
        try:
            writer.write(f"GET /events HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n\r\n".encode())
            status = int((await reader.readuntil(b"\r\n\r\n"))[9:12])
            self.answers["stream", status] += 1
            if status == 200:
                self.streams += 1
                self._opened.set()
                try:
                    await self._read(reader)
                finally:
                    self.streams -= 1
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            if line.startswith(b"event: "):
                self.events += 1
                self.told += line == b"event: closed\n"


class Siege(NamedTuple):
    """What was seen while the crowd was there."""

    livez: list[float]
    #: Seconds of each task, from the request to its end.
    tasks: list[float]
    #: Bytes of memory of the service, at most.
    rss: int
    #: Its open sockets, at most.
    sockets: int
    streams: int


async def besiege(server: Server, crowd: Crowd, prober: ProcessPoolExecutor, seconds: float) -> Siege:
    """Submit tasks and look at the service for so long. The crowd must be there already."""
    service, loop = psutil.Process(server.process.pid), asyncio.get_running_loop()
    end, took, sockets, streams = time.monotonic() + seconds, list[float](), 0, 0
    most = 0
    livez = loop.run_in_executor(prober, probe, str(server.http.base_url), seconds)
    while time.monotonic() < end or not livez.done():
        began = time.monotonic()
        await asyncio.to_thread(lambda: server.until(server.submit()))
        took.append(time.monotonic() - began)
        most = max(most, service.memory_info().rss)
        sockets = max(sockets, await asyncio.to_thread(lambda: len(service.net_connections("inet"))))
        streams = max(streams, crowd.streams)
    return Siege(await livez, took, most, sockets, streams)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half-open", type=int, default=150)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--uploads", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "models.yaml"
        config.write_text(fake_config(fake={"steps": STEPS, "step_seconds": STEP_S}))
        with Server(Path(folder) / "data", config) as server:
            print(uvloop.run(run(server, options)))


async def run(server: Server, options: argparse.Namespace) -> str:
    """The report: the same tasks and probes without the crowd, then with it; then SIGTERM while it is there."""
    crowd = Crowd(server)
    server.until(server.submit())
    before = psutil.Process(server.process.pid).memory_info().rss
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as prober:
        calm = await besiege(server, crowd, prober, options.seconds / 3)
        async with crowd.there(options.half_open, options.streams, options.uploads):
            with suppress(TimeoutError):
                await asyncio.wait_for(crowd.until(options.streams), PATIENCE_S)
            busy = await besiege(server, crowd, prober, options.seconds)
            began = time.monotonic()
            code = await asyncio.to_thread(server.terminate)
            took = time.monotonic() - began
    head = " | /livez p50 ms | p99 ms | worst ms | a task, median s | worst s | tasks"
    answers = {f"{kind} {status}": number for (kind, status), number in sorted(crowd.answers.items())}
    return "\n".join(
        (
            f"{machine()}; {options.half_open} half-open sockets, {options.streams} event streams, "
            f"{options.uploads} uploads that hang, {options.seconds:g} s:\n",
            table(head, [row("without them", calm), row("with them", busy)]),
            f"\nmemory: {(busy.rss - before) / 2**20:.0f} MiB more; sockets: {busy.sockets}, streams: {busy.streams}, "
            f"events: {crowd.events:,}; answers: {json.dumps(answers)}",
            f"SIGTERM: exit code {code} after {took:.1f} s; {crowd.told} of {busy.streams} streams were told why",
        )
    )


def row(what: str, siege: Siege) -> list[object]:
    livez = [f"{quantile(siege.livez, q) * 1000:.1f}" for q in (0.5, 0.99, 1.0)]
    tasks = [f"{quantile(siege.tasks, q):.2f}" for q in (0.5, 1.0)]
    return [what, *livez, *tasks, len(siege.tasks)]


if __name__ == "__main__":
    main()
