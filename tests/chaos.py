"""Faults of every kind under load: each accepted task ends once, unless the service has reported a loss.

python -m tests.chaos [--rounds 200] [--seed 1] [--faults kill,disk_full]

The faults: the service killed or ended, its worker killed or stopped, a full disk, a spool that is in the way, a bucket
and a webhook receiver that go away, a clock that was set, and a journal that is replaced or removed.
"""

import argparse
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random, random
from types import MappingProxyType

import httpx
import psutil

from imagegen.testing.config import fake_config
from tests.receiver import SECRET, Received, Receiver, receiving
from tests.s3 import Bucket
from tests.server import PATIENCE_S, Server
from tests.torture import Ledger, note_end

CLIENTS = 3
#: Seconds of load before a fault, at most; and for which a fault lasts that ends by itself.
LOAD_S, FAULT_S = 1.5, 0.6
#: The folder of a `sitecustomize` that puts the clock wrong.
WRONG_CLOCK = Path(__file__).parent / "wrong_clock"
#: Exit code of a service whose journal was removed or replaced.
EXIT_LOST = 74


@dataclass
class World(Ledger):
    """The records of the clients and the receiver, and the environment of the service."""

    folder: Path = Path()
    chance: Random = field(default_factory=Random)
    bucket: Bucket = field(default_factory=Bucket)
    receiver: Receiver = field(default_factory=Receiver)
    #: Seeds of requests that were answered with an error: they must never run.
    refused: set[int] = field(default_factory=set)
    #: Tasks of a journal that was removed: the service said so and ended.
    excused: set[str] = field(default_factory=set)
    #: Tasks that failed because a disk refused, as documented.
    failed: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    #: Seconds by which the clock of the next run is wrong.
    clock_s: int = 0

    @property
    def data(self) -> Path:
        return self.folder / "data"


Fault = Callable[[World, Server], None]


# -- faults ------------------------------------------------------------------------------------------------------------


def kill(world: World, server: Server) -> None:
    server.kill()


def end(world: World, server: Server) -> None:
    if (code := server.terminate()) != 0:
        crashed = [line for line in server.log if "critical" in line or "Traceback" in line]
        world.damaged.append(f"SIGTERM ended with {code}: {crashed[-3:]}")


def kill_worker(world: World, server: Server) -> None:
    with suppress(psutil.NoSuchProcess):
        server.worker().kill()


def stop_worker(world: World, server: Server) -> None:
    with suppress(psutil.NoSuchProcess):
        server.worker().suspend()


def disk_full(world: World, server: Server) -> None:
    """The kernel refuses every write of the service."""
    process = psutil.Process(server.process.pid)
    before = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (0, before[1]))
    time.sleep(FAULT_S)
    process.rlimit(psutil.RLIMIT_FSIZE, before)


def spool_in_the_way(world: World, server: Server) -> None:
    """A file is in the place of the folder of pictures."""
    spool, away = world.data / "spool", world.data / "spool.away"
    with suppress(FileNotFoundError):
        spool.rename(away)
        spool.touch()
        time.sleep(FAULT_S)
        spool.unlink()
        away.rename(spool)


def bucket_away(world: World, server: Server) -> None:
    world.bucket.stop()
    time.sleep(FAULT_S)
    world.bucket.start()


def receiver_away(world: World, server: Server) -> None:
    """The receiver resets each connection; `receiver` of the world is shared with the clients."""
    world.receiver.replies_with("/", "reset")
    time.sleep(FAULT_S)
    world.receiver.replies_with("/", 200)


def clock_set(world: World, server: Server) -> None:
    world.clock_s = world.chance.choice([-10_800, -60, 0, 60, 86_400])
    server.kill()


def journal_replaced(world: World, server: Server) -> None:
    """A copy replaces the journal: no task is accepted any more, and the copy has all accepted ones."""
    journal, copy = world.data / "imagegen.sqlite3", world.data / "copy"
    with closing(sqlite3.connect(journal)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    copy.rename(journal)
    until_lost(world, server)


def journal_removed(world: World, server: Server) -> None:
    (world.data / "imagegen.sqlite3").unlink()
    until_lost(world, server)
    world.excused |= world.accepted.keys()
    world.ended.clear()
    shutil.rmtree(world.data / "spool", ignore_errors=True)


def until_lost(world: World, server: Server) -> None:
    code = server.process.wait(PATIENCE_S)
    if code != EXIT_LOST or not any("journal_lost" in line for line in server.log):
        world.damaged.append(f"a journal that was lost ended the service with {code}: {server.log[-3:]}")


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        fault.__name__: fault
        for fault in (
            *(kill, end, kill_worker, stop_worker, disk_full, spool_in_the_way, bucket_away, receiver_away),
            *(journal_replaced, journal_removed, clock_set),
        )
    }
)


# -- the clients -------------------------------------------------------------------------------------------------------


def use(address: str, world: World, seeds: Iterator[int], done: threading.Event) -> None:
    """Submit tasks and check earlier ones, until the end of the round or of the service."""
    chance = Random()
    with httpx.Client(base_url=address, timeout=PATIENCE_S) as http:
        while not done.is_set():
            with suppress(httpx.TransportError):
                submit(http, next(seeds), world)
                look_again(http, chance.choice(list(world.accepted)[-50:] or [""]), world)
            time.sleep(chance.uniform(0, 0.05))


def submit(http: httpx.Client, seed: int, world: World) -> None:
    hook = {"webhook_url": world.receiver.url("/")} if seed % 4 == 0 else {}
    answer = http.post("/text2image", json={"prompt": "x", "seed": seed, "steps": 4} | hook)
    if answer.status_code == httpx.codes.ACCEPTED:
        world.accepted[answer.json()["task_id"]] = seed
    elif answer.status_code in (503, 507):
        if answer.json()["code"] != "journal_lost":  # which says that it is not known what was stored
            world.refused.add(seed)
    else:
        world.damaged.append(f"a submit was answered with {answer.status_code}: {answer.text}")


