"""Prefer: wait=N, and callers that disconnect while they wait."""

import asyncio
import json
from typing import Any

import pytest

from imagegen.api.native.tasks.waiting import MAX_WAIT_S, preferred_wait
from tests.api.conftest import Client, Start

SLOW = {"fake": {"step_seconds": 0.02, "steps": 200}}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("wait=20", 20),
        ("respond-async, wait=5", 5),
        ('WAIT = "7" ; x=1, other', 7),
        ("wait=999999", MAX_WAIT_S),
        ("await=3", 0),
        ("wait=-1", 0),
        ("wait=1.5", 0),
        ("wait", 0),
        ("wait=99999999999999", 0),
    ],
)
def test_the_header_sets_how_long_to_wait(header: str | None, seconds: int) -> None:
    assert preferred_wait(header) == seconds


async def test_a_waiting_caller_gets_the_ended_task(client: Client) -> None:
    answer = await client.post("/text2image", json={"prompt": "x"}, headers={"prefer": "wait=30"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=30")
    task = answer.json()
    assert task == await client.task(task["task_id"])
    assert task["status"] == "completed"
    assert answer.headers["content-location"] == task["links"]["self"]


async def test_a_task_that_takes_longer_is_accepted_as_usual(start: Start) -> None:
    async with start(models=SLOW, drain_timeout_s=0) as client:
        answer = await client.post("/text2image", json={"prompt": "x"}, headers={"prefer": "wait=1"})
        assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=1")
        assert answer.headers["location"] == answer.json()["links"]["self"]
        assert (await client.task(answer.json()["task_id"]))["status"] == "processing"


async def test_a_stopping_service_ends_all_waits(start: Start) -> None:
    async with start(models=SLOW, drain_timeout_s=0) as client:
        waiting = asyncio.create_task(client.post("/text2image", json={"prompt": "x"}, headers={"prefer": "wait=100"}))
        while not client.app.state.services.bus.followed:
            await asyncio.sleep(0.01)
        client.app.state.lifecycle.begin_drain()
        assert (await waiting).status_code == 202
        client.app.state.lifecycle.hurry()


async def post_and_go(client: Client, body: dict[str, Any], path: str = "/text2image") -> None:
    """Request a wait for the end, and disconnect as soon as the task exists."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        while not client.app.state.services.bus.followed:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        """Wait until nothing listens any more."""

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"prefer", b"wait=100")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    await client.app({"http_version": "1.1", "scheme": "http", "asgi": {"version": "3.0"}, **scope}, receive, send)


@pytest.mark.parametrize(("takes_along", "status"), [(True, "cancelled"), (False, "processing")])
async def test_a_disconnect_cancels_the_task_if_requested(start: Start, takes_along: bool, status: str) -> None:
    async with start(models=SLOW, drain_timeout_s=0) as client:
        await asyncio.wait_for(post_and_go(client, {"prompt": "x", "cancel_on_disconnect": takes_along}), 30)
        (task,) = (await client.get("/tasks")).json()["tasks"]
        assert (await client.until(task["task_id"], status))["status"] == status
