"""What a long history costs; python -m bench.history [--tasks 200000] [--rounds 20].

A journal with so many ended tasks, then the service on it: how long it takes to start, to list, to search, to accept
tasks alone and while two clients search without a pause, and to delete half of the history.
"""

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import httpx
from sqlalchemy import Connection, insert
from tests.conftest import request_for
from tests.server import Server
from tests.unit.conftest import task_id, task_of

from bench._shared import machine, quantile, table
from imagegen.core.task import TaskStatus
from imagegen.storage.database import Database
from imagegen.storage.journal import _columns
from imagegen.storage.tables import prompts, tasks
from imagegen.testing.config import fake_config

WORDS = (
    *("red", "blue", "green", "circle", "square", "star", "fox", "harbour", "winter", "night"),
    *("watercolour", "portrait", "of", "in", "the", "under", "a"),
)
CHUNK = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Path(folder), options.tasks, options.rounds))
    print(f"{machine()}, {options.tasks:,} ended tasks, {options.rounds} rounds:\n")
    print(table("what | p50 ms | worst ms", rows))


async def fill(path: Path, count: int) -> None:
    """Ended tasks with prompts of a dozen words."""
    database, chance = Database(path), Random(1)
    for begin in range(0, count, CHUNK):
        numbers = range(begin + 1, min(begin + CHUNK, count) + 1)

        def work(connection: Connection, numbers: range = numbers) -> None:
            rows = [row(number, chance) for number in numbers]
            connection.execute(insert(tasks), rows)
            texts = [{"rowid": r["sequence"], "prompt": r.pop("prompt")} for r in rows]
            connection.execute(insert(prompts), texts)

        def row(number: int, chance: Random) -> dict[str, object]:
            request = request_for(prompt=" ".join(chance.choices(WORDS, k=12)) + f" {number}")
            at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
            task = task_of(number, status=TaskStatus.COMPLETED, completed_at=at).evolve(request=request)
            ended = {"sequence": number, "ended_s": float(number), "id": task_id(number)}
            return _columns(task) | ended | {"prompt": request.prompt}

        await database.run(work, durable=False)
    await database.close()


def measure(folder: Path, count: int, rounds: int) -> Iterator[list[str]]:
    data, config = folder / "data", folder / "models.yaml"
    config.write_text(fake_config())
    asyncio.run(fill(data / "imagegen.sqlite3", count))
    began = time.perf_counter()
    with Server(data, config, IMAGEGEN_RETENTION_TASKS="0") as server:
        yield ["start, until it listens", f"{1000 * (time.perf_counter() - began):,.0f}", ""]
        http = server.http
        server.until(server.submit())

        def get(path: str) -> Callable[[], object]:
            return lambda: http.get(path).raise_for_status()

        def submit() -> None:
            http.post("/text2image", json={"prompt": "x", "steps": 1}).raise_for_status()

        yield row_of("GET /tasks", get("/tasks"), rounds)
        yield row_of("GET /task/{id} of an old task", get(f"/task/{task_id(count // 2)}"), rounds)
        yield row_of("search for `e`", get("/tasks?q=e"), rounds)
        yield row_of("search for `zq`, which no prompt has", get("/tasks?q=zq"), rounds)
        yield row_of("search for `harbour`", get("/tasks?q=harbour"), rounds)
        yield row_of("search for one number", get(f"/tasks?q={count // 3}"), rounds)
        yield row_of("POST /text2image", submit, rounds)
        with searching(str(http.base_url), 2) as searches:
            yield row_of("POST /text2image while two clients search for `zq`", submit, rounds)
        yield ["such a search meanwhile", f"{1000 * statistics.median(searches):,.1f}", f"{1000 * max(searches):,.1f}"]
        kept = count // 2
        began = time.perf_counter()
        http.put("/config/global", json={"retention_tasks": kept, "retention_days": 0}).raise_for_status()
        times = list[float]()
        while http.get("/health").json()["total_tasks"] > kept + 10:
            times.append(timed(submit))
        took = time.perf_counter() - began
        yield [f"delete {count - kept:,} tasks, in all", f"{1000 * took:,.0f}", ""]
        yield ["POST /text2image meanwhile", f"{quantile(times, 0.5):,.1f}", f"{max(times):,.1f}"]


def timed(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return 1000 * (time.perf_counter() - began)


def row_of(name: str, ask: Callable[[], object], rounds: int) -> list[str]:
    times = [timed(ask) for _ in range(rounds)]
    return [name, f"{quantile(times, 0.5):,.1f}", f"{max(times):,.1f}"]


@contextmanager
def searching(address: str, clients: int) -> Iterator[list[float]]:
    """Clients that search without a pause; yields the seconds of each search."""
    done, seconds = threading.Event(), [0.0]

    def search() -> None:
        with httpx.Client(base_url=address, timeout=60) as http:
            while not done.is_set():
                seconds.append(timed(lambda: http.get("/tasks?q=zq").raise_for_status()) / 1000)

    threads = [threading.Thread(target=search) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seconds
    finally:
        done.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
