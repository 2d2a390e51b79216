"""Several pictures in one call against one call each, on the embedded model; python -m bench.batching.

First the engine alone: calls of two, four and eight pictures and the same pictures one by one take turns, at several
sizes. Then two services, one of which may make eight pictures in a call: the same burst of tasks goes to each in turn,
and what the second one made of its permission is read from its journal.
"""

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.conftest import load_command
from tests.server import Server

from bench._shared import machine, table
from imagegen.builtin import default_config
from imagegen.catalog.loading import load_catalog
from imagegen.core.task import GenerationRequest
from imagegen.gpu.protocol import EngineOptions, Generate, Generated, Loaded
from imagegen.gpu.worker_engine import WorkerEngine
from imagegen.loaders import SPECS
from imagegen.settings import Settings
from imagegen.storage.journal import TaskFilter, TaskJournal

SIDES = (64, 128, 256)
SIZES = (2, 4, 8)
STEPS = 8
WORDS = ("a red circle on a blue background", "a green star", "a cat on a table", "three yellow squares in a row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=24)
    options = parser.parse_args()
    print(f"{machine()}, medians of {options.rounds} interleaved rounds, {STEPS} steps:\n")
    head = "picture | one by one, pictures/s | " + " | ".join(f"{pictures} in a call" for pictures in SIZES)
    print(table(head, calls(options.rounds)))
    head = "picture | max_batch 1, pictures/s | max_batch 8 | gain | calls that the service made, by pictures"
    print(f"\n{table(head, bursts(options.rounds, options.tasks))}")


# -- the engine --------------------------------------------------------------------------------------------------------


def calls(rounds: int) -> Iterator[list[str]]:
    """For each size: pictures a second alone, and by how much calls of several are faster."""
    engine = WorkerEngine(EngineOptions())
    assert isinstance(engine.load(load_command(load_catalog(default_config(), SPECS), "tiny")), Loaded)
    for side in SIDES:
        seconds: dict[int, list[float]] = {size: [] for size in (1, *SIZES)}
        for number in range(rounds + 1):
            for size, measured in seconds.items():
                took = made(engine, side, size)
                measured.extend([took] if number else [])  # the first round warms up
        gains = (statistics.median(map(_ratio, seconds[1], seconds[size])) for size in SIZES)
        pace = 1 / statistics.median(seconds[1])
        yield [f"{side}x{side}", f"{pace:.1f}", *(f"{gain:.2f}" for gain in gains)]
    engine.close()


def made(engine: WorkerEngine, side: int, size: int) -> float:
    """Seconds a picture: eight of them, in calls of `size`."""
    requests = [request(side, seed) for seed in range(8)]
    began = time.perf_counter()
    for first in range(0, 8, size):
        head, *others = requests[first : first + size]
        command = Generate(model="tiny", request=head, companions=tuple(others), together=size > 1)
        assert isinstance(engine.generate(command, threading.Event(), lambda *step: None), Generated)
    return (time.perf_counter() - began) / 8


def request(side: int, seed: int) -> GenerationRequest:
    words = WORDS[seed % len(WORDS)]
    return GenerationRequest(prompt=words, width=side, height=side, steps=STEPS, guidance_scale=0, seed=seed)


# -- the service -------------------------------------------------------------------------------------------------------


def bursts(rounds: int, tasks: int) -> Iterator[list[str]]:
    """For each size: pictures a second of both services, and what calls the one that may share them made."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        root = Path(folder)
        with serving(root, 1) as plain, serving(root, 8) as sharing:
            paces = {side: raced({1: plain, 8: sharing}, side, rounds, tasks) for side in SIDES}
            plain.terminate()
            sharing.terminate()
        shared = asyncio.run(calls_of(root / "data-8"))
    for side, measured in paces.items():
        gain = statistics.median(map(_ratio, measured[8], measured[1]))
        pace = (f"{statistics.median(measured[which]):.1f}" for which in (1, 8))
        counts = ", ".join(f"{count // size} of {size}" for size, count in sorted(shared[side].items()))
        yield [f"{side}x{side}", *pace, f"{gain:.2f}", counts]


def serving(root: Path, max_batch: int) -> Server:
    config = root / f"models-{max_batch}.yaml"
    text = default_config().read_text()
    config.write_text(text.replace("builtin:tiny\n", f"builtin:tiny\n    max_batch: {max_batch}\n"))
    return Server(root / f"data-{max_batch}", config, IMAGEGEN_MAX_QUEUE="1000")


def raced(servers: Mapping[int, Server], side: int, rounds: int, tasks: int) -> dict[int, list[float]]:
    """Pictures a second of each in turn. The first rounds are for what the service learns and are not counted."""
    paces: dict[int, list[float]] = {which: [] for which in servers}
    for number in range(rounds + 2):
        for which, server in servers.items():
            pace = tasks / burst(server, side, tasks)
            paces[which].extend([pace] if number >= 2 else [])
    return paces


def burst(server: Server, side: int, tasks: int) -> float:
    began = time.perf_counter()
    shape = {"width": side, "height": side, "steps": STEPS}
    ids = [server.submit(WORDS[seed % len(WORDS)], seed=seed, **shape) for seed in range(tasks)]
    assert all(server.until(task_id)["status"] == "completed" for task_id in ids)
    return time.perf_counter() - began


async def calls_of(data: Path) -> dict[int, Counter[int]]:
    """By the pictures' side and by how many were in the call: how many pictures."""
    journal = TaskJournal(Settings(data_dir=data).journal_path)
    page = await journal.page(TaskFilter(), 1_000_000)
    await journal.close()
    counts: dict[int, Counter[int]] = {side: Counter() for side in SIDES}
    for task in page.tasks:
        assert task.provenance is not None
        counts[task.request.width][task.provenance.call_pictures] += 1
    return counts


def _ratio(one: float, other: float) -> float:
    return one / other


if __name__ == "__main__":
    main()
