"""Order, listing, following, cancelling."""

import asyncio
import base64
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import TypeAdapter

from imagegen.api.native.events import TaskStreamEvent, frame
from imagegen.core.events import EventBus, TaskCancelled
from imagegen.gpu.protocol import DeviceMemory
from imagegen.testing.engine import ScriptedEngine
from tests.api.conftest import Client, Start

SLOW = {"fake": {"step_seconds": 0.02}}
VERY_SLOW = {"fake": {"step_seconds": 0.02, "steps": 200}}


DOCUMENTED: TypeAdapter[Any] = TypeAdapter(TaskStreamEvent)


def events(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    """(id, name, data) of each server-sent event. Its data must be as the OpenAPI document describes it."""
    parsed = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            data = json.loads(fields["data"])
            assert data["type"] == fields["event"]
            assert DOCUMENTED.validate_python(data).model_dump(mode="json").keys() == data.keys()
            parsed.append((int(fields["id"]), fields["event"], data))
    return parsed


def pictures(folder: Path) -> list[Path]:
    return list(folder.rglob("*.png"))


async def test_lower_priority_numbers_run_first_and_equals_in_order_of_arrival(start: Start) -> None:
    async with start(models=SLOW) as client:
        await client.submit("the first one is running by now")
        ids = [await client.submit(str(p), priority=p) for p in (5, 0, -5, 0)]
        done = [await client.until(task_id) for task_id in ids]
    order = sorted(done, key=lambda task: task["started_at"])
    assert [task["prompt"] for task in order] == ["-5", "0", "0", "5"]
    assert [task["task_id"] for task in order][1:3] == [ids[1], ids[3]]


async def test_within_equal_priority_the_resident_model_continues(start: Start) -> None:
    async with start(models={"a": {"step_seconds": 0.02}, "b": {"step_seconds": 0.02}}) as client:
        ids = [await client.submit(model=model) for model in "abab"]
        done = [await client.until(task_id) for task_id in ids]
    order = sorted(done, key=lambda task: task["started_at"])
    assert [task["model"] for task in order] == ["a", "a", "b", "b"]


async def test_tasks_are_listed_newest_first_with_counts(client: Client) -> None:
    ids = [await client.submit(str(i)) for i in range(4)]
    for task_id in ids:
        await client.until(task_id)
    page = (await client.get("/tasks", params={"limit": 2})).json()
    assert [task["task_id"] for task in page["tasks"]] == [ids[3], ids[2]]
    assert (page["total"], page["filtered"]) == (4, 4)
    page = (await client.get("/tasks", params={"status": "failed"})).json()
    assert (page["tasks"], page["total"], page["filtered"]) == ([], 4, 0)
    assert (await client.get("/tasks", params={"status": "done"})).json()["code"] == "invalid_request"
    assert (await client.get("/tasks", params={"limit": 0})).json()["code"] == "invalid_request"


async def test_an_unknown_task_is_404_everywhere(client: Client) -> None:
    for method, path in (("GET", "/task/x"), ("GET", "/task/x/events"), ("POST", "/task/x/cancel")):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")


async def test_pages_are_linked_and_filtered_by_model(start: Start) -> None:
    async with start(models={"a": {}, "b": {}}) as client:
        ids = [await client.submit(model="ab"[i % 2]) for i in range(7)]
        answer = await client.get("/tasks", params={"model": "a", "limit": 3})
        assert (answer.json()["total"], answer.json()["filtered"]) == (7, 4)
        found = [task["task_id"] for task in answer.json()["tasks"]]
        url, relation = answer.headers["link"].split("; ")
        assert relation == 'rel="next"'
        answer = await client.get(url.strip("<>"))
        found += [task["task_id"] for task in answer.json()["tasks"]]
        assert found == [ids[6], ids[4], ids[2], ids[0]]
        assert "link" not in answer.headers
        for wrong in ({"cursor": "x"}, {"cursor": -1}, {"model": "../a"}):
            assert (await client.get("/tasks", params=wrong)).json()["code"] == "invalid_request"


async def test_a_deleted_task_is_removed_with_its_files(start: Start, tmp_path: Path) -> None:
    async with start(models=VERY_SLOW, drain_timeout_s=0) as client:
        done, running = await client.submit(steps=1, batch_size=2), await client.submit()
        await client.until(done)
        await client.until(running, "processing")
        assert len(pictures(tmp_path)) == 2
        answer = await client.delete(f"/task/{running}")
        assert (answer.status_code, answer.json()["code"]) == (409, "task_not_finished")
        assert (await client.delete(f"/task/{done}")).status_code == 204
        assert pictures(tmp_path) == []
        for path in ("", "/events"):
            assert (await client.get(f"/task/{done}{path}")).status_code == 404
        assert (await client.delete(f"/task/{done}")).json()["code"] == "task_not_found"
        assert (await client.get("/tasks")).json()["total"] == 1


async def test_an_ended_task_shows_until_when_it_is_kept(start: Start) -> None:
    async with start(retention_days=2) as client:
        task_id = await client.submit()
        task = await client.until(task_id)
        kept = datetime.fromisoformat(task["expires_at"]) - datetime.fromisoformat(task["completed_at"])
        assert kept == timedelta(days=2)
    async with start(retention_days=0) as client:
        assert "expires_at" not in await client.task(task_id)


async def test_the_newest_of_many_results_are_kept(start: Start, tmp_path: Path) -> None:
    async with start(retention_tasks=2, housekeeping_s=0.02) as client:
        ids = []
        for _ in range(4):  # one after the other, so that they end in this order
            ids.append(await client.submit())
            await client.until(ids[-1])
        while (await client.get("/tasks")).json()["total"] > 2:
            await asyncio.sleep(0.01)
        assert [task["task_id"] for task in (await client.get("/tasks")).json()["tasks"]] == [ids[3], ids[2]]
        assert len(pictures(tmp_path)) == 2


async def test_a_file_that_cannot_be_removed_keeps_its_own_task_only(start: Start, tmp_path: Path) -> None:
    async with start() as client:
        ids = []
        for _ in range(3):
            ids.append(await client.submit())
            await client.until(ids[-1])
        (stuck,) = (await client.task(ids[0]))["result_files"]
    (file,) = tmp_path.rglob(stuck.rpartition("/")[2])
    file.unlink()
    file.mkdir()
    async with start(retention_tasks=1, housekeeping_s=0.02) as client:
        while (await client.get("/tasks")).json()["total"] > 2:
            await asyncio.sleep(0.01)
        assert [task["task_id"] for task in (await client.get("/tasks")).json()["tasks"]] == [ids[2], ids[0]]
        file.rmdir()
        while (await client.get("/tasks")).json()["total"] > 1:
            await asyncio.sleep(0.01)


async def test_a_task_that_misses_its_deadline_fails_with_its_own_code(start: Start) -> None:
    async with start(models=VERY_SLOW, drain_timeout_s=0, housekeeping_s=0.02) as client:
        running = await client.submit()
        await client.until(running, "processing")
        late, patient = await client.submit(deadline_s=0.05), await client.submit(deadline_s=1000)
        failed = await client.until(late)
        assert (failed["status"], failed["error_code"]) == ("failed", "deadline_exceeded")
        assert (failed["attempt"], failed["deadline_s"]) == (0, 0.05)
        assert (await client.task(patient))["status"] == "pending"


async def test_a_task_that_began_before_its_deadline_continues(start: Start) -> None:
    async with start(models=SLOW, housekeeping_s=0.01) as client:
        await client.until(await client.submit())
        task = await client.until(await client.submit(deadline_s=0.5, steps=50))
        assert (task["status"], "estimated_finish_at" in task) == ("completed", False)


async def test_waiting_tasks_have_estimates_after_measurements(start: Start) -> None:
    async with start(models=SLOW, drain_timeout_s=0) as client:
        running, unknown = await client.submit(steps=20), await client.submit()
        await client.until(running, "processing")
        waiting = await client.task(unknown)
        assert (waiting["position"], waiting["estimated_start_at"]) == (0, None)
        await client.until(unknown)
        running = await client.submit(steps=200)
        waits = [await client.submit(steps=50, width=128, height=64), await client.submit(steps=100)]
        await client.until(running, "processing")
        first, second = [await client.task(task_id) for task_id in waits]
        assert [first["position"], second["position"]] == [0, 1]
        times = [first["estimated_start_at"], first["estimated_finish_at"], second["estimated_finish_at"]]
        now, start_at, finish_at, last_at = [datetime.now(UTC), *map(datetime.fromisoformat, times)]
        assert now < start_at < finish_at < last_at
        # Twice the pixels, half the steps: as long as the next one.
        assert (last_at - finish_at) / (finish_at - start_at) == pytest.approx(1, rel=0.01)
        running_now = await client.task(running)
        assert abs(datetime.fromisoformat(running_now["estimated_finish_at"]) - start_at) < timedelta(seconds=3)


async def test_a_plan_reports_what_would_happen_and_accepts_no_task(start: Start) -> None:
    models = {"a": {"step_seconds": 0.02}, "b": {"load_seconds": 0.1}, "large": {"memory_mb": 65_536}}
    async with start(models=models, drain_timeout_s=0) as client:
        await client.until(await client.submit(model="b"))
        await client.until(await client.submit(model="a"))
        running = await client.submit(model="a", steps=100)
        await client.until(running, "processing")
        await client.submit(model="a")
        plan = (await client.post("/plan", json={"prompt": "x", "model": "b", "width": 96, "height": 64})).json()
        assert (plan["fits"], plan["model"], plan["width"], plan["steps"]) == (True, "b", 96, 4)
        assert (plan["evicts"], plan["position"]) == (["a"], 1)
        assert plan["load_seconds"] >= 0.1
        assert plan["estimated_start_at"] < plan["estimated_finish_at"]
        for priority, place in ((-1, 0), (1, 1)):
            body = {"prompt": "x", "model": "a", "priority": priority}
            plan = (await client.post("/plan", json=body)).json()
            assert (plan["evicts"], plan["load_seconds"], plan["position"]) == ([], 0, place)
        assert (await client.get("/tasks")).json()["total"] == 4


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nope"}, 404, "model_not_found"),
        ({"model": "words", "task_type": "image2image"}, 422, "unsupported_capability"),
        ({"width": 4096, "height": 4096}, 422, "size_too_large"),
        ({"model": "large"}, 422, "does_not_fit"),
        ({"stepz": 1}, 422, "invalid_request"),
    ],
)
async def test_a_plan_of_an_impossible_request_has_the_reason(
    start: Start, body: dict[str, Any], status: int, code: str
) -> None:
    models = {"fake": {}, "words": {"supports_img2img": False}, "large": {"memory_mb": 65_536}}
    memory = DeviceMemory(host_total=2**30)
    async with start(models=models, engine=ScriptedEngine(full=memory, empty=memory)) as client:
        await client.until(await client.submit())  # the engine has been measured
        answer = await client.post("/plan", json={"prompt": "x"} | body)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_waiting_task_is_notified_when_tasks_before_it_leave(start: Start) -> None:
    async with start(models=VERY_SLOW, drain_timeout_s=0) as client:
        running = await client.submit()
        await client.until(running, "processing")
        ids = [await client.submit(steps=1) for _ in range(3)]
        stream = asyncio.create_task(client.get(f"/task/{ids[2]}/events"))
        while not client.app.state.services.bus.followed:
            await asyncio.sleep(0.01)
        await client.post(f"/task/{ids[0]}/cancel")
        heard = asyncio.create_task(client.get(f"/task/{ids[2]}/events"))
        await asyncio.sleep(0.5)
        await client.post(f"/task/{running}/cancel")
        told = events((await stream).text)
        assert [(name, data["position"]) for _, name, data in told[:2]] == [("queued", 2), ("position", 1)]
        assert "estimated_start_at" in told[1][2]
        late = events((await heard).text)
        assert [(name, data["position"]) for _, name, data in late[:2]] == [("queued", 2), ("position", 1)]
        for answer in (told, late):
            assert [event_id for event_id, _, _ in answer] == sorted({event_id for event_id, _, _ in answer})


