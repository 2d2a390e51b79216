"""Order, listing, following, cancelling."""

import asyncio
import json
from typing import Any

from tests.api.conftest import Client, Start

SLOW = {"fake": {"step_seconds": 0.02}}
VERY_SLOW = {"fake": {"step_seconds": 0.02, "steps": 200}}


def events(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    """(id, name, data) of each server-sent event."""
    parsed = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            parsed.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return parsed


async def test_lower_priority_numbers_run_first_and_equals_in_order_of_arrival(start: Start) -> None:
    async with start(models=SLOW) as client:
        await client.submit("the first one is running by now")
        ids = [await client.submit(str(p), priority=p) for p in (5, 0, -5, 0)]
        done = [await client.until(task_id) for task_id in ids]
    order = sorted(done, key=lambda task: task["started_at"])
    assert [task["prompt"] for task in order] == ["-5", "0", "0", "5"]
    assert [task["task_id"] for task in order][1:3] == [ids[1], ids[3]]


async def test_within_equal_priority_the_resident_model_goes_on(start: Start) -> None:
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


async def test_a_failed_task_says_why_and_the_next_one_runs(start: Start) -> None:
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


async def test_clearing_cancels_what_waits_and_leaves_what_runs(start: Start) -> None:
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


async def test_the_event_stream_tells_each_state_once_and_ends(client: Client) -> None:
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


async def test_a_listener_that_comes_back_hears_only_what_it_missed(client: Client) -> None:
    task_id = await client.submit(steps=3)
    told = events((await client.get(f"/task/{task_id}/events")).text)
    later = await client.get(f"/task/{task_id}/events", headers={"last-event-id": str(told[3][0])})
    assert events(later.text) == told[4:]
    nothing = await client.get(f"/task/{task_id}/events", headers={"last-event-id": str(told[-1][0])})
    assert nothing.text == ""


async def test_after_a_restart_the_stream_tells_the_end_with_a_higher_id(start: Start) -> None:
    async with start() as client:
        task_id = await client.submit()
        first = events((await client.get(f"/task/{task_id}/events")).text)
    async with start() as client:
        header = {"last-event-id": str(first[-2][0])}
        ((event_id, name, data),) = events((await client.get(f"/task/{task_id}/events", headers=header)).text)
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
