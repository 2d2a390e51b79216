"""The example server of diffusers beside imagegen, with the same client; python -m bench.peers DIFFUSERS_CHECKOUT.

Both are asked `POST /v1/images/generations` and then for the picture at the URL of the answer. First around a pipeline
that returns a picture of 1024x1024 with grain at once, then with the embedded model; with one client and with many;
with servers and client together on one core, and on all that there are. The servers take turns, and the one that has
no turn is idle. The peer's program imports aiohttp.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import uvloop
from tests.server import PATIENCE_S, Server

from bench._embedded import SIDE, STEPS
from bench._shared import Connection, machine, quantile, table
from imagegen.testing.config import fake_config

CLIENTS = (1, 16)
PROMPT = "a red circle on a blue background"


class Program(NamedTuple):
    """A server that runs."""

    name: str
    pid: int
    address: str
    body: dict[str, object]


class Turn(NamedTuple):
    """What one server did in one turn."""

    a_second: float
    latencies: list[float]
    #: Of all of its processes, for each picture.
    cpu_s: float
    picture_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of diffusers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each turn")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    print(f"{machine()}, medians of {options.rounds} interleaved rounds of {options.seconds:g} s:\n")
    head = "pipeline, cores, clients | server | pictures/s | p50 ms | p99 ms | CPU s a picture | MB a picture | ratio"
    rows: list[list[object]] = []
    for kind in ("null", "tiny"):
        for used in [cores[:1], cores] if len(cores) > 1 else [cores]:
            os.sched_setaffinity(0, used)
            with ExitStack() as stack:
                programs = [stack.enter_context(peer(options.checkout, kind)), stack.enter_context(imagegen(kind))]
                for clients in CLIENTS:
                    rows += compared(f"{kind}, {len(used)}, {clients}", measure(programs, clients, options))
    print(table(head, rows))


@contextmanager
def peer(checkout: Path, kind: str) -> Iterator[Program]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "bench._peer", str(checkout), kind, str(port)])
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            httpx.get(address)
            break
        except httpx.ConnectError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    try:
        yield Program("diffusers examples/server", process.pid, address, {"model": "any", "prompt": PROMPT})
    finally:
        process.terminate()
        process.wait()


@contextmanager
def imagegen(kind: str) -> Iterator[Program]:
    size, steps = ("1024x1024", 1) if kind == "null" else (f"{SIDE}x{SIDE}", STEPS)
    body = {"prompt": PROMPT, "size": size, "steps": steps, "response_format": "url"}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        config = Path(folder) / "models.yaml"
        config.write_text(fake_config(null={"grain": True}))
        with Server(Path(folder) / "data", config if kind == "null" else None) as server:
            yield Program(
                "imagegen", server.process.pid, str(server.http.base_url).rstrip("/"), {"model": kind, **body}
            )
            server.terminate()


def measure(programs: list[Program], clients: int, options: argparse.Namespace) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {program.name: [] for program in programs}
    for program in programs:
        uvloop.run(turn(program, clients, 1))
    for _ in range(options.rounds):
        for program in programs:
            before = cpu_of(program.pid)
            pictures, latencies, size = uvloop.run(turn(program, clients, options.seconds))
            used = cpu_of(program.pid) - before
            turns[program.name].append(Turn(pictures, latencies, used / len(latencies), size))
    return turns


async def turn(program: Program, clients: int, seconds: float) -> tuple[float, list[float], int]:
    """Pictures a second, the seconds of each, and the bytes of one."""
    latencies: list[float] = []
    sizes: set[int] = set()
    began = time.perf_counter()

    async def client() -> None:
        connection = await Connection.open(program.address)
        while (asked := time.perf_counter()) < began + seconds:
            status, answer = await connection.ask("POST", "/v1/images/generations", program.body)
            assert status == 200, answer
            url = json.loads(answer)["data"][0]["url"]
            status, picture = await connection.ask("GET", url.removeprefix(program.address))
            assert (status, picture[:4]) == (200, b"\x89PNG")
            latencies.append(time.perf_counter() - asked)
            sizes.add(len(picture))
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return len(latencies) / (time.perf_counter() - began), latencies, max(sizes)


def cpu_of(pid: int) -> float:
    """Seconds of processor time of a process and its children."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(times.user + times.system for times in (each.cpu_times() for each in family))


def compared(what: str, turns: dict[str, list[Turn]]) -> Iterator[list[object]]:
    first = None
    for name, measured in turns.items():
        pace = statistics.median(turn.a_second for turn in measured)
        first = first or pace
        p50, p99 = (statistics.median(quantile(turn.latencies, q) for turn in measured) * 1000 for q in (0.5, 0.99))
        cpu = statistics.median(turn.cpu_s for turn in measured)
        size = measured[0].picture_bytes / 1e6
        yield [
            what,
            name,
            f"{pace:.1f}",
            f"{p50:.1f}",
            f"{p99:.1f}",
            f"{cpu:.3f}",
            f"{size:.2f}",
            f"{pace / first:.1f}",
        ]


if __name__ == "__main__":
    main()
