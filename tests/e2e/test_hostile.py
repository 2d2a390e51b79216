"""A few of each of the callers and the faults that bench/hostile.py and bench/faults.py measure in thousands."""

import asyncio
import json
from pathlib import Path

import httpx
import psutil
from bench import faults
from bench.hostile import Crowd

from imagegen.api.connections import RESERVE
from tests.conftest import fake_config
from tests.server import PATIENCE_S, Server

HALF_OPEN, STREAMS, UPLOADS = 60, 12, 4

#: Bounds that the crowd exceeds.
MOST_OF_AN_ADDRESS, MOST_STREAMS = 24, 8
FEW = {
    "IMAGEGEN_MAX_CONNECTIONS": "40",
    "IMAGEGEN_MAX_CONNECTIONS_PER_ADDRESS": str(MOST_OF_AN_ADDRESS),
    "IMAGEGEN_MAX_EVENT_STREAMS_PER_CALLER": str(MOST_STREAMS),
    "IMAGEGEN_MAX_UPLOADING_BYTES": str(32 * 2**20),
}


async def ask_beside(address: str) -> None:
    """Ask for probes from the address of the crowd, and for pictures from another one."""
    for probe in ("/livez", "/readyz"):
        async with httpx.AsyncClient(base_url=address, timeout=PATIENCE_S) as near:
            assert (await near.get(probe)).status_code == 200
    away = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE_S, transport=away) as other:
        for _ in range(5):
            done = await other.post("/text2image", json={"prompt": "x"}, headers={"Prefer": "wait=60"})
            assert (done.status_code, done.json()["status"]) == (200, "completed")


async def test_a_hostile_crowd_stops_neither_probes_nor_tasks_and_its_connections_are_bounded(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(fake_config())
    with Server(tmp_path / "data", config, **FEW) as server:
        address, service, crowd = str(server.http.base_url), psutil.Process(server.process.pid), Crowd(server)
        async with crowd.there(streams=STREAMS, uploads=UPLOADS):
            await crowd.until(MOST_STREAMS)
            while not crowd.answers["upload", 503]:
                await asyncio.sleep(0.01)
            async with crowd.there(half_open=HALF_OPEN):
                while len(await asyncio.to_thread(service.net_connections, "inet")) < MOST_OF_AN_ADDRESS + RESERVE // 2:
                    await asyncio.sleep(0.01)
                await ask_beside(address)
                sockets = await asyncio.to_thread(service.net_connections, "inet")
                assert len(sockets) <= MOST_OF_AN_ADDRESS + RESERVE + 4
            assert crowd.streams == MOST_STREAMS
            assert await asyncio.to_thread(server.terminate) == 0
            while crowd.streams:
                await asyncio.sleep(0.01)
        assert crowd.told >= MOST_STREAMS  # some came back during the drain
        assert crowd.answers["stream", 503]
    assert not [line for line in server.log if json.loads(line)["level"] in ("error", "critical")]


def test_after_each_fault_the_next_task_is_completed_and_nothing_is_left(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(faults.config())
    with Server(tmp_path / "data", config, **faults.variables()) as server:
        for fault, number in (("out_of_memory", 30), ("segfault", 2), ("exit", 2)):
            looks = faults.rounds(server, fault, number).looks
            assert max(look.descriptors for look in looks) - looks[0].descriptors <= 2
            assert looks[-1].service - looks[0].service < 16 * 2**20
        faults.nothing_left(server)
