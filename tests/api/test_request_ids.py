"""X-Request-ID: from the request to the answer, the task and every line of the log."""

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from fastapi import APIRouter
from structlog.testing import LogCapture

from imagegen.core.errors import StorageFailed
from imagegen.core.keys import Scope, new_key
from imagegen.core.task import TaskType
from imagegen.storage.images import ImageStore
from imagegen.tasks.batching import likeness
from imagegen.testing.engine import CRASHED, ScriptedEngine
from tests.api.conftest import Client, Start

OURS = {"x-request-id": "order-7.a_B"}


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """The lines of the log, as they are written: with what is bound in their context."""
    capture = LogCapture()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture.entries  # type: ignore[misc]
    structlog.reset_defaults()


def of(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize("path", ["/livez", "/nothing", "/docs", "/task/nope", "/images/a/b"])
async def test_the_id_of_a_request_is_echoed_whatever_the_answer(client: Client, path: str) -> None:
    assert (await client.get(path, headers=OURS)).headers["x-request-id"] == "order-7.a_B"
    assert (await client.head(path, headers=OURS)).headers["x-request-id"] == "order-7.a_B"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "{}", "a\tb", "é"])
async def test_a_missing_or_odd_id_is_replaced(client: Client, given: str) -> None:
    headers = {b"x-request-id": given.encode()} if given else {}
    made = (await client.get("/livez", headers=headers)).headers["x-request-id"]
    assert str(uuid.UUID(made)) == made


async def test_a_task_keeps_the_id_of_its_request(start: Start) -> None:
    async with start() as client:
        answer = await client.post("/text2image", json={"prompt": "x"}, headers=OURS)
        task_id = answer.json()["task_id"]
        task = await client.until(task_id)
        assert task["request_id"] == "order-7.a_B"
        replayed = await client.post(f"/task/{task_id}/replay", headers={"x-request-id": "again"})
        assert (await client.until(replayed.json()["task_id"]))["request_id"] == "again"
        assert (await client.get("/tasks")).json()["tasks"][1]["request_id"] == "order-7.a_B"
    async with start() as client:  # from the journal
        assert (await client.task(task_id))["request_id"] == "order-7.a_B"


async def test_every_line_about_a_task_has_its_ids(start: Start, lines: list[dict[str, Any]]) -> None:
    async with start(models={"fake": {"fault": "error"}}) as client:
        answer = await client.post("/text2image", json={"prompt": "x"}, headers=OURS)
        task_id = answer.json()["task_id"]
        task = await client.until(task_id)
    for event in ("task_accepted", "model_loaded", "engine_failed", "task_ended"):
        (line,) = of(lines, event)
        assert (line["task_id"], line["request_id"], line["model"]) == (task_id, "order-7.a_B", "fake"), event
    assert of(lines, "task_ended")[0]["code"] == task["error_code"] == "generation_failed"
    assert "stderr of the service" in task["error_message"]


async def test_a_task_is_not_logged_under_the_request_that_cancels_it(
    start: Start, lines: list[dict[str, Any]]
) -> None:
    async with start(models={"fake": {"step_seconds": 0.05}}) as client:
        first = await client.submit(steps=200)
        waiting = (await client.post("/text2image", json={"prompt": "x"}, headers=OURS)).json()["task_id"]
        await client.post(f"/task/{waiting}/cancel", headers={"x-request-id": "canceller"})
        await client.post(f"/task/{first}/cancel")
    (line,) = [line for line in of(lines, "task_ended") if line["task_id"] == waiting]
    assert (line["request_id"], line["code"]) == ("order-7.a_B", None)


async def test_the_lines_of_a_shared_call_name_all_its_tasks(start: Start, lines: list[dict[str, Any]]) -> None:
    fake = {"max_batch": 4, "fault": "error", "fault_prompt": "bad"}
    async with start(models={"fake": fake}) as client:
        services, gate = client.app.state.services, asyncio.Event()
        task_id = await client.submit()
        await client.until(task_id)
        request = (await services.tasks.records.get(task_id)).request
        alike = likeness(TaskType.TEXT2IMAGE, request, 0)
        assert alike is not None
        services.device.measurements.payoffs.learn("fake", alike.kind, 1, 1)
        services.device.measurements.payoffs.learn("fake", alike.kind, 2, 0.1)  # as if that had been fast
        holding = asyncio.create_task(services.tasks.between_tasks(gate.wait))
        ids = [await client.submit(prompt) for prompt in ("good", "bad")]
        gate.set()
        await holding
        for task_id in ids:
            await client.until(task_id)
    shared = of(lines, "engine_failed")[0]
    assert [shared["task_id"], shared["companions"]] == ids