async def test_previews_are_sent_on_request(start: Start) -> None:
    async with start(models=SLOW) as client:
        task_id = await client.submit(steps=8, previews=3, batch_size=2)
        told = events((await client.get(f"/task/{task_id}/events")).text)
        previews = [data for _, name, data in told if name == "preview"]
        assert [(data["step"], data["total"]) for data in previews] == [(k, 16) for k in (2, 4, 6, 10, 12, 14)]
        for data in previews:
            assert data["media_type"] == "image/jpeg"
            with Image.open(io.BytesIO(base64.b64decode(data["image"]))) as picture:
                assert picture.format == "JPEG"


async def test_a_failed_task_has_a_reason_and_the_next_one_runs(start: Start) -> None:
    async with start(models={"fake": {"fault": "error", "fault_prompt": "poison"}}) as client:
        bad, good = await client.submit("poison"), await client.submit("fine")
        failed = await client.until(bad)
        assert (failed["status"], failed["error_code"]) == ("failed", "generation_failed")
        assert "RuntimeError" in failed["error_message"]
        assert "result_files" not in failed
        assert (await client.until(good))["status"] == "completed"


async def test_a_waiting_task_is_cancelled_at_once(start: Start) -> None:
    async with start(models=VERY_SLOW) as client:
        running = await client.submit()
        await client.until(running, "processing")
        waiting = await client.submit()
        assert (await client.task(waiting))["position"] == 0
        answer = await client.post(f"/task/{waiting}/cancel")
        assert answer.json()["status"] == "cancelled"
        again = await client.post(f"/task/{waiting}/cancel")
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")
        assert (await client.task(running))["status"] == "processing"


