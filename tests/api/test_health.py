"""GET /health: what an operator sees first, and what never delays it."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from imagegen.core.keys import Scope, new_key
from imagegen.gpu.protocol import DeviceMemory
from imagegen.service.vitals import Asked
from imagegen.storage.journal import TaskJournal
from imagegen.testing.engine import ScriptedEngine
from tests.api.conftest import Client, Start
from tests.nvml import GIB, Nvml

CONFIG = "models: {a: {name: A, type: fake, base_size: 64, steps: 4}}\n"
FAILING = {"fake": {"fault": "error", "fault_prompt": "poison"}}


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


async def report(client: Client, query: str = "", **more: Any) -> dict[str, Any]:
    answer = await client.get(f"/health{query}", **more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_a_healthy_service_says_what_it_is_and_does(client: Client) -> None:
    await client.until(await client.submit())
    said = await report(client)
    assert (said["status"], said["problems"], said["current_model"]) == ("healthy", [], "fake")
    assert (said["worker"]["model"], said["config"]["ok"], said["config"]["problems"]) == (None, True, 0)
    assert said["worker"]["state"] == "idle"
    assert said["worker"]["pid"] > 0
    assert said["webhooks"] == {"on": False, "pending": 0}
    assert said["uptime_s"] > 0
    assert said["disk_free"] > 0
    assert said["host"]["memory_service"] > 0
    assert (said["queue"], said["failures"]) == (None, None)


@pytest.mark.parametrize("query", ["?verbose", "?verbose=true", "?verbose=1"])
async def test_verbose_adds_the_queue_and_the_failed_tasks(start: Start, query: str) -> None:
    async with start({"fake": {**FAILING["fake"], "step_seconds": 0.05}}) as client:
        failed = await client.submit("poison")
        assert (await client.until(failed))["status"] == "failed"
        running = await client.submit(steps=100)
        await client.until(running, "processing")
        for priority in (5, 5, -3):
            await client.submit(priority=priority)
        said = await report(client, query)
        assert said["queue"] == [
            {"model": "fake", "priority": -3, "tasks": 1},
            {"model": "fake", "priority": 5, "tasks": 2},
        ]
        (failure,) = said["failures"]
        task = await client.task(failed)
        assert (failure["task_id"], failure["code"]) == (failed, task["error_code"])
        assert (failure["model"], failure["attempt"]) == ("fake", 1)
        assert (said["worker"]["state"], said["worker"]["model"]) == ("working", "fake")
        assert (await report(client, "?verbose=false"))["queue"] is None
        await client.post("/queue/clear")
        await client.post(f"/task/{running}/cancel")


async def test_a_broken_models_yaml_degrades_the_service_until_it_is_mended(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(CONFIG)
    async with start(config=config) as client:
        writer = client.app.state.services.writer
        for text, ok in ((CONFIG.replace("steps", "stps"), False), (CONFIG, True)):
            config.write_text(text)
            await writer.reload("signal")
            said = await report(client, "?verbose")
            assert (said["status"], said["config"]["ok"]) == (("healthy", True) if ok else ("degraded", False))
            assert [it["code"] for it in said["problems"]] == ([] if ok else ["config_broken"])
            assert said["config"]["problems"] == (not ok)
            assert "stps" not in str(said)
            assert str(tmp_path) not in str(said)
            assert (await client.get("/readyz")).status_code == 200


async def test_a_key_sees_its_own_failed_tasks_and_one_that_reads_those_of_all(start: Start) -> None:
    async with start(FAILING) as client:
        texts = {}
        for name, scope in (("alice", Scope.GENERATE), ("bob", Scope.GENERATE), ("carol", Scope.READ)):
            key, texts[name] = new_key(name, (scope,))
            await client.app.state.services.keys.create(key)
        headers = {name: {"X-API-Key": text} for name, text in texts.items()}
        sent = await client.post(
            "/text2image", json={"prompt": "poison"}, headers=headers["alice"] | {"Prefer": "wait=60"}
        )
        assert sent.json()["status"] == "failed"
        seen = {name: (await report(client, "?verbose", headers=it))["failures"] for name, it in headers.items()}
        assert {name: len(found) for name, found in seen.items()} == {"alice": 1, "bob": 0, "carol": 1}
        assert (await client.get("/health")).status_code == 401


async def test_what_does_not_answer_delays_nothing_and_is_reported(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    let, vitals = threading.Event(), client.app.state.services.vitals

    async def never(self: TaskJournal) -> int:
        await asyncio.sleep(3600)
        return 0

    for name in ("_free", "_cards", "_host"):
        monkeypatch.setattr(vitals, name, Asked(let.wait, "test", limit_s=0.01))
    monkeypatch.setattr(TaskJournal, "count", never)
    monkeypatch.setattr("imagegen.api.native.health.JOURNAL_S", 0.01)
    async with asyncio.timeout(60):
        said = await report(client)
    assert [it["code"] for it in said["problems"]] == ["journal_silent", "disk_silent"]
    assert (said["status"], said["host"], said["gpus"], said["disk_free"]) == ("degraded", None, None, 0)
    let.set()


async def test_a_full_disk_and_a_quarantined_model_are_problems(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start() as client:
        services = client.app.state.services
        monkeypatch.setattr(type(services.models), "quarantined", lambda self, model: True)
        said = await report(client)
        assert (said["status"], [it["code"] for it in said["problems"]]) == ("degraded", ["model_quarantined"])
        assert "fake: tasks are refused" in said["problems"][0]["detail"]
        monkeypatch.setattr(services.room, "_floor", 2**60)
        said = await report(client)
        assert (said["status"], said["problems"][0]["code"]) == ("unhealthy", "storage_full")


async def test_the_card_of_the_models_is_shown_with_the_memory_of_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    uuid = "1000000-0000-0000-0000-000000000000"
    held = DeviceMemory(gpu_available=True, gpu_uuid=uuid, cached=4 * GIB, free=14 * GIB, total=24 * GIB)
    async with start(engine=ScriptedEngine(full=held, empty=held)) as client:
        await client.until(await client.submit())
        said = await report(client)
        (card,) = said["gpus"]
        assert card == {
            "index": 1,
            "name": "Card 1",
            "in_use": True,
            "memory_total": 24,
            "memory_used": 10,
            "memory_ours": 4.5,
            "memory_others": 5.5,
            "utilization": 97,
            "temperature": 61,
            "power": 212.5,
        }
        assert [it["in_use"] for it in (await report(client, "?verbose"))["gpus"]] == [False, True]


@pytest.mark.parametrize(("device", "status"), [("auto", "healthy"), ("cuda", "degraded")])
async def test_no_card_is_a_problem_only_where_one_was_asked_for(start: Start, device: str, status: str) -> None:
    none = DeviceMemory(cuda_problem="torch finds no CUDA device.")
    async with start(engine=ScriptedEngine(full=none, empty=none), device=device) as client:
        await client.until(await client.submit())
        said = await report(client)
        assert said["status"] == status
        assert [it["code"] for it in said["problems"]] == (["cuda_not_usable"] if device == "cuda" else [])