async def test_what_is_logged_while_pictures_are_saved_has_the_ids_of_their_task(
    client: Client, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        structlog.get_logger().warning("disk_refused")
        raise StorageFailed

    monkeypatch.setattr(ImageStore, "save", refuse)
    answers = [
        await client.post("/text2image", json={"prompt": "x"}, headers={"x-request-id": name}) for name in ("a", "b")
    ]
    ids = [answer.json()["task_id"] for answer in answers]
    for task_id in ids:
        assert (await client.until(task_id))["error_code"] == "storage_failed"
    found = {(line["task_id"], line["request_id"], line["model"]) for line in of(lines, "disk_refused")}
    assert found == {(ids[0], "a", "fake"), (ids[1], "b", "fake")}


async def test_a_load_by_hand_is_logged_under_its_request(start: Start, lines: list[dict[str, Any]]) -> None:
    async with start(models={"fake": {"fault": "error", "fault_at": "load"}}) as client:
        assert (await client.post("/models/fake/load", headers=OURS)).status_code == 422
    assert of(lines, "engine_failed")[0]["request_id"] == "order-7.a_B"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "route"),
    [
        ("POST", "/text2image", {"promt": "x"}, 422, "invalid_request", "/text2image"),
        ("POST", "/text2image", {"prompt": "x", "model": "no"}, 404, "model_not_found", "/text2image"),
        ("GET", "/task/secret", None, 404, "task_not_found", "/task/{task_id}"),
        ("HEAD", "/task/secret", None, 404, "task_not_found", "/task/{task_id}"),
        ("GET", "/secret", None, 404, "not_found", None),
        ("PUT", "/models/secret", {"steps": 3}, 404, "model_not_found", "/models/{model_id}"),
    ],
)
async def test_a_refused_request_is_one_line(
    client: Client,
    lines: list[dict[str, Any]],
    method: str,
    path: str,
    body: object,
    status: int,
    code: str,
    route: str | None,
) -> None:
    await client.request(method, path, json=body, headers=OURS)
    (line,) = of(lines, "request")
    assert line.pop("ms") >= 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "status": status,
        "code": code,
        "method": method,
        "route": route,
        "key": None,
        "request_id": "order-7.a_B",
    }


async def test_a_request_is_one_line_with_the_name_of_its_key_and_no_text_of_its_caller(
    client: Client, lines: list[dict[str, Any]]
) -> None:
    key, text = new_key("alice", (Scope.GENERATE,))
    await client.app.state.services.keys.create(key)
    headers = OURS | {"X-API-Key": text}
    answer = await client.post("/text2image", json={"prompt": "a secret fox"}, headers=headers)
    await client.get(f"/task/{answer.json()['task_id']}", params={"q": "a secret fox"}, headers=headers)
    found = [(it["method"], it["route"], it["status"], it["key"], it["log_level"]) for it in of(lines, "request")]
    assert found == [
        ("POST", "/text2image", 202, "alice", "info"),
        ("GET", "/task/{task_id}", 200, "alice", "info"),
    ]
    assert {it["request_id"] for it in of(lines, "request")} == {"order-7.a_B"}
    assert text not in str(lines)
    assert "fox" not in str(lines)


async def test_what_programs_ask_every_few_seconds_is_not_at_the_level_of_info(
    client: Client, lines: list[dict[str, Any]]
) -> None:
    for path in ("/livez", "/readyz", "/health"):
        assert (await client.get(path)).status_code == 200
        await client.head(path)
    assert {(it["route"], it["log_level"]) for it in of(lines, "request")} == {
        ("/livez", "debug"),
        ("/readyz", "debug"),
        ("/health", "debug"),
    }


