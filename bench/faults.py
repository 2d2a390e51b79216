"""A fault of the model again and again: nothing grows, nothing stays stuck, and the task after it is completed.

python -m bench.faults [--out-of-memory 1000] [--worker 200] [--only out_of_memory,hang]
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import psutil
from tests.server import Server

from bench._shared import machine, quantile, table
from bench.livez import probe
from imagegen.testing.config import fake_config

#: The faults of the fake family, and the code of a task that has one in each of its attempts.
CODES = MappingProxyType(
    {
        "out_of_memory": "out_of_memory",
        "abort": "worker_crashed",
        "segfault": "worker_crashed",
        "device_fault": "worker_crashed",
        "exit": "worker_crashed",
        "hang": "worker_hung",
    }
)

#: Only a lack of memory does not end the worker; after the others a task is tried once more.
ATTEMPTS = MappingProxyType({"out_of_memory": 1})

#: Seconds after which a worker that hangs is killed.
STEP_TIMEOUT_S = 2

#: How often the service is looked at in the rounds of one fault.
LOOKS = 20

HEAD = "fault | times | tasks | s each | service MiB | worker MiB | descriptors | processes | /livez p99 ms | worst ms"


class Look(NamedTuple):
    """The service between two rounds."""

    service: int
    worker: int
    descriptors: int
    processes: int


class Rounds(NamedTuple):
    """What the rounds of one fault left."""

    faults: int
    tasks: int
    seconds: float
    looks: list[Look]


def variables() -> dict[str, str]:
    """The environment of the service."""
    return {"IMAGEGEN_STEP_TIMEOUT_S": str(STEP_TIMEOUT_S)}


def config() -> str:
    """A model for each fault. It occurs if the prompt says so."""
    return fake_config(**{name: {"steps": 2, "fault": name, "fault_prompt": "fault"} for name in CODES})


def rounds(server: Server, fault: str, number: int) -> Rounds:
    """Cause the fault so many times. Each task that has it fails, and the next one of the model is completed."""
    attempts = ATTEMPTS.get(fault, 2)
    turns = -(-number // attempts)
    looks, began = list[Look](), time.monotonic()
    for turn in range(turns):
        faulty, fine = (server.submit(prompt, model=fault) for prompt in ("a fault", "a picture"))
        end = server.until(faulty)
        assert (end["status"], end["error_code"], end["attempt"]) == ("failed", CODES[fault], attempts), end
        assert (end := server.until(fine))["status"] == "completed", end
        if turn % max(1, turns // LOOKS) == 0 or turn == turns - 1:
            looks.append(look(server))
    return Rounds(attempts * turns, 2 * turns, time.monotonic() - began, looks)


def look(server: Server) -> Look:
    service, worker = psutil.Process(server.process.pid), server.worker()
    return Look(
        service.memory_info().rss,
        worker.memory_info().rss,
        service.num_fds(),
        1 + len(service.children(recursive=True)),
    )


@contextmanager
def probed(server: Server) -> Iterator[list[float]]:
    """The latencies of /livez in this block, measured in a process of their own. One that fails raises at the end."""
    livez, over = list[float](), threading.Event()

    def ask() -> None:
        while not over.is_set():
            livez.extend(prober.submit(probe, str(server.http.base_url), 1).result())

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as prober, ThreadPoolExecutor(1) as thread:
        asking = thread.submit(ask)
        try:
            yield livez
        finally:
            over.set()
        asking.result()


def nothing_left(server: Server) -> None:
    """The service has nothing to do, ends well and leaves no process."""
    assert server.http.get("/health").json()["queue_size"] == 0
    for status in ("pending", "processing"):
        assert server.http.get("/tasks", params={"status": status}).json()["filtered"] == 0
    pid = server.process.pid
    assert server.terminate() == 0
    assert [it for it in psutil.pids() if session(it) == pid] == []


def session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out-of-memory", type=int, default=1000)
    parser.add_argument("--worker", type=int, default=200, help="of each fault that ends the worker")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CODES), help=", ".join(CODES))
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models.yaml").write_text(config())
        with Server(Path(folder) / "data", Path(folder) / "models.yaml", **variables()) as server:
            print(f"{machine()}:\n")
            print(table(HEAD, []), flush=True)
            for fault in options.only:
                number = options.out_of_memory if fault == "out_of_memory" else options.worker
                with probed(server) as livez:
                    seen = rounds(server, fault, number)
                print(f"| {' | '.join(map(str, row(fault, seen, livez)))} |", flush=True)
            nothing_left(server)


def row(fault: str, seen: Rounds, livez: list[float]) -> list[object]:
    """The figures of one fault. `a, b, c`: at the first look, in the middle, at the last."""
    some = [seen.looks[0], seen.looks[len(seen.looks) // 2], seen.looks[-1]]
    return [
        fault,
        seen.faults,
        seen.tasks,
        f"{seen.seconds / seen.faults:.2f}",
        ", ".join(f"{it.service / 2**20:.1f}" for it in some),
        ", ".join(f"{it.worker / 2**20:.1f}" for it in some),
        ", ".join(str(it.descriptors) for it in some),
        ", ".join(str(it.processes) for it in some),
        *(f"{quantile(livez, q) * 1000:.1f}" for q in (0.99, 1.0)),
    ]


if __name__ == "__main__":
    main()
