"""How long the event loop is busy with one question while 100,000 tasks wait; python -m bench.long_queue [--tasks N].

The queue, the forecasts and the manager are the real ones; the journal is left out, because its thread does not hold up
the loop. Half of the tasks share calls, and every tenth has another priority.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.conftest import request_for
from tests.unit.conftest import task_id, task_of

from bench._shared import machine, quantile, table
from imagegen.core.task import GenerationTask
from imagegen.tasks.admission import Limits
from imagegen.tasks.batching import companions
from imagegen.tasks.life import LiveTask
from imagegen.testing.config import fake_catalog
from imagegen.testing.engine import ScriptedEngine
from imagegen.testing.managers import Managers

MODELS = "abcdefgh"


class House:
    """A TaskManager whose run loop does not run."""

    def __init__(self, root: Path, tasks: int) -> None:
        models = {name: {"max_batch": 8 if name in "abcd" else 1} for name in MODELS}
        limits = Limits(max_queue=2 * tasks, max_batch_size=4, max_pixels=2**20)
        managers = Managers(root, ScriptedEngine(waits=True), fake_catalog(**models), limits=limits)
        self.device, self.manager = managers.device, managers.tasks
        self.count = 0
        for _ in range(tasks):
            self.enqueue()

    def enqueue(self) -> GenerationTask:
        self.count += 1
        priority = 0 if self.count % 10 else 1
        task = task_of(self.count, model=MODELS[self.count % len(MODELS)], priority=priority)
        task = task.evolve(sequence=self.count, request=request_for(seed=self.count))
        now = self.device.clock()
        self.manager._intake.enqueue(LiveTask(task, now, now + 3600))
        return task

    async def questions(self) -> list[tuple[str, Callable[[], object]]]:
        some = [self.manager.records.live[task_id(self.count * part // 4 or 1)].record for part in range(1, 5)]
        request, outlooks = request_for(), self.manager._outlooks

        def start() -> None:
            ticket = self.device.queue.get_nowait()
            companions(ticket, self.device.queue.companions(ticket), 8)  # type: ignore[arg-type]
            self.device.queue.put_nowait(ticket)
            outlooks.changed()

        def show_after_a_change() -> None:
            outlooks.changed()
            self.manager.outlook(some[2])

        return [
            ("accept a task: enqueue it", self.enqueue),
            ("show a waiting task after a change", show_after_a_change),
            ("show 50 waiting tasks", lambda: [self.manager.outlook(some[n % 4]) for n in range(50)]),
            ("plan a request", lambda: outlooks.plan("a", request, 0, None)),
            ("take the next task and its companions", start),
            ("look for missed deadlines", self.manager._intake.late),
            ("the models that are wanted", lambda: self.manager.wanted),
            ("when to try again", outlooks.retry_after),
        ]


async def measure(root: Path, tasks: int, rounds: int) -> Iterator[list[str]]:
    house = House(root, tasks)
    rows = []
    for name, ask in await house.questions():
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            ask()
            times.append(1000 * (time.perf_counter() - began))
        rows.append([name, f"{quantile(times, 0.5):.2f}", f"{max(times):.2f}"])
    return iter(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        rows = asyncio.run(measure(Path(root), options.tasks, options.rounds))
    print(f"{machine()}, {options.tasks:,} waiting tasks, {options.rounds} rounds:\n")
    print(table("question | p50 ms | worst ms", rows))


if __name__ == "__main__":
    main()