async def test_a_failed_task_can_be_followed_by_its_id(start: Start, lines: list[dict[str, Any]]) -> None:
    engine = ScriptedEngine()
    engine.always["generate"] = CRASHED
    async with start(engine=engine) as client:
        answer = await client.post("/text2image", json={"prompt": "a fox"}, headers=OURS)
        task = await client.until(answer.json()["task_id"])
    story = [line for line in lines if line.get("task_id") == task["task_id"] and line["event"].startswith("task_")]
    assert [(it["event"], it.get("attempt"), it.get("code")) for it in story] == [
        ("task_accepted", None, None),
        ("task_started", 1, None),
        ("task_put_back", 1, "worker_crashed"),
        ("task_started", 2, None),
        ("task_ended", 2, "worker_crashed"),
    ]
    assert {it["request_id"] for it in story} == {"order-7.a_B"}
    assert (story[-1]["status"], story[-1]["reason"]) == ("failed", task["error_message"])
    assert "fox" not in str(lines)


async def test_prompts_are_logged_only_where_the_operator_asks_for_it(
    start: Start, lines: list[dict[str, Any]]
) -> None:
    async with start(log_prompts=True) as client:
        await client.until(await client.submit("a fox"))
    (line,) = of(lines, "task_accepted")
    assert line["prompt"] == "a fox"
    assert "negative_prompt" in line


async def test_the_drain_retention_and_a_reload_have_lines(start: Start, lines: list[dict[str, Any]]) -> None:
    async with start(housekeeping_s=0.01) as client:
        await client.until(await client.submit())
        client.app.state.lifecycle.reload()
        await client.patch("/config/global", json={"retention_tasks": 1})
        kept = await client.submit()
        await client.until(kept)
        while not of(lines, "tasks_expired"):
            await asyncio.sleep(0.01)
        assert (await client.delete(f"/task/{kept}")).is_success
        client.app.state.lifecycle.begin_drain("SIGTERM")
        client.app.state.lifecycle.hurry()
    assert of(lines, "reload_asked")[0]["signal"] == "SIGHUP"
    assert of(lines, "config_unchanged")[0]["source"] == "signal"
    assert of(lines, "tasks_expired")[0]["tasks"] == 1
    assert of(lines, "task_deleted")[0]["task_id"] == kept
    (draining,) = of(lines, "draining")
    assert (draining["reason"], draining["waiting"], draining["running"]) == ("SIGTERM", 0, 0)
    assert draining["drain_timeout_s"] > 0
    assert len(of(lines, "drain_hurried")) == 1


async def test_a_body_that_breaks_off_is_one_line(client: Client, lines: list[dict[str, Any]]) -> None:
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/text2image", "query_string": b""}
    scope |= {"scheme": "http", "http_version": "1.1", "headers": [(b"host", b"127.0.0.1")], "asgi": {"version": "3.0"}}

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        """As to a caller that has gone."""

    await client.app(scope, receive, send)
    assert of(lines, "request_failed") == []
    assert [line["code"] for line in of(lines, "request")] == ["malformed_request"]


async def test_refusals_before_any_route_are_logged_and_echo_the_id(
    client: Client, lines: list[dict[str, Any]]
) -> None:
    answers = [
        await client.get("/livez", headers=OURS | {"host": "evil.example"}),
        await client.post("/queue/clear", headers=OURS | {"origin": "https://evil.example"}),
    ]
    assert [answer.headers["x-request-id"] for answer in answers] == ["order-7.a_B"] * 2
    assert [line["code"] for line in of(lines, "request")] == ["unknown_host", "cross_origin"]


async def test_a_bug_is_logged_with_its_traceback_and_the_id_that_the_answer_has(
    client: Client, lines: list[dict[str, Any]]
) -> None:
    router = APIRouter()

    @router.get("/bug")
    async def bug() -> None:
        raise RuntimeError("why")

    client.app.include_router(router)
    answer = await client.get("/bug", headers=OURS)
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "order-7.a_B")
    assert "stderr of the service" in answer.json()["detail"]
    (line,) = of(lines, "request_failed")
    assert (line["request_id"], line["route"], line["code"]) == ("order-7.a_B", "/bug", "internal_error")
    assert repr(line["exc_info"]) == "RuntimeError('why')"