def look_again(http: httpx.Client, task_id: str, world: World) -> None:
    if not task_id:
        return
    answer = http.get(f"/task/{task_id}")
    if answer.status_code == httpx.codes.NOT_FOUND and task_id not in world.excused:
        if "journal_removed" not in world.faults:
            world.lost.append(f"{task_id}: not found")
    elif answer.status_code == httpx.codes.OK and answer.json()["status"] in ("completed", "failed"):
        note_end(task_id, answer.json(), world)


# -- rounds ------------------------------------------------------------------------------------------------------------


def chaos(folder: Path, rounds: int, seed: int, faults: list[str] | None = None) -> World:
    """Choose a random fault for each round, or each of `faults` in turn; at the end check every task."""
    chance = Random(seed)
    with Bucket() as bucket, receiving() as receiver:
        world = World(folder=folder, chance=chance, bucket=bucket, receiver=receiver)
        seeds, config = count(), folder / "models.yaml"
        config.write_text(fake_config(fake={"step_seconds": 0.005, "max_batch": 4}))
        for number in range(rounds):
            name = faults[number % len(faults)] if faults else chance.choice(list(FAULTS))
            one_round(world, config, name, seeds)
        with Server(world.data, config, **environment(world)) as server:
            look_at_ends(world, server)
    return world


def environment(world: World) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(WRONG_CLOCK), os.environ.get("PYTHONPATH")]))
    clock = {"PYTHONPATH": path, "WRONG_CLOCK_S": str(world.clock_s)}
    return {
        **world.bucket.environment,
        "IMAGEGEN_STORE": world.bucket.address,
        "IMAGEGEN_MAX_QUEUE": "100",
        "IMAGEGEN_HOUSEKEEPING_S": "0.3",
        "IMAGEGEN_STEP_TIMEOUT_S": "5",
        "IMAGEGEN_DRAIN_TIMEOUT_S": "2",
        "IMAGEGEN_WEBHOOK_SECRETS": SECRET,
        "IMAGEGEN_WEBHOOK_NETWORKS": "127.0.0.0/8",
        "IMAGEGEN_WEBHOOK_PORTS": str(world.receiver.port),
        "IMAGEGEN_WEBHOOK_HTTP": "true",
        "IMAGEGEN_WEBHOOK_DELAYS_S": ",".join(["0.2"] * 50),
        **(clock if world.clock_s else {}),
    }


def one_round(world: World, config: Path, name: str, seeds: Iterator[int]) -> None:
    world.faults[name] += 1
    done = threading.Event()
    with Server(world.data, config, **environment(world)) as server:
        address = str(server.http.base_url)
        clients = [threading.Thread(target=use, args=(address, world, seeds, done)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(world.chance.uniform(0, LOAD_S))
        FAULTS[name](world, server)
        time.sleep(LOAD_S * random() if server.process.poll() is None else 0)
        done.set()
        if server.process.poll() is None:
            server.kill()
        for client in clients:
            client.join()
    if name == "journal_removed":  # also those that a client heard of after the removal
        world.excused |= world.accepted.keys()


# -- what became of them -----------------------------------------------------------------------------------------------


def look_at_ends(world: World, server: Server) -> None:
    for task_id in world.accepted.keys() - world.excused:
        task = server.until(task_id)
        note_end(task_id, task, world)
        code = task.get("error_code")
        if (task["status"], code) == ("failed", "interrupted"):
            world.interrupted += 1
        elif task["status"] == "failed" and code in ("storage_failed", "storage_full", "worker_crashed", "worker_hung"):
            world.failed += 1
        elif task["status"] != "completed":
            world.lost.append(f"{task_id}: {task['status']}, {code}")
        elif not all(picture.startswith(b"\x89PNG") for picture in server.pictures(task)):
            world.damaged.append(f"{task_id}: no picture")
    look_for_refused(world)
    look_for_webhooks(world, server)
    if server.terminate() != 0:
        world.damaged.append("the last run did not end well")


def look_for_refused(world: World) -> None:
    """A task whose request got an error does not exist."""
    with closing(sqlite3.connect(world.data / "imagegen.sqlite3")) as journal:
        seeds = {row[0] for row in journal.execute("SELECT json_extract(record, '$.request.seed') FROM tasks")}
    if ran := seeds & world.refused:
        world.damaged.append(f"refused, and accepted nevertheless: {sorted(ran)}")


def look_for_webhooks(world: World, server: Server) -> None:
    """The end of every task with a webhook was delivered at least once."""
    wanted = {it for it, seed in world.accepted.items() if seed % 4 == 0} - world.excused
    deadline = time.monotonic() + PATIENCE_S
    while (missing := wanted - set(map(task_of, world.receiver.received))) and time.monotonic() < deadline:
        time.sleep(0.05)
    if missing:
        world.lost.append(f"webhooks that never came: {sorted(missing)}")


def task_of(received: Received) -> str:
    return str(json.loads(received.body)["data"]["task_id"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=lambda text: text.split(","), help=", ".join(FAULTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = chaos(Path(folder), options.rounds, options.seed, options.faults)
    told = ", ".join(f"{name} {number}" for name, number in sorted(world.faults.items()))
    print(f"{told}: {world.verdict()}, failed by a fault {world.failed}, excused {len(world.excused)}")  # noqa: T201
    faults = world.lost + world.duplicates + world.damaged
    print(*faults, sep="\n", end="")  # noqa: T201
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
