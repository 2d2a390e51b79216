"""Traces: one for each task, over the queue, the worker process and a restart; and what is not in them."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from imagegen.telemetry.traces import http_options, new_provider
from tests.api.conftest import Client, Start
from tests.collector import Collector, Received, collecting

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}

#: No span has it.
PROMPT = "a marigold in a teacup"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer of-the-collector")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield running


def named(spans: list[Received], name: str) -> Received:
    (found,) = [it for it in spans if it.name == name]
    return found


async def submitted(client: Client, **fields: object) -> str:
    answer = await client.post("/text2image", json={"prompt": PROMPT, **fields}, headers=TRACEPARENT)
    assert answer.status_code == 202
    return str(answer.json()["task_id"])


async def test_a_task_is_one_trace_through_the_worker_process(start: Start, collector: Collector) -> None:
    async with start(isolation="process", models={"a": {"step_seconds": 0.01}}) as client:
        task_id = await submitted(client)
        await client.until(task_id)
        picture = (await client.task(task_id))["images"][0]["url"]
        signed = (await client.get(f"{picture}/url")).json()["url"]
        assert (await client.get(signed)).status_code == 200
        assert (await client.get("/tasks", params={"text": PROMPT, "limit": 3})).json()["filtered"] == 1
        await client.get(f"/tasks?ig_{'k' * 43}&limit=3")  # a key in the wrong place
        await client.get("/livez")
        await client.get("/metrics")
    spans = collector.trace(TRACE)
    request = named(spans, "POST /text2image")
    assert request.parent == PARENT
    stages = ["queue", "load", "encode", "denoise", "decode", "save"]
    assert sorted(it.name for it in spans) == sorted(["POST /text2image", "task", *stages])
    times = [named(spans, name) for name in stages]
    assert {it.parent for it in (*times, named(spans, "task"))} == {request.id}
    assert all(it.begin <= it.end for it in times)
    assert [it.begin for it in times] == sorted(it.begin for it in times)
    denoised = named(spans, "denoise")
    assert denoised.end - denoised.begin >= 4 * 0.01 * 1e9
    for it in (*times, named(spans, "task")):
        assert (it.attributes["imagegen.task_id"], it.attributes["imagegen.model"]) == (task_id, "a")
    assert named(spans, "task").attributes["imagegen.status"] == "completed"
    assert collector.resource["service.name"] == "imagegen"
    assert collector.headers[0]["authorization"] == "Bearer of-the-collector"
    names = {it.name for it in collector.spans}
    assert "GET /tasks" in names
    assert not names & {"GET /livez", "GET /metrics"}
    queries = {it.attributes["url.query"] for it in collector.spans if "url.query" in it.attributes}
    assert queries == {"token=REDACTED", "text=REDACTED&limit=REDACTED", "other=REDACTED&limit=REDACTED"}
    sent = b"".join(collector.bodies)
    assert PROMPT.encode() not in sent
    assert PROMPT.split()[1].encode() not in sent


async def test_a_trace_goes_on_after_a_restart(start: Start, collector: Collector) -> None:
    async with start(models={"a": {"step_seconds": 0.1, "steps": 200}}, drain_timeout_s=0) as client:
        first, second = await submitted(client), await submitted(client)
        await client.until(first, "processing")
    before = [it.name for it in collector.trace(TRACE)]
    assert "task" not in before
    assert before.count("POST /text2image") == 2
    async with start(models={"a": {}}) as client:
        for task_id in (first, second):
            assert (await client.until(task_id))["status"] == "completed"
    spans = collector.trace(TRACE)
    requests = {it.id for it in spans if it.name == "POST /text2image"}
    for name in ("denoise", "save", "task"):
        found = [it for it in spans if it.name == name]
        assert {it.attributes["imagegen.task_id"] for it in found} == {first, second}
        assert {it.parent for it in found} == requests
    waited = [it for it in spans if it.name == "queue" and it.attributes["imagegen.task_id"] == second]
    assert min(it.begin for it in waited) < max(it.end for it in spans if it.name == "POST /text2image")


async def test_a_failure_is_found_by_the_id_of_its_task(start: Start, collector: Collector) -> None:
    with capture_logs() as lines:
        task_id = await failed(start)
    assert {it["trace_id"] for it in lines if it.get("task_id") == task_id} == {TRACE}
    for name in ("generate", "task"):
        span = named(collector.trace(TRACE), name)
        assert span.failed
        assert span.attributes["error.type"] == "generation_failed"
        assert span.attributes["imagegen.task_id"] == task_id


async def failed(start: Start) -> str:
    """The id of a task that has failed, in a service that has ended since."""
    async with start(models={"bad": {"fault": "error"}}) as client:
        task_id = await submitted(client)
        await client.until(task_id)
    return task_id


async def test_any_traceparent_is_parsed_and_a_broken_one_begins_a_new_trace(
    start: Start, collector: Collector
) -> None:
    unwanted = f"00-{TRACE}-{PARENT}-00"  # the caller is not traced
    broken = (
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        "x" * 20_000,
        f"00-{TRACE}-{PARENT}-01\t; x",
        None,
    )
    tasks = {}
    async with start() as client:
        for header in (unwanted, *broken):
            headers = {} if header is None else {"traceparent": header}
            answer = await client.post("/text2image", json={"prompt": PROMPT}, headers=headers)
            tasks[header] = answer.json()["task_id"]
            await client.until(tasks[header])
    assert collector.trace(TRACE) == []
    traces = {
        header: {it.trace for it in collector.spans if it.attributes.get("imagegen.task_id") == task_id}
        for header, task_id in tasks.items()
    }
    assert [len(it) for it in traces.values()] == [0, 1, 1, 1, 1, 1]
    assert len(set().union(*traces.values())) == len(broken)


async def test_a_collector_that_does_not_answer_stops_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    async with asyncio.timeout(30), start() as client:
        assert (await client.until(await submitted(client)))["status"] == "completed"


def test_without_an_endpoint_nothing_of_the_sdk_is_imported() -> None:
    assert new_provider({}) is None
    assert new_provider({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}) is None
    assert not any(http_options(None)[name] for name in ("tracing", "metrics", "logs", "auto_configure"))
    script = "import sys, imagegen.app; print([it for it in sys.modules if it.startswith('opentelemetry.sdk')])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"
