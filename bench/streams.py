"""A thousand listeners of one task: what they cost and how late they hear; python -m bench.streams [--streams 1000]."""

import argparse
import asyncio
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import uvloop
from tests.server import Server

from bench._shared import Connection, cpu_s, machine, quantile, table
from imagegen.testing.config import fake_config

STEPS, STEP_S = 20, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(f"{machine()}; a task of {STEPS} steps, {STEP_S:g} s each:\n")
    rows = [row(streams) for streams in (1, options.streams)]
    print(table("streams | MiB more | CPU us an event and stream | lag p50 ms | p99 ms | /livez p99 ms", rows))


def row(streams: int) -> list[object]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "models.yaml"
        config.write_text(fake_config(fake={"steps": STEPS, "step_seconds": STEP_S}))
        with Server(Path(folder) / "data", config) as server:
            figures = uvloop.run(follow(server, streams))
            server.kill()
    return [streams, *figures]


async def follow(server: Server, streams: int) -> list[str]:
    """Have all streams open before the first step, and note when each hears of each event."""
    address, service = str(server.http.base_url), psutil.Process(server.process.pid)
    prober = await Connection.open(address)
    blocked = server.submit()
    server.until(blocked, "processing")
    path, rss = f"/task/{server.submit()}/events", service.memory_info().rss
    open_streams = asyncio.Semaphore(0)
    heard: dict[int, list[float]] = {}
    listeners = [asyncio.create_task(listen(address, path, heard, open_streams)) for _ in range(streams)]
    for _ in range(streams):
        await open_streams.acquire()
    grown, cpu, probes = service.memory_info().rss - rss, cpu_s(server), [0.0]
    server.http.post(f"/task/{blocked}/cancel")
    while not all(listener.done() for listener in listeners):
        began = time.perf_counter()
        await prober.ask("GET", "/livez")
        probes.append(time.perf_counter() - began)
        await asyncio.sleep(0.05)
    cpu = (cpu_s(server) - cpu) / (len(heard) * streams)
    lags = list(late(heard))
    return [
        f"{grown / 2**20:.1f}",
        f"{cpu * 1e6:.0f}",
        *(f"{quantile(lags, q) * 1000:.1f}" for q in (0.5, 0.99)),
        f"{quantile(probes, 0.99) * 1000:.1f}",
    ]


async def listen(address: str, path: str, heard: dict[int, list[float]], is_open: asyncio.Semaphore) -> None:
    connection, number = await Connection.open(address), 0
    async for _ in connection.events(path):
        if number == 0:
            is_open.release()
        else:
            heard.setdefault(number, []).append(time.perf_counter())
        number += 1
    connection.close()


def late(heard: dict[int, list[float]]) -> Iterator[float]:
    """For each event and stream: seconds after the first stream that heard of it."""
    for moments in heard.values():
        yield from (moment - min(moments) for moment in moments)


if __name__ == "__main__":
    main()
