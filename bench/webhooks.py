"""What webhooks cost the tasks that they report: python -m bench.webhooks [--tasks 2000] [--rounds 3].

A whole service with a fake model whose pictures take no time completes the same tasks with a receiver that answers,
one that refuses the connection, one that accepts it and never answers, and without webhooks. Each round has a fresh
service. The time is that from the first submit to the end of the last task; deliveries may still wait then.
"""

import argparse
import asyncio
import math
import multiprocessing
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import anyio
from pydantic import SecretStr
from tests.receiver import SECRET

from bench._shared import machine, table
from imagegen import logs
from imagegen.core.owner import ANYONE
from imagegen.core.task import TaskType
from imagegen.core.webhooks import ENDS
from imagegen.storage.outbox import DeliveryFilter
from imagegen.tasks.admission import TaskDraft
from imagegen.testing.service import make_service

#: Requests that are submitted at the same time.
CLIENTS = 16

#: What the receivers do.
RECEIVERS = ("none", "healthy", "refuses", "hangs")


class Completed(NamedTuple):
    seconds: float
    #: Seconds of processor time, of the service and those who submit.
    cpu_s: float
    #: Deliveries by their state at the end of the last task.
    delivered: int
    pending: int
    dead: int


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def _hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(math.inf)


def _receive(kind: str, port: Connection) -> None:
    """Receive webhooks in a process of its own."""

    async def serve() -> None:
        server = await asyncio.start_server(_answer if kind == "healthy" else _hang, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def receiver(kind: str) -> Iterator[int]:
    """The port of a receiver of that kind."""
    if kind in ("none", "refuses"):
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        yield int(port)
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_receive, args=(kind, theirs), daemon=True)
    process.start()
    try:
        yield int(ours.recv())
    finally:
        process.kill()
        process.join()


async def complete(tasks: int, port: int, *, told: bool) -> Completed:
    """Complete so many tasks; `told`: with a webhook for the end of each."""
    settings: dict[str, Any] = {
        "webhook_secrets": (SecretStr(SECRET),),
        "webhook_networks": ("127.0.0.0/8",),
        "webhook_ports": frozenset({port}),
        "webhook_http": True,
        "max_queue": tasks,
    }
    async with make_service({"fake": {"base_size": 64, "steps": 1}}, **settings) as made:
        services = made.services
        hook = services.webhooks.accept(f"http://127.0.0.1:{port}/", ENDS) if told else None
        draft = TaskDraft(type=TaskType.TEXT2IMAGE, prompt="a red circle", webhook=hook)
        await services.service.wait(ANYONE, (await services.service.submit(ANYONE, draft)).task.id, math.inf)
        anyio.get_cancelled_exc_class()  # imports the backend, for which the first attempt would wait
        left = iter(range(tasks))

        async def client() -> list[str]:
            return [(await services.service.submit(ANYONE, draft)).task.id for _ in left]

        began, cpu = time.perf_counter(), time.process_time()
        accepted = await asyncio.gather(*(client() for _ in range(CLIENTS)))
        for task_id in (task_id for some in accepted for task_id in some):
            await services.service.wait(ANYONE, task_id, math.inf)
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        found, before = list[str](), None
        while True:
            page, more = await services.webhooks.page(DeliveryFilter(), 1000, before)
            found += [delivery.state.value for delivery in page]
            if not more:
                break
            before = page[-1].sequence
        return Completed(took, cpu, *(found.count(state) for state in ("delivered", "pending", "dead")))


def measure(tasks: int, kind: str) -> Completed:
    with receiver(kind) as port:
        return asyncio.run(complete(tasks, port, told=kind != "none"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    logs.configure("error")
    rounds: dict[str, list[Completed]] = {kind: [] for kind in RECEIVERS}
    for _ in range(options.rounds):
        for kind, measured in rounds.items():
            measured.append(measure(options.tasks, kind))
    plain = statistics.median(it.seconds for it in rounds["none"])
    rows = []
    for kind, measured in rounds.items():
        seconds, cpu = (statistics.median(values) for values in zip(*(it[:2] for it in measured), strict=True))
        counts = [sum(it[2:][i] for it in measured) // len(measured) for i in range(3)]
        each = [f"{1000 * value / options.tasks:.2f}" for value in (seconds, cpu)]
        rows.append([kind, *each, f"{seconds / plain:.2f}", *counts])
    print(f"{machine()}, {options.tasks:,} tasks, medians of {options.rounds} interleaved rounds:\n")
    print(table("receiver | ms a task | CPU ms a task | times without | delivered | pending | dead", rows))


if __name__ == "__main__":
    main()
