"""How fast does /livez answer while models generate, and while they are loaded: worker process against thread.

python -m bench.livez [--rounds 5] [--seconds 6]
"""

import argparse
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
from tests.server import Server

#: Between two requests of the prober, in seconds.
PAUSE_S = 0.01

ISOLATIONS = ("process", "thread")

#: `loading` unloads the model before each picture.
ACTIVITIES = ("generating", "loading")

Case = tuple[str, str]


class Round(NamedTuple):
    """Measured in one round: latencies in seconds, and pictures made meanwhile."""

    latencies: list[float]
    pictures_per_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    options = parser.parse_args()
    rounds: dict[Case, list[Round]] = {(a, i): [] for a in ACTIVITIES for i in ISOLATIONS}
    with tempfile.TemporaryDirectory() as folder:
        servers = {i: Server(Path(folder) / i, IMAGEGEN_ISOLATION=i) for i in ISOLATIONS}
        for server in servers.values():
            server.until(server.submit())
        for _ in range(options.rounds):
            for (activity, isolation), measured in rounds.items():
                measured.append(measure(servers[isolation], activity, options.seconds))
        for server in servers.values():
            server.terminate()
    print(report(rounds))


def measure(server: Server, activity: str, seconds: float) -> Round:
    """Keep the model busy and ask /livez all the while."""
    busy = threading.Event()
    made: list[str] = []

    def keep_busy() -> None:
        while not busy.is_set():
            if activity == "loading":
                server.http.post("/models/unload").raise_for_status()
            server.until(server.submit("a yellow star on a purple background"))
            made.append("one")

    feeder = threading.Thread(target=keep_busy)
    feeder.start()
    began = time.monotonic()
    latencies = probe(str(server.http.base_url), seconds)
    pace = len(made) / (time.monotonic() - began)
    busy.set()
    feeder.join()
    return Round(latencies, pace)


def probe(address: str, seconds: float) -> list[float]:
    """Latencies of /livez on one kept-alive connection."""
    latencies = []
    with httpx.Client(base_url=address) as http:
        http.get("/livez")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            http.get("/livez").raise_for_status()
            latencies.append(time.perf_counter() - began)
            time.sleep(PAUSE_S)
    return latencies


def report(rounds: dict[Case, list[Round]]) -> str:
    """One Markdown row for each case; medians over the rounds."""
    lines = [
        f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}, "
        f"{len(rounds['generating', 'process'])} interleaved rounds, medians of the rounds:",
        "",
        "| activity | isolation | /livez p50 ms | p99 ms | worst ms | pictures/s |",
        "|---|---|---|---|---|---|",
    ]
    for (activity, isolation), measured in rounds.items():
        p50, p99, worst = (
            statistics.median(quantile(r.latencies, q) for r in measured) * 1000 for q in (0.5, 0.99, 1.0)
        )
        pace = statistics.median(r.pictures_per_s for r in measured)
        lines.append(f"| {activity} | {isolation} | {p50:.1f} | {p99:.1f} | {worst:.1f} | {pace:.1f} |")
    return "\n".join(lines)


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


if __name__ == "__main__":
    main()
