"""How many tasks a second are accepted, each on disk before its 202; python -m bench.throughput [--clients 64]."""

import argparse
import asyncio
import statistics
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import uvloop
from tests.server import Server

from bench._shared import DOCS, Connection, bars, cpu_s, machine, quantile, table
from imagegen.testing.config import fake_config

BODY = {"prompt": "a red circle on a blue background", "seed": 7}


class Accepted(NamedTuple):
    a_second: float
    latencies: list[float]
    #: Of the service, for each task.
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--plot", type=Path, default=DOCS / "accepting.svg")
    options = parser.parse_args()
    rounds: dict[int, list[Accepted]] = {1: [], options.clients: []}
    for _ in range(options.rounds):
        for clients, measured in rounds.items():
            measured.append(accept(clients, options.seconds))
    print(f"{machine()}, medians of {options.rounds} interleaved rounds:\n")
    print(table("clients | accepted a second | p50 ms | p99 ms | CPU ms each", map(row, rounds, rounds.values())))
    paces = {
        f"{clients} clients": statistics.median(it.a_second for it in measured) for clients, measured in rounds.items()
    }
    options.plot.write_text(bars("Accepted, every 202 on disk", {"two cores and the client": paces}, "tasks a second"))


def row(clients: int, measured: list[Accepted]) -> list[object]:
    p50, p99 = (statistics.median(quantile(it.latencies, q) for it in measured) * 1000 for q in (0.5, 0.99))
    pace, cpu = statistics.median(it.a_second for it in measured), statistics.median(it.cpu_s for it in measured)
    return [clients, f"{pace:.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{cpu * 1000:.2f}"]


def accept(clients: int, seconds: float) -> Accepted:
    """A fresh service whose first task never ends: all that it does is accept."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        config = Path(folder) / "models.yaml"
        config.write_text(fake_config(fake={"step_seconds": 3600}))
        with Server(Path(folder) / "data", config, IMAGEGEN_MAX_QUEUE="100000") as server:
            server.until(server.submit(), "processing")
            before, began = cpu_s(server), time.perf_counter()
            latencies = uvloop.run(load(str(server.http.base_url), clients, seconds))
            took, cpu = time.perf_counter() - began, cpu_s(server) - before
            server.kill()
    return Accepted(len(latencies) / took, latencies, cpu / len(latencies))


async def load(address: str, clients: int, seconds: float) -> list[float]:
    end = time.perf_counter() + seconds
    latencies = await asyncio.gather(*(submit_until(end, address) for _ in range(clients)))
    return list(chain.from_iterable(latencies))


async def submit_until(end: float, address: str) -> list[float]:
    connection, latencies = await Connection.open(address), []
    while (began := time.perf_counter()) < end:
        status, answer = await connection.ask("POST", "/text2image", BODY)
        assert status == 202, answer
        latencies.append(time.perf_counter() - began)
    connection.close()
    return latencies


if __name__ == "__main__":
    main()
