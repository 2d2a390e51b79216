"""What the service costs around a model that costs nothing; python -m bench.overhead [--rounds 5] [--requests 200].

First in one process without sockets, against a bare FastAPI route: processor time, all threads. Then whole requests for
a picture of 1024x1024, with service, worker and client together on one core: from the POST to the last byte of the PNG.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog
import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Scope
from tests.server import Server

from bench._shared import Connection, machine, quantile, table
from imagegen.api.measuring import HttpMetrics
from imagegen.api.native.tasks.generation import Text2ImageBody
from imagegen.app import Service, app_of, create_app
from imagegen.core.events import TaskStep
from imagegen.settings import Settings
from imagegen.storage.files import write_whole
from imagegen.storage.png import encode_png
from imagegen.testing import WITH_FAKE
from imagegen.testing.config import fake_catalog, fake_config

STEPS = 28
BODY = {"prompt": "a red circle on a blue background", "seed": 7, "steps": STEPS, "width": 16, "height": 16}
LARGE = BODY | {"width": 1024, "height": 1024}
ISOLATIONS = ("process", "thread")


class Cost(NamedTuple):
    """Of one request, in milliseconds."""

    cpu: float
    wall: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    costs = uvloop.run(in_process(options.rounds, options.requests))
    print(f"{machine()}, {options.rounds} interleaved rounds of {options.requests} requests, medians:\n")
    print(table("one at a time | CPU ms | times the bare route | wall ms", compared(costs)), end="\n\n")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(table("1024x1024 on one core | p50 ms | p99 ms", whole_requests(options.rounds, options.requests // 4)))


# -- in one process ----------------------------------------------------------------------------------------------------


async def in_process(rounds: int, requests: int) -> dict[str, list[Cost]]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd()))
        config = Path(folder) / "models.yaml"
        config.write_text(fake_config())
        settings = Settings(data_dir=Path(folder) / "data", config=config, isolation="thread", device="cpu")
        service, bare = create_app(settings, fake_catalog(), WITH_FAKE), bare_app()
        unmeasured = app_without_metrics(settings.model_copy(update={"data_dir": Path(folder) / "unmeasured"}))
        await stack.enter_async_context(service.router.lifespan_context(service))
        await stack.enter_async_context(unmeasured.router.lifespan_context(unmeasured))

        async def whole_task(service: FastAPI = service) -> None:
            """Accepted, run, saved; every event heard."""
            task_id = (await post(service))["task_id"]
            steps = 0
            with service.state.services.bus.subscribe(task_id) as events:
                async for published in events:
                    event = published.event
                    steps = event.step if isinstance(event, TaskStep) else steps
                    if event.final:
                        break
            assert steps == STEPS

        async def bare_route() -> None:
            await post(bare)

        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "a bare FastAPI route, same body": bare_route,
            f"a task with {STEPS} steps that take no time": whole_task,
            "the same without metrics": partial(whole_task, unmeasured),
        }
        costs: dict[str, list[Cost]] = {name: [] for name in kinds}
        await whole_task(service)
        await whole_task(unmeasured)
        for _ in range(rounds):
            for name, request in kinds.items():
                costs[name].append(await measure(request, requests))
        return costs


def app_without_metrics(settings: Settings) -> FastAPI:
    """The application as it would be if nothing were counted."""
    service = Service(settings, fake_catalog(), WITH_FAKE)
    service.services.bus._taps.clear()
    app = app_of(service)
    app.user_middleware = [it for it in app.user_middleware if getattr(it.cls, "__name__", "") != HttpMetrics.__name__]
    return app


def bare_app() -> FastAPI:
    app = FastAPI()

    @app.post("/text2image", status_code=202)
    async def text2image(body: Text2ImageBody) -> dict[str, str]:
        return {"task_id": "1", "status": "pending"}

    return app


async def measure(request: Callable[[], Awaitable[None]], requests: int) -> Cost:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(requests):
        await request()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Cost(cpu * 1000 / requests, wall * 1000 / requests)


async def post(app: ASGIApp) -> dict[str, str]:
    """POST /text2image without a client or a server in between."""
    body = json.dumps(BODY).encode()
    headers = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(body))}
    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/text2image",
        "root_path": "",
        "query_string": b"",
        "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
        "server": ("127.0.0.1", 5050),
        "client": ("127.0.0.1", 1),
    }
    answers: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        answers.append(message)

    await app(scope, receive, send)
    assert answers[0]["status"] == 202, answers
    answer: dict[str, str] = json.loads(answers[1]["body"])
    return answer


def compared(costs: Mapping[str, list[Cost]]) -> Iterator[list[object]]:
    bare = None
    for name, measured in costs.items():
        cpu = statistics.median(cost.cpu for cost in measured)
        bare = bare or cpu
        yield [name, f"{cpu:.2f}", f"{cpu / bare:.1f}", f"{statistics.median(cost.wall for cost in measured):.2f}"]


# -- over a socket -----------------------------------------------------------------------------------------------------


def whole_requests(rounds: int, requests: int) -> Iterator[list[object]]:
    """What no service can do without comes first: the same bytes encoded, and as often waited for the disk."""
    names = ("by hand: one PNG, two commits", *(f"isolation: {isolation}" for isolation in ISOLATIONS))
    latencies: dict[str, list[list[float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        config = Path(folder) / "models.yaml"
        config.write_text(fake_config())
        servers = {it: Server(Path(folder) / it, config, IMAGEGEN_ISOLATION=it) for it in ISOLATIONS}
        for server in servers.values():
            server.until(server.submit())
        for _ in range(rounds):
            latencies[names[0]].append([by_hand(Path(folder)) for _ in range(requests)])
            for isolation, server in servers.items():
                latencies[f"isolation: {isolation}"].append(
                    uvloop.run(ask_for_pictures(str(server.http.base_url), requests))
                )
        for server in servers.values():
            with server:
                server.terminate()
    for name, measured in latencies.items():
        p50, p99 = (statistics.median(quantile(it, q) for it in measured) * 1000 for q in (0.5, 0.99))
        yield [name, f"{p50:.1f}", f"{p99:.1f}"]


def by_hand(folder: Path) -> float:
    began = time.perf_counter()
    picture = encode_png(bytes([120, 80, 40]) * 1024 * 1024, 1024, 1024)
    write_whole(folder / "picture.png", picture)
    with (folder / "journal").open("ab") as journal:
        for _ in range(2):
            journal.write(bytes(4096))
            journal.flush()
            os.fsync(journal.fileno())
    return time.perf_counter() - began


async def ask_for_pictures(address: str, requests: int) -> list[float]:
    """One after the other: submit, follow the events to the end, fetch the picture."""
    connection, latencies = await Connection.open(address), []
    for _ in range(requests):
        began = time.perf_counter()
        _, accepted = await connection.ask("POST", "/text2image", LARGE)
        links = json.loads(accepted)["links"]
        assert "completed" in [name async for name in connection.events(links["events"])]
        _, task = await connection.ask("GET", links["self"])
        status, png = await connection.ask("GET", json.loads(task)["images"][0]["url"])
        assert (status, png[:4]) == (200, b"\x89PNG")
        latencies.append(time.perf_counter() - began)
    connection.close()
    return latencies


if __name__ == "__main__":
    main()
