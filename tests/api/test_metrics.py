"""GET /metrics: what it counts, who may see it, and that no read changes anything."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagegen.api.problems import _leaves as leaves
from imagegen.core.events import ModelUnloaded, TaskCompleted, TaskQueued
from imagegen.core.keys import Scope, new_key
from imagegen.gpu.protocol import DeviceMemory
from imagegen.testing.config import fake_config
from imagegen.testing.engine import CRASHED, ScriptedEngine
from tests.api.conftest import Client, Start
from tests.metrics import Scrape

GIB = 2**30


async def scrape(client: Client) -> Scrape:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return Scrape(answer.text)


async def test_a_task_is_counted_and_each_part_of_its_time_is_measured(client: Client) -> None:
    for priority in (0, -5):
        await client.until(await client.submit(batch_size=2, priority=priority))
    now = await scrape(client)
    assert now.value("tasks_total", model="fake", end="completed", code="") == 2
    assert now.value("images_total", model="fake") == 4
    assert now.value("e2e_seconds_count", model="fake") == 2
    for label in ("normal", "high"):
        assert now.value("queue_wait_seconds_count", model="fake", priority=label) == 1
    assert now.value("load_seconds_count", model="fake", tier="cold") == 1
    assert now.value("load_seconds_count", model="fake", tier="resident") == 1
    assert now.value("step_seconds_count", model="fake") == 2
    for stage in ("encode", "denoise", "decode", "save"):
        assert now.value("stage_seconds_count", model="fake", stage=stage) == 2
    assert now.value("http_requests_total", method="POST", route="/text2image", status="202") == 2
    assert now.value("http_request_seconds_count", method="POST", route="/text2image") == 2
    assert now.value("journal_commit_seconds_count", durable="yes") >= 4
    assert now.value("model_resident", model="fake", memory="device") == 1
    assert now.value("requests_waiting") == now.value("requests_running") == 0
    assert now.value("build_info") == now.value("config_ok") == now.value("store_reachable") == 1
    assert now.value("disk_free_bytes") > 0


async def test_waiting_and_running_tasks_are_told_by_class_of_priority(start: Start) -> None:
    engine = ScriptedEngine(waits=True)
    async with start(models={"a": {}, "b": {}}, engine=engine) as client:
        await client.submit(model="a", priority=7)
        await engine.until_generating()
        for priority in (-9, -1, 0, 3):
            await client.submit(model="b", priority=priority)
        now = await scrape(client)
        assert now.value("requests_running", model="a", priority="low") == now.value("requests_running") == 1
        waiting = {it: now.value("requests_waiting", model="b", priority=it) for it in ("high", "normal", "low")}
        assert waiting == {"high": 2, "normal": 1, "low": 1}
        engine.waits = False
        engine.answer(None)


async def test_a_failure_is_counted_with_its_code_and_openmetrics_has_its_task(start: Start) -> None:
    async with start(models={"bad": {"fault": "error"}}) as client:
        task_id = await client.submit()
        await client.until(task_id)
        assert (await scrape(client)).value("tasks_total", model="bad", end="failed", code="generation_failed") == 1
        answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        (line,) = [
            it for it in answer.text.splitlines() if it.startswith('imagegen_tasks_total{code="generation_failed"')
        ]
        assert f'# {{task_id="{task_id}"}} 1.0' in line


async def test_swaps_and_those_that_were_avoided_are_counted(start: Start) -> None:
    engine = ScriptedEngine(waits=True)
    async with start(models={"a": {}, "b": {}}, engine=engine) as client:
        tasks = [await client.submit(model="a")]
        await engine.until_generating()
        # In the order of their arrival they would be a, b, a: two swaps.
        tasks += [await client.submit(model=model) for model in ("b", "a")]
        engine.waits = False
        engine.answer(None)
        for task_id in tasks:
            await client.until(task_id)
        now = await scrape(client)
        assert now.value("swaps_total", model="b") == now.value("swaps_total") == 1
        assert now.value("swaps_avoided_total", model="a") == now.value("swaps_avoided_total") == 1
        assert now.value("unloads_total", model="a", reason="switch") == 1


async def test_dead_workers_and_quarantines_are_counted(start: Start) -> None:
    engine = ScriptedEngine()
    engine.always["generate"] = CRASHED
    async with start(models={"bad": {}}, engine=engine) as client:
        assert (await scrape(client)).value("worker_restarts_total") == 0
        for prompt in ("one", "another"):
            await client.until(await client.submit(prompt=prompt))
        now = await scrape(client)
        assert now.value("worker_restarts_total", reason="crashed") == 3
        assert now.value("quarantines_total", model="bad") == now.value("model_quarantined", model="bad") == 1


async def test_memory_beyond_the_weights_is_told(start: Start) -> None:
    full = DeviceMemory(gpu_available=True, cached=5 * GIB, outside=GIB, free=2 * GIB, total=8 * GIB, host=GIB)
    async with start(models={"a": {}}, engine=ScriptedEngine(full=full)) as client:
        await client.until(await client.submit())
        now = await scrape(client)
        assert now.value("device_memory_bytes", kind="cached") == 5 * GIB
        assert now.value("model_bytes", model="a", memory="device") == 30
        assert now.value("residual_bytes", memory="device") == 6 * GIB - 30
        assert now.value("residual_bytes", memory="host") == GIB


async def test_an_invalid_configuration_is_told(client: Client, tmp_path: Path) -> None:
    writer = client.app.state.services.writer
    (tmp_path / "models.yaml").write_text("models: [")
    await writer.reload("file")
    now = await scrape(client)
    assert (now.value("config_ok"), now.value("config_rejections_total", source="file")) == (0, 1)
    (tmp_path / "models.yaml").write_text(fake_config(fake={}, other={}))
    await writer.reload("signal")
    now = await scrape(client)
    assert (now.value("config_ok"), now.value("config_reloads_total", source="signal")) == (1, 1)


# -- labels ------------------------------------------------------------------------------------------------------------


async def test_unknown_names_add_no_series(client: Client) -> None:
    async def ask(number: int) -> None:
        name = f"unknown-{number}"
        for path in ("/models/{}", "/task/{}", "/nowhere/{}", "/tasks?model={}", "/hf/{}/x", "/v1/models/{}"):
            await client.get(path.format(name))
        await client.request(f"X{number}", "/health")
        for path in ("/text2image", "/plan"):
            assert (await client.post(path, json={"prompt": "x", "model": name})).status_code == 404

    bus, metrics = client.app.state.services.bus, client.app.state.services.metrics

    def tell(number: int) -> None:
        """What no caller can cause, because admission refuses it."""
        bus.publish(ModelUnloaded(model=f"unknown-{number}", reason="asked"))
        bus.publish(TaskQueued(task_id=f"unknown-{number}", position=0))
        bus.publish(TaskCompleted(task_id=f"unknown-{number}", images=()))
        metrics.answered(f"X{number}", None, 404, 0.1)
        bus.forget(f"unknown-{number}")

    await client.until(await client.submit())
    await ask(0)
    tell(0)
    await scrape(client)
    before = await scrape(client)
    for number in range(1, 20):
        await ask(number)
    for number in range(1, 10_000):
        tell(number)
    now = await scrape(client)
    assert now.series == before.series
    assert now.value("unloads_total", model="(removed)") == 10_000
    assert repr(metrics) == "<Metrics [Live: 0]>"


async def test_a_removed_model_takes_its_series_along(client: Client) -> None:
    def with_(model: str, now: Scrape) -> set[str]:
        return {name for name, labels in now.series if ("model", model) in labels}

    entry = {"name": "other", "type": "fake", "pipeline_class": "FakePipeline", "base_size": 64, "steps": 4}
    created = await client.post("/models", json={"model_id": "other", **entry})
    assert created.status_code == 201, created.text
    await client.until(await client.submit(model="other"))
    assert len(with_("other", await scrape(client))) > 10
    assert (await client.delete("/models/other")).status_code == 200
    now = await scrape(client)
    assert with_("other", now) == set()
    assert with_("fake", now)


# -- who may ask, and what a read does ---------------------------------------------------------------------------------


async def test_a_key_needs_the_scope_read(client: Client) -> None:
    for scope, status in ((Scope.GENERATE, 403), (Scope.READ, 200), (Scope.ADMIN, 200)):
        key, text = new_key(scope, (scope,))
        await client.app.state.services.keys.create(key)
        assert (await client.get("/metrics", headers={"Authorization": f"Bearer {text}"})).status_code == status
    assert (await client.get("/metrics")).status_code == 401


def gets(client: Client, names: dict[str, str]) -> Iterator[str]:
    """The path of every route that has a GET, documented or not."""
    for route in leaves(client.app.routes):
        if "GET" in (getattr(route, "methods", None) or ()):
            path = route.path
            for name, value in names.items():
                path = path.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
            yield path


async def test_no_read_loads_a_model_or_counts_as_a_use_of_one(start: Start) -> None:
    engine = ScriptedEngine()
    async with start(models={"a": {}, "b": {}}, engine=engine) as client:
        task_id = await client.submit(model="a")
        task = await client.until(task_id)
        folder, file = (
            task["images"][0]["path"].split("/") if "path" in task["images"][0] else task["result_files"][0].split("/")
        )
        names = {
            **dict.fromkeys(("task_id", "prediction_id", "id"), task_id),
            **dict.fromkeys(("model_id", "model", "model_name"), "b"),
            **{"folder": folder, "file": file, "filename": file, "version": "1", "code": "not_found"},
            **dict.fromkeys(("name", "owner", "delivery_id", "path"), "a"),
        }

        async def state() -> tuple[Any, ...]:
            models = client.app.state.services.models
            statuses = [models.status(it) for it in ("a", "b")]
            resident = models.resident("a")
            return engine.asked, resident, [(it.state, it.last_used, it.unloads_at) for it in statuses]

        before, asked, called = await state(), list(engine.asked), []
        for path in gets(client, names):
            # A stream of events has no end, so its HEAD is asked, which runs the same route.
            streams = path.endswith("/events") or path.startswith(("/mcp", "/v1/streams")) or "stream" in path
            async with asyncio.timeout(20):
                answer = await client.request("HEAD" if streams else "GET", path)
            called.append((path, answer.status_code))
        assert await state() == before
        assert engine.asked == asked
        assert len(called) > 45
        answered = [path for path, status in called if status < 400]
        assert len(answered) > 40, [it for it in called if it[1] >= 400]
        assert "/metrics" in answered
        assert not [it for it in called if it[1] >= 500 and it[1] != 503]


@pytest.mark.parametrize(
    "accept",
    [
        *("", "text/plain", "*/*", "application/openmetrics-text", "nonsense/;;"),
        *("text/plain;version=x", 'application/openmetrics-text; version="1.0.0"', "text/plain;version=1.x"),
        *("application/openmetrics-text;version=9.9;escaping=dots", "text/plain;version=1" + "0" * 5000),
    ],
)
async def test_any_accept_gets_metrics(client: Client, accept: str) -> None:
    assert (await client.get("/metrics", headers={"Accept": accept})).status_code == 200
