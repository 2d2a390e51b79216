"""kill -9 of the whole service, repeatedly under load: each accepted task completes once, and nothing is damaged.

python -m tests.torture [--rounds 200] [--seed 1]
"""

import argparse
import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random, random
from typing import Any

import httpx
from PIL import Image

from imagegen.core.task import GenerationTask, TaskStatus
from imagegen.testing.config import fake_config
from imagegen.testing.fake import colour_of
from tests.server import Server, environment, serve_command

CLIENTS = 3
#: At most so many tasks are accepted in one run, if it takes no longer than that: the machine may be slow.
ACCEPTED, LIFE_S = 150, 5.0
#: One that is killed before it listens gets at most so many seconds.
START_S = 1.0
#: Every so manieth run is killed while it starts: then the journal is read, and written, without any client.
KILL_AT_START = 3


@dataclass
class Ledger:
    """The records of the clients, which survive the service."""

    #: The seed of each task that was answered with 202.
    accepted: dict[str, int] = field(default_factory=dict)
    #: Its record as soon as someone was told that it has ended.
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: What must never happen, in words.
    lost: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    #: Tasks that were killed twice while they made their picture: their attempts are used up, as promised.
    interrupted: int = 0

    def verdict(self) -> str:
        completed = len(self.accepted) - self.interrupted - len(self.lost)
        return (
            f"accepted {len(self.accepted)}, completed {completed}, failed as interrupted {self.interrupted}; "
            f"lost {len(self.lost)}, duplicates {len(self.duplicates)}, damage {len(self.damaged)}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ledger = torture(Path(folder), options.rounds, options.seed)
    print(f"{options.rounds} rounds: {ledger.verdict()}")  # noqa: T201 - it is a command
    faults = ledger.lost + ledger.duplicates + ledger.damaged
    print(*faults, sep="\n", end="")  # noqa: T201
    return 1 if faults else 0


def torture(folder: Path, rounds: int, seed: int, accepted: int = ACCEPTED) -> Ledger:
    """Kill the service `rounds` times, check the disk each time, and let it finish at the end."""
    ledger, chance, seeds = Ledger(), Random(seed), count()
    config, data = folder / "models.yaml", folder / "data"
    config.write_text(fake_config(fake={"step_seconds": 0.002}))
    for number in range(1, rounds + 1):
        if number % KILL_AT_START == 0:
            kill_at_start(data, config, chance.uniform(0, START_S))
        else:
            kill_under_load(data, config, chance.randrange(accepted), ledger, seeds)
        look_into(data, folder / "copy", ledger)
    with Server(data, config) as server:
        for task_id, seed_of in ledger.accepted.items():
            inspect_end(server, task_id, seed_of, ledger)
        server.terminate()
    look_for_leftovers(data, ledger)
    return ledger


# -- one round ---------------------------------------------------------------------------------------------------------


def kill_at_start(data: Path, config: Path, after_s: float) -> None:
    process = subprocess.Popen(
        serve_command(data, config), stderr=subprocess.DEVNULL, start_new_session=True, env=environment()
    )
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_under_load(data: Path, config: Path, after: int, ledger: Ledger, seeds: Iterator[int]) -> None:
    """Kill at a random moment: some milliseconds after this many tasks were accepted."""
    until = len(ledger.accepted) + after
    with Server(data, config, IMAGEGEN_MAX_QUEUE="200") as server:
        address = str(server.http.base_url)
        clients = [threading.Thread(target=use, args=(address, ledger, seeds)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        deadline = time.monotonic() + LIFE_S
        while len(ledger.accepted) < until and time.monotonic() < deadline:
            time.sleep(0.005 * random())
        server.kill()
        for client in clients:
            client.join()


def use(address: str, ledger: Ledger, seeds: Iterator[int]) -> None:
    """A client that submits tasks, checks earlier ones and records the answers, until the service is killed."""
    chance = Random()
    with httpx.Client(base_url=address) as http:
        while True:
            try:
                submit(http, next(seeds), ledger)
                look_again(http, chance.choice(list(ledger.accepted)[-50:] or [""]), ledger)
            except httpx.TransportError:
                return
            time.sleep(chance.uniform(0, 0.03))


def submit(http: httpx.Client, seed: int, ledger: Ledger) -> None:
    body = {"prompt": "x", "seed": seed, "batch_size": 1 + seed % 2, "priority": seed % 3}
    answer = http.post("/text2image", json=body)
    if answer.status_code == httpx.codes.ACCEPTED:
        ledger.accepted[answer.json()["task_id"]] = seed
    elif answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:  # the queue may be full
        ledger.damaged.append(f"a submit was answered with {answer.status_code}: {answer.text}")


def look_again(http: httpx.Client, task_id: str, ledger: Ledger) -> None:
    """An ended task does not change, and an accepted task is never lost."""
    if not task_id:
        return
    answer = http.get(f"/task/{task_id}")
    if answer.status_code != httpx.codes.OK:
        ledger.lost.append(f"{task_id}: answered with {answer.status_code}")
    elif answer.json()["status"] in ("completed", "failed"):
        note_end(task_id, answer.json(), ledger)


def note_end(task_id: str, task: dict[str, Any], ledger: Ledger) -> None:
    told = {key: task.get(key) for key in ("status", "completed_at", "attempt", "result_files")}
    if ledger.ended.setdefault(task_id, told) != told:
        ledger.duplicates.append(f"{task_id}: ended as {ledger.ended[task_id]}, then as {told}")


# -- what is on disk ---------------------------------------------------------------------------------------------------


def look_into(data: Path, copy: Path, ledger: Ledger) -> None:
    """Check a copy of the journal: the service must recover the original itself."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in data.glob("imagegen.sqlite3*"):
        shutil.copy(file, copy)
    if not (copy / "imagegen.sqlite3").exists():
        return  # killed before there was one
    with sqlite3.connect(copy / "imagegen.sqlite3") as journal:
        found = journal.execute("PRAGMA integrity_check").fetchall()
        known = {row[0] for row in journal.execute("SELECT name FROM sqlite_master")}
        rows = dict(journal.execute("SELECT id, status FROM tasks")) if "tasks" in known else {}
    journal.close()
    if found != [("ok",)]:
        ledger.damaged.append(f"integrity_check: {found}")
    ledger.lost += [f"{task_id}: not in the journal" for task_id in ledger.accepted if task_id not in rows]
    for task_id, told in ledger.ended.items():
        if rows.get(task_id) != told["status"]:
            ledger.duplicates.append(f"{task_id}: told as {told['status']}, stored as {rows.get(task_id)}")


def inspect_end(server: Server, task_id: str, seed: int, ledger: Ledger) -> None:
    """The task ends, and its pictures have the colours of its seed."""
    task = server.until(task_id)
    note_end(task_id, task, ledger)
    if (task["status"], task.get("error_code")) == ("failed", "interrupted"):
        ledger.interrupted += 1
    elif task["status"] != "completed":
        ledger.lost.append(f"{task_id}: {task['status']}, {task.get('error_code')}")
    else:
        made = [Image.open(io.BytesIO(png)).getpixel((0, 0)) for png in server.pictures(task)]
        if made != [tuple(colour_of(seed + number)) for number in range(1 + seed % 2)]:
            ledger.damaged.append(f"{task_id}: {made}")


def look_for_leftovers(data: Path, ledger: Ledger) -> None:
    """Each file belongs to one completed task, and each client has only its own tasks."""
    with sqlite3.connect(data / "imagegen.sqlite3") as journal:
        records = [GenerationTask.model_validate_json(row[0]) for row in journal.execute("SELECT record FROM tasks")]
    journal.close()
    named = [image.path for task in records for image in task.images]
    files = {str(path.relative_to(data / "images")) for path in (data / "images").rglob("*.p*")}
    given_up = {task.id for task in records if task.status is TaskStatus.FAILED}
    extra = [file for file in files - set(named) if Path(file).name[:36] not in given_up]
    if len(named) != len(set(named)) or extra:
        ledger.duplicates.append(f"files of no task or of two: {extra}")
    if missing := set(named) - files:
        ledger.damaged.append(f"files that are not there: {missing}")


if __name__ == "__main__":
    sys.exit(main())