async def test_a_running_task_is_cancelled_between_two_steps(start: Start) -> None:
    async with start(models=VERY_SLOW) as client:
        running, next_one = await client.submit(), await client.submit(steps=1)
        await client.until(running, "processing")
        await client.post(f"/task/{running}/cancel")
        assert (await client.until(running))["status"] == "cancelled"
        assert (await client.until(next_one))["status"] == "completed"


async def test_a_finished_task_cannot_be_cancelled(client: Client) -> None:
    task_id = await client.submit()
    await client.until(task_id)
    answer = await client.post(f"/task/{task_id}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "task_finished")


async def test_clearing_cancels_waiting_tasks_only(start: Start) -> None:
    async with start(models=VERY_SLOW) as client:
        running = await client.submit()
        await client.until(running, "processing")
        waiting = [await client.submit() for _ in range(3)]
        cleared = (await client.post("/queue/clear")).json()
        assert (cleared["cancelled"], cleared["remaining_tasks"]) == (3, 0)
        assert "3" in cleared["message"]
        assert [(await client.task(task_id))["status"] for task_id in waiting] == ["cancelled"] * 3
        assert (await client.task(running))["status"] == "processing"


async def test_a_full_queue_answers_503_with_retry_after_and_loses_nothing(start: Start) -> None:
    async with start(models=SLOW, max_queue=5) as client:
        answers = await asyncio.gather(*(client.post("/text2image", json={"prompt": "x"}) for _ in range(30)))
        accepted = [answer.json()["task_id"] for answer in answers if answer.status_code == 202]
        refused = [answer for answer in answers if answer.status_code == 503]
        assert len(accepted) + len(refused) == 30
        assert 5 <= len(accepted) <= 7  # one may have begun to run meanwhile
        assert {answer.json()["code"] for answer in refused} == {"queue_full"}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        for task_id in accepted:
            assert (await client.until(task_id))["status"] == "completed"


async def test_the_event_stream_has_each_state_once_and_ends(client: Client) -> None:
    task_id = await client.submit(steps=3, batch_size=2)
    told = events((await client.get(f"/task/{task_id}/events")).text)
    names = [name for _, name, _ in told]
    assert names == ["queued", "started", "loading", "loaded", *["step"] * 6, "saved", "completed"]
    assert [(data["step"], data["total"]) for _, name, data in told if name == "step"] == [(k, 6) for k in range(1, 7)]
    ids = [event_id for event_id, _, _ in told]
    assert ids == sorted(set(ids))
    task = await client.task(task_id)
    assert told[-1][2]["images"] == task["images"]
    assert told[-1][2]["result_files"] == task["result_files"]


async def test_a_listener_that_reconnects_gets_only_missed_events(client: Client) -> None:
    task_id = await client.submit(steps=3)
    told = events((await client.get(f"/task/{task_id}/events")).text)
    later = await client.get(f"/task/{task_id}/events", headers={"last-event-id": str(told[3][0])})
    assert events(later.text) == told[4:]
    nothing = await client.get(f"/task/{task_id}/events", headers={"last-event-id": str(told[-1][0])})
    assert nothing.text == ""


async def test_after_a_restart_the_stream_has_the_end_with_a_higher_id(start: Start) -> None:
    async with start() as client:
        task_id = await client.submit()
        first = events((await client.get(f"/task/{task_id}/events")).text)
    async with start() as client:
        header = {"last-event-id": str(first[-2][0])}
        gap, (event_id, name, data) = events((await client.get(f"/task/{task_id}/events", headers=header)).text)
        assert gap[1:] == ("gap", {"type": "gap", "after": first[-2][0], "until": gap[0]})
        assert (name, data) == ("completed", first[-1][2])
        assert event_id > first[-1][0]


async def test_finished_tasks_expire_with_their_files(start: Start, tmp_path: Any) -> None:
    async with start() as client:
        task_id = await client.submit(batch_size=2)
        await client.until(task_id)
    files = list((tmp_path / "data" / "images").rglob("*.png"))
    assert len(files) == 2
    async with start(models=VERY_SLOW, retention_days=1e-9, housekeeping_s=0.02) as client:
        running = await client.submit()
        while (await client.get(f"/task/{task_id}")).status_code != 404:
            await asyncio.sleep(0.01)
        assert not any(file.exists() for file in files)
        assert (await client.task(running))["status"] in ("pending", "processing")


async def test_a_listener_that_hangs_up_is_forgotten(start: Start) -> None:
    async with start(models=VERY_SLOW, drain_timeout_s=0) as client:
        task_id, bus = await client.submit(), client.app.state.services.bus

        async def receive() -> Any:
            while not bus.subscribers:
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            """Wait until nothing listens any more."""

        for path in (f"/task/{task_id}/events", "/events"):
            scope: dict[str, Any] = {
                "type": "http",
                "method": "GET",
                "path": path,
                "query_string": b"",
                "scheme": "http",
            }
            scope |= {"http_version": "1.1", "headers": [(b"host", b"127.0.0.1")], "asgi": {"version": "3.0"}}
            await asyncio.wait_for(client.app(scope, receive, send), 30)
            assert bus.subscribers == 0


async def test_in_silence_a_stream_is_kept_alive() -> None:
    bus = EventBus(1)
    with bus.subscribe() as subscription:
        listening = subscription.with_silence(0.001)
        assert [await anext(listening) for _ in range(3)] == [None] * 3
        bus.publish(TaskCancelled(task_id="a"))
        bus.close()
        heard = [published async for published in listening if published]
        assert [frame(each.id, each.event) for each in heard] == [
            b'event: cancelled\ndata: {"type":"cancelled","task_id":"a"}\nid: 1\n\n',
            b'event: closed\ndata: {"type":"closed","reason":"stopping"}\nid: 1\n\n',
        ]
