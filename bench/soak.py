"""A hundred thousand tasks of two models with retention on: do memory and descriptors stay, and does the pace?

python -m bench.soak [--tasks 100000] [--looks 10] [--clients 16]
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import psutil
import uvloop
from tests.server import Server

from bench._shared import Connection, cpu_s, machine, table
from imagegen.testing.config import fake_config

#: Ended tasks that are kept, far fewer than are made between two looks.
KEPT = 1000

BODY = {"prompt": "a red circle on a blue background", "steps": 4, "width": 64, "height": 64}
HEAD = "tasks | a second | CPU ms each | service MiB | worker MiB | descriptors | threads | journal MB | pictures"


class Look(NamedTuple):
    """The service after so many tasks."""

    tasks: int
    a_second: float
    cpu_ms: float
    service: int
    worker: int
    descriptors: int
    threads: int
    journal: int
    pictures: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--looks", type=int, default=10)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    print(f"{machine()}, {options.clients} clients, {KEPT} tasks kept:\n")
    print(table(HEAD, map(row, soak(options.tasks, options.looks, options.clients))))


def soak(tasks: int, looks: int, clients: int) -> Iterator[Look]:
    """Look at the service before, and after each part of the tasks."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        config = Path(folder) / "config" / "models.yaml"
        config.parent.mkdir()
        config.write_text(fake_config(first={}, second={}))
        variables = {"IMAGEGEN_RETENTION_TASKS": str(KEPT), "IMAGEGEN_HOUSEKEEPING_S": "5"}
        data = Path(folder) / "data"
        with Server(data, config, **variables) as server:
            uvloop.run(make(server, clients * 4, clients))  # everything is imported and allocated once
            yield look(server, data, 0, 0, 0)
            for part in range(1, looks + 1):
                number, cpu, began = tasks // looks, cpu_s(server), time.perf_counter()
                uvloop.run(make(server, number, clients))
                seconds = time.perf_counter() - began
                yield look(server, data, part * number, number / seconds, (cpu_s(server) - cpu) / number * 1000)
            assert server.terminate() == 0


async def make(server: Server, tasks: int, clients: int) -> None:
    """Make so many tasks of both models by turns, each client one after the other."""
    numbers = count()

    async def client() -> None:
        connection = await Connection.open(str(server.http.base_url).rstrip("/"))
        while (number := next(numbers)) < tasks:
            status, accepted = await connection.ask(
                "POST", "/text2image", BODY | {"model": ("first", "second")[number % 2]}
            )
            assert status == 202, accepted
            names = [name async for name in connection.events(json.loads(accepted)["links"]["events"])]
            assert names[-1] == "completed", names
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))


def look(server: Server, data: Path, tasks: int, a_second: float, cpu_ms: float) -> Look:
    service = psutil.Process(server.process.pid)
    journal = sum(path.stat().st_size for path in data.glob("imagegen.sqlite3*"))
    pictures = sum(1 for path in (data / "images").rglob("*") if path.is_file())
    return Look(
        tasks,
        a_second,
        cpu_ms,
        service.memory_info().rss,
        server.worker().memory_info().rss,
        service.num_fds(),
        service.num_threads(),
        journal,
        pictures,
    )


def row(it: Look) -> list[object]:
    mib = 2**20
    pace = [f"{it.a_second:.0f}", f"{it.cpu_ms:.1f}"] if it.tasks else ["", ""]
    memory = [f"{it.service / mib:.1f}", f"{it.worker / mib:.1f}"]
    return [f"{it.tasks:,}", *pace, *memory, it.descriptors, it.threads, f"{it.journal / 1e6:.1f}", it.pictures]


if __name__ == "__main__":
    main()
