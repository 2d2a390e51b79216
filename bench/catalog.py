"""What a change of a long models.yaml over HTTP costs; python -m bench.catalog [--models 1900] [--rounds 3].

The CPU time of the service, from the request until it has seen and accepted the change of its own file.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
from tests.server import Server

from bench._shared import machine, table

#: One entry. With its lines, 1,900 of them have almost as many values as a file may have.
ENTRY = """  model-{number}:
    name: Model {number}   # the one with the number {number}
    type: fake
    memory_usage: low
    description: A model that is not there.
    base_size: 64
    steps: 4
    guidance_scale: 3.5
    auto_unload_minutes: 10
    max_batch: 1
    supports_img2img: true
"""

#: Seconds without a change of the CPU time after which the service has done all.
_STILL_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1900)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Path(folder), options.models, options.rounds))
    print(f"{machine()}, {options.models:,} models, median of {options.rounds} rounds:\n")
    print(table("change | answer s | CPU s", rows))


def measure(folder: Path, models: int, rounds: int) -> Iterator[list[str]]:
    config = folder / "models.yaml"
    config.write_text("models:\n" + "".join(ENTRY.format(number=number) for number in range(models)))
    with Server(folder / "data", config) as server:
        http, process = server.http, psutil.Process(server.process.pid)
        http.timeout = httpx.Timeout(600)
        settle(process)
        changes: dict[str, Callable[[int], httpx.Response]] = {
            "POST /models": lambda n: http.post(
                "/models", json={"model_id": f"new-{n}", "name": "New", "type": "fake", "steps": 3}
            ),
            "PATCH of one field": lambda n: http.patch("/models/model-7", json={"steps": 5 + n}),
            "PATCH of five fields": lambda n: http.patch(
                "/models/model-8",
                json={"steps": 5 + n, "name": f"N{n}", "base_size": 128 + n, "max_batch": 2 + n, "type": "fake"},
            ),
            "DELETE": lambda n: http.delete(f"/models/model-{100 + n}"),
        }
        for name, change in changes.items():
            waits, seconds = [], []
            for number in range(rounds):
                before, began = cpu_s(process), time.perf_counter()
                change(number).raise_for_status()
                waits.append(time.perf_counter() - began)
                settle(process)
                seconds.append(cpu_s(process) - before)
            yield [name, f"{statistics.median(waits):.2f}", f"{statistics.median(seconds):.2f}"]
        yield ["memory of the service, MiB", "", f"{process.memory_info().rss / 2**20:,.0f}"]


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def settle(process: psutil.Process) -> None:
    """Return once the service does nothing."""
    before = -1.0
    while (now := cpu_s(process)) - before > 0.03:
        before = now
        time.sleep(_STILL_S)


if __name__ == "__main__":
    main()
