"""What dying workers cost: killed at random moments under a steady load, while another client asks /livez.

python -m bench.kills [--kills 200] [--minutes 60] [--seed 1]
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import httpx
import psutil
from tests.server import PATIENCE_S, Server, is_alive

from bench.livez import probe, quantile
from imagegen.builtin import default_config
from imagegen.catalog.loading import load_catalog
from imagegen.loaders import SPECS

SIGNALS = (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV)

#: When to kill: while a model is loaded, between two steps, after the last one (decoding, saving), without any work.
MOMENTS = ("load", "step", "decode", "idle")

#: Until when after its event a moment lasts, in seconds.
LASTS_S = {"load": 0.6, "step": 0.05, "decode": 0.05, "idle": 0.5}

#: Tasks that are kept waiting.
DEPTH = 4

#: Pictures that are made before the next kill, at most: chance chooses, and none at all makes for quarantines.
BETWEEN = 5

#: Whose turn it is. The embedded model is asked for rarely: after each death its libraries are imported again, and the
#: seconds that this takes would be most of the run.
TURNS = ["quick", "heavy", "steady", "large", "steady", "quick", "large", "heavy"] * 3 + ["tiny"]

FAKE = {"type": "fake", "base_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "quick": {"name": "Quick", **FAKE, "steps": 4, "step_seconds": 0.01},
    "steady": {"name": "Steady", **FAKE, "steps": 10, "step_seconds": 0.03, "memory_mb": 16},
    "heavy": {"name": "Heavy", **FAKE, "steps": 3, "step_seconds": 0.02, "load_seconds": 0.5, "memory_mb": 32},
    "large": {"name": "Large pictures", **FAKE, "base_size": 1024, "steps": 3, "step_seconds": 0.02},
}


class Seen(NamedTuple):
    """An event of the service, and when it came here."""

    name: str
    data: dict[str, Any]
    at: float


class Service:
    """A server, those who use it, and what they saw."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.address = str(server.http.base_url)
        self.accepted: list[str] = []
        self.refused = 0
        self.lifted = 0
        self.latencies: list[float] = []
        self.completed_at: list[float] = []
        self.events: SimpleQueue[Seen] = SimpleQueue()
        self._paused = threading.Event()
        self._done = threading.Event()

    @contextmanager
    def busy(self, elsewhere: Executor) -> Iterator[None]:
        """Tasks come and /livez is asked from here to the end of the block."""
        users = [threading.Thread(target=self._use), threading.Thread(target=self._probe, args=[elsewhere])]
        for user in users:
            user.start()
        try:
            yield
        finally:
            self._done.set()
            for user in users:
                user.join()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Nobody asks for anything and nothing is left to do."""
        self._paused.set()
        try:
            while self.waiting or self.server.http.get("/tasks?status=processing").json()["filtered"]:
                time.sleep(0.02)
            yield
        finally:
            self._paused.clear()

    @property
    def waiting(self) -> int:
        return int(self.server.http.get("/health").json()["queue_size"])

    @property
    def worker(self) -> psutil.Process | None:
        """The living one."""
        alive = [child for child in psutil.Process(self.server.process.pid).children() if is_alive(child)]
        return alive[0] if alive else None

    def listen(self) -> None:
        """To all events, until the server leaves."""
        with httpx.Client(base_url=self.address, timeout=PATIENCE_S) as http, http.stream("GET", "/events") as stream:
            name = ""
            for line in stream.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    self._saw(Seen(name, json.loads(value), time.monotonic()))

    def _saw(self, event: Seen) -> None:
        self.events.put(event)
        if event.name == "completed":
            self.completed_at.append(event.at)

    def _use(self) -> None:
        models = cycle(TURNS)
        with httpx.Client(base_url=self.address, timeout=PATIENCE_S) as http:
            while not self._done.is_set():
                if self._paused.is_set() or http.get("/health").json()["queue_size"] >= DEPTH:
                    time.sleep(0.02)
                else:
                    self._submit(http, next(models))

    def _submit(self, http: httpx.Client, model: str) -> None:
        """One task; a quarantine is lifted as an operator would."""
        prompt = f"a red circle on a blue background, number {len(self.accepted)}"
        answer = http.post("/text2image", json={"model": model, "prompt": prompt})
        if answer.status_code == 202:
            self.accepted.append(answer.json()["task_id"])
            return
        assert answer.json()["code"] == "model_quarantined", answer.text
        self.refused += 1
        self.lifted += http.post(f"/models/{model}/load").status_code == 200

    def _probe(self, elsewhere: Executor) -> None:
        """In a process of its own, so that nobody here delays it."""
        while not self._done.is_set():
            self.latencies += elsewhere.submit(probe, self.address, 5).result()

    def pictures(self, number: int) -> None:
        """Wait until so many more are made."""
        wanted, deadline = len(self.completed_at) + number, time.monotonic() + PATIENCE_S
        while len(self.completed_at) < wanted:
            assert time.monotonic() < deadline, "no pictures"
            time.sleep(0.01)

    def next(self, moment: str) -> None:
        """Wait until the service is at that moment."""
        while not self.events.empty():
            self.events.get()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                event = self.events.get(timeout=1)
            except Empty:
                continue
            if moment_of(event) == moment:
                return
        raise AssertionError(f"no {moment} within {PATIENCE_S} s")


def moment_of(event: Seen) -> str | None:
    if event.name == "step":
        return "decode" if event.data["step"] == event.data["total"] else "step"
    return "load" if event.name == "model_loading" else None


class Kill(NamedTuple):
    moment: str
    signal: signal.Signals
    at: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60, help="end earlier, with fewer kills")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # two thirds of them would be written to disk
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models.yaml").write_text(config())
        with Server(Path(folder) / "data", Path(folder) / "models.yaml") as server:
            try:
                print(run(Service(server), options.kills, 60 * options.minutes, random.Random(options.seed)))
            except BaseException:
                print("".join(server.log[-20:]), file=sys.stderr)
                raise


def config() -> str:
    """The fake models and the embedded one, with room for some of them in host memory."""
    tiny = load_catalog(default_config(), SPECS).model("tiny").model_dump(mode="json", exclude_unset=True)
    return json.dumps({"global": {"host_cache_gb": 0.05}, "models": {"tiny": tiny, **MODELS}})


def run(service: Service, kills: int, seconds: float, choice: random.Random) -> str:
    listener = threading.Thread(target=service.listen)
    listener.start()
    before = at_rest(service)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as elsewhere, service.busy(elsewhere):
        killed, end = list[Kill](), time.monotonic() + seconds
        while len(killed) < kills and time.monotonic() < end:
            killed.append(kill(service, choice))
    ends = [service.server.until(task_id) for task_id in service.accepted]
    after = at_rest(service)
    assert service.server.terminate() == 0
    listener.join()
    left = [pid for pid in psutil.pids() if session(pid) == service.server.process.pid]
    return report(service, killed, ends, (*before, *after, len(left)))


def kill(service: Service, choice: random.Random) -> Kill:
    """One more, at a moment that chance chooses."""
    moment = choice.choice(MOMENTS)
    if moment == "idle":
        with service.idle():
            return strike(service, moment, choice)
    service.pictures(choice.randint(0, BETWEEN))
    service.next(moment)
    return strike(service, moment, choice)


def strike(service: Service, moment: str, choice: random.Random) -> Kill:
    time.sleep(choice.uniform(0, LASTS_S[moment]))
    while (worker := service.worker) is None:
        if moment == "idle":  # nobody starts one before there is work
            service.server.until(service.server.submit(model="quick"))
        time.sleep(0.005)
    how = choice.choice(SIGNALS)
    worker.send_signal(how)
    return Kill(moment, how, time.monotonic())


def at_rest(service: Service) -> tuple[int, int]:
    """Processes and descriptors of the service while every model was asked for and nothing is left to do."""
    for model in ("tiny", *MODELS):
        service.server.http.post(f"/models/{model}/load").raise_for_status()
    assert service.waiting == 0
    server = psutil.Process(service.server.process.pid)
    return 1 + len(server.children(recursive=True)), server.num_fds()


def session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def report(service: Service, kills: list[Kill], ends: list[dict[str, Any]], rests: tuple[int, ...]) -> str:
    """One Markdown table. What must hold is asserted here, too."""
    how = Counter(
        f"{end['status']}, attempt {end['attempt']}"
        if end["status"] == "completed"
        else f"failed, `{end['error_code']}`"
        for end in ends
    )
    assert set(how) <= {
        "completed, attempt 1",
        "completed, attempt 2",
        "failed, `worker_crashed`",
        "failed, `model_quarantined`",
    }, how
    assert max(end["attempt"] for end in ends) <= 2
    back = [next((at for at in service.completed_at if at > kill.at), kill.at) - kill.at for kill in kills]
    p50, p99, worst = (1000 * quantile(service.latencies, q) for q in (0.5, 0.99, 1.0))
    processes, descriptors, processes_after, descriptors_after, left = rests
    moments, signals = Counter(kill.moment for kill in kills), Counter(kill.signal.name for kill in kills)
    rows = [
        ("kills", f"{len(kills)}: {counts(moments)}; {counts(signals)}"),
        ("tasks accepted", len(ends)),
        *sorted(how.items()),
        ("stuck, lost", 0),
        ("refused with 503 `model_quarantined`; then loaded by hand", f"{service.refused}; {service.lifted}"),
        ("/livez p50, p99, worst ms", f"{p50:.1f}, {p99:.1f}, {worst:.1f} ({len(service.latencies)} requests)"),
        ("from a kill to the next picture, median, worst s", f"{statistics.median(back):.1f}, {max(back):.1f}"),
        ("processes, descriptors of the service before", f"{processes}, {descriptors}"),
        ("and after", f"{processes_after}, {descriptors_after}; {left} processes after its end"),
    ]
    return "\n".join(["| what | seen |", "|---|---|", *(f"| {what} | {seen} |" for what, seen in rows)])


def counts(counter: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(counter.items()))


if __name__ == "__main__":
    main()
