"""Webhooks over HTTP: accepted URLs, the requests that receivers get, and the states of deliveries."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.api.conftest import Client, FullDisk, Start
from tests.receiver import OLDER_SECRET, SECRET, Receiver, bodies, hooks, receiving

SLOW = {"fake": {"step_seconds": 0.02}}
ALL = ["started", "completed", "failed", "cancelled"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


async def until(check: Callable[[], Any]) -> None:
    while not check():
        await asyncio.sleep(0.005)


async def deliveries(client: Client, **query: Any) -> list[dict[str, Any]]:
    """The deliveries, newest first."""
    answer = await client.get("/webhooks/deliveries", params=query)
    return list(answer.raise_for_status().json()["deliveries"])


async def until_state(client: Client, state: str, **query: Any) -> dict[str, Any]:
    """Wait until the newest delivery has the state."""
    while not (found := await deliveries(client, **query)) or found[0]["state"] != state:
        await asyncio.sleep(0.005)
    return found[0]


# -- what a receiver gets ----------------------------------------------------------------------------------------------


async def test_a_receiver_gets_the_end_and_can_verify_it(start: Start, receiver: Receiver) -> None:
    async with start(**hooks(receiver)) as client:
        task_id = await client.submit(webhook_url=receiver.url("/in"))
        await client.until(task_id)
        await until(lambda: receiver.at("/in"))
        (told,) = receiver.at("/in")
        said = told.verified()
        assert (said["type"], said["data"]) == ("task.completed", await client.task(task_id))
        assert told.headers["content-type"] == "application/json"
        delivery = await until_state(client, "delivered")
    assert (delivery["id"], delivery["attempts"], delivery["error"]) == (told.id, 1, None)


async def test_a_receiver_gets_the_requested_events_in_order(start: Start, receiver: Receiver) -> None:
    async with start(models=SLOW, **hooks(receiver)) as client:
        done = await client.submit(webhook_url=receiver.url("/done"), webhook_events=ALL)
        await client.until(done, "processing")
        waiting = await client.submit(webhook_url=receiver.url("/cancelled"), webhook_events=ALL)
        deaf = await client.submit(webhook_url=receiver.url("/deaf"), webhook_events=["failed"])
        await client.post(f"/task/{waiting}/cancel")
        await client.until(deaf)
        await until(lambda: len(receiver.received) == 3)
    assert [said["type"] for said in bodies(receiver.at("/done"))] == ["task.started", "task.completed"]
    assert [said["type"] for said in bodies(receiver.at("/cancelled"))] == ["task.cancelled"]
    assert len({told.id for told in receiver.received}) == 3


async def test_a_started_event_shows_a_running_task(start: Start, receiver: Receiver) -> None:
    async with start(models=SLOW, **hooks(receiver)) as client:
        await client.submit(webhook_url=receiver.url("/in"), webhook_events=["started"])
        await until(lambda: receiver.at("/in"))
    (said,) = bodies(receiver.at("/in"))
    assert (said["data"]["status"], said["data"]["attempt"]) == ("processing", 1)


async def test_a_failed_task_has_a_reason(start: Start, receiver: Receiver) -> None:
    models = {"fake": {"fault": "error", "fault_prompt": "bad"}}
    async with start(models=models, **hooks(receiver)) as client:
        await client.submit("bad", webhook_url=receiver.url("/in"))
        await until(lambda: receiver.at("/in"))
    (said,) = bodies(receiver.at("/in"))
    assert (said["type"], said["data"]["error_code"]) == ("task.failed", "generation_failed")


async def test_each_secret_signs_so_that_receivers_can_change_in_their_own_time(
    start: Start, receiver: Receiver
) -> None:
    async with start(**hooks(receiver, secrets=(SECRET, OLDER_SECRET))) as client:
        await client.submit(webhook_url=receiver.url("/in"))
        await until(lambda: receiver.at("/in"))
    (told,) = receiver.at("/in")
    assert told.verified(SECRET) == told.verified(OLDER_SECRET)


async def test_no_token_cookie_or_proxy_of_the_service_is_used(
    start: Start, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    receiver.replies_with("/in", (500, {"set-cookie": "a=b", "www-authenticate": "Bearer"}), 200)
    async with start(**hooks(receiver)) as client:
        await client.submit(webhook_url=receiver.url("/in"))
        await until(lambda: len(receiver.at("/in")) == 2)
    for told in receiver.at("/in"):
        assert set(told.headers) == {
            *("host", "content-type", "content-length", "user-agent"),
            *("webhook-id", "webhook-timestamp", "webhook-signature"),
        }
        assert told.headers["user-agent"].startswith("imagegen/")


# -- receivers that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (500, "status 500"),
        (404, "status 404"),
        ("reset", "broken_off"),
        ("hang", "timeout"),
        ("drip", "timeout"),
        ((302, {"location": "/elsewhere"}), "status 302"),
        ((307, {"location": "http://["}), "status 307"),
    ],
)
async def test_an_attempt_that_fails_is_made_again_with_the_same_id(
    start: Start, receiver: Receiver, reply: Any, error: str
) -> None:
    receiver.replies_with("/in", reply, 200)
    receiver.replies_with("/elsewhere", 200)
    hurried = hooks(receiver, delays_s="0.1") | {"webhook_timeout_s": "1" if error == "timeout" else "20"}
    with capture_logs() as logs:
        async with start(**hurried) as client:
            await client.submit(webhook_url=receiver.url("/in"))
            delivery = await until_state(client, "delivered")
    first, second = receiver.at("/in")
    assert (first.id, first.body) == (second.id, second.body)
    assert second.verified()
    assert delivery["attempts"] == 2
    assert receiver.at("/elsewhere") == []
    assert [line["error"] for line in logs if line["event"] == "delivery_failed"] == [error]


async def test_after_the_last_attempt_it_is_dead_and_can_be_sent_again(start: Start, receiver: Receiver) -> None:
    receiver.replies_with("/in", 503, 503, 503, 200)
    async with start(**hooks(receiver, delays_s="0.01,0.01")) as client:
        await client.submit(webhook_url=receiver.url("/in"))
        dead = await until_state(client, "dead")
        assert (dead["attempts"], dead["error"], dead["next_attempt_at"]) == (3, "status 503", None)
        again = await client.post(f"/webhooks/deliveries/{dead['id']}/replay")
        assert (again.status_code, again.json()["state"], again.json()["attempts"]) == (202, "pending", 0)
        assert (await until_state(client, "delivered"))["attempts"] == 1
    assert len({told.id for told in receiver.at("/in")}) == 1


async def test_retry_after_of_a_receiver_delays_the_next_attempt(start: Start, receiver: Receiver) -> None:
    receiver.replies_with("/in", (429, {"retry-after": "3600"}))
    async with start(**hooks(receiver)) as client:
        task = await client.until(await client.submit(webhook_url=receiver.url("/in")))
        while not (found := await deliveries(client)) or found[0]["next_attempt_at"] is None or not found[0]["error"]:
            await asyncio.sleep(0.005)
        assert found[0]["next_attempt_at"][:10] >= task["completed_at"][:10]
        waiting = (await client.get(f"/webhooks/deliveries/{found[0]['id']}")).json()
        assert (waiting["state"], waiting["error"], len(receiver.at("/in"))) == ("pending", "status 429", 1)
        # It can be hurried by hand.
        receiver.replies_with("/in", 200)
        await client.post(f"/webhooks/deliveries/{found[0]['id']}/replay")
        await until_state(client, "delivered")


async def test_410_ends_all_deliveries_to_its_url_until_a_redelivery_succeeds(start: Start, receiver: Receiver) -> None:
    receiver.replies_with("/in", 500, 500, 410)
    async with start(**hooks(receiver, delays_s="0.3,0.3,60")) as client:
        for _ in range(2):
            await client.until(await client.submit(webhook_url=receiver.url("/in")))
        while [each["state"] for each in await deliveries(client)] != ["dead", "dead"]:
            await asyncio.sleep(0.005)
        await client.until(await client.submit(webhook_url=receiver.url("/in")))
        born = await until_state(client, "dead")
        assert (born["attempts"], born["error"]) == (0, "gone")
        await client.until(await client.submit(webhook_url=receiver.url("/other")))
        await until(lambda: receiver.at("/other"))
        before = len(receiver.at("/in"))
        assert before in (3, 4)  # two may have been under way
        receiver.replies_with("/in", 200)
        await client.post(f"/webhooks/deliveries/{born['id']}/replay")
        while (await client.get(f"/webhooks/deliveries/{born['id']}")).json()["state"] != "delivered":
            await asyncio.sleep(0.005)
        await client.until(await client.submit(webhook_url=receiver.url("/in")))
        await until(lambda: len(receiver.at("/in")) == before + 2)


async def test_a_dead_receiver_delays_neither_tasks_nor_cancels_nor_other_receivers(
    start: Start, receiver: Receiver
) -> None:
    receiver.replies_with("/dead", "hang")
    models = {"fake": {"step_seconds": 0.01}}
    with receiving() as other:
        patient = hooks(receiver, other) | {"webhook_timeout_s": "60"}
        async with start(models=models, **patient) as client:
            for _ in range(3):
                ended = await client.until(await client.submit(webhook_url=receiver.url("/dead"), webhook_events=ALL))
                assert ended["status"] == "completed"
            running, waiting = [await client.submit(webhook_url=receiver.url("/dead"), steps=200) for _ in range(2)]
            await client.until(running, "processing")
            for task_id in (waiting, running):
                await client.post(f"/task/{task_id}/cancel")
                assert (await client.until(task_id))["status"] == "cancelled"
            await client.submit(webhook_url=other.url("/alive").replace("127.0.0.1", "localhost"))
            await until(lambda: other.at("/alive"))
            await until(lambda: len(receiver.at("/dead")) >= 2)
            assert len(receiver.at("/dead")) == 2  # at a time, to one host
            assert {each["state"] for each in await deliveries(client, task_id=running)} == {"pending"}


async def test_an_attempt_does_not_hold_the_exit_and_is_made_again_after_the_next_start(
    start: Start, receiver: Receiver
) -> None:
    receiver.replies_with("/in", "hang")
    patient = hooks(receiver, delays_s="600") | {"webhook_timeout_s": "60"}
    async with start(**patient) as client:
        await client.until(await client.submit(webhook_url=receiver.url("/in")))
        await until(lambda: receiver.at("/in"))
        receiver.replies_with("/in", 200)
    async with start(**patient) as client:
        assert (await until_state(client, "delivered"))["attempts"] == 1
    first, second = receiver.at("/in")
    assert (first.id, first.body) == (second.id, second.body)


async def test_events_of_one_task_are_delivered_in_order(start: Start, receiver: Receiver) -> None:
    receiver.replies_with("/in", 500, 500, 200)
    async with start(**hooks(receiver)) as client:
        await client.submit(webhook_url=receiver.url("/in"), webhook_events=ALL)
        await until(lambda: len(receiver.at("/in")) == 4)
    types = [said["type"] for said in bodies(receiver.at("/in"))]
    assert types == ["task.started"] * 3 + ["task.completed"]


async def test_an_end_that_the_disk_refused_is_reported_when_it_is_written(
    start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    disk = FullDisk(tmp_path, "update")
    async with start(housekeeping_s=0.02, journal=disk, **hooks(receiver)) as client:
        await client.until(await client.submit(webhook_url=receiver.url("/in")))
        assert await deliveries(client) == []
        disk.full = ()
        await until(lambda: receiver.at("/in"))
        await until_state(client, "delivered")
    assert len(receiver.at("/in")) == 1


# -- what is accepted --------------------------------------------------------------------------------------------------


async def test_without_a_secret_webhooks_are_off(client: Client) -> None:
    answer = await client.post("/text2image", json={"prompt": "x", "webhook_url": "https://example.com/"})
    assert (answer.status_code, answer.json()["code"]) == (422, "webhooks_off")
    answer = await client.post("/webhooks/deliveries/msg_1/replay")
    assert (answer.status_code, answer.json()["code"]) == (422, "webhooks_off")


@pytest.mark.parametrize(
    "fields",
    [
        {"webhook_url": ""},
        {"webhook_url": "https://example.com/" + "x" * 2000},
        {"webhook_url": 5},
        {"webhook_events": ["completed"]},
        {"webhook_url": "https://example.com", "webhook_events": []},
        {"webhook_url": "https://example.com", "webhook_events": ["queued"]},
    ],
)
async def test_an_invalid_webhook_is_an_invalid_request(start: Start, fields: dict[str, Any]) -> None:
    async with start(**hooks()) as client:
        answer = await client.post("/text2image", json={"prompt": "x", **fields})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("path", ["/text2image", "/plan"])
async def test_a_url_that_is_not_allowed_is_refused_and_not_repeated(start: Start, path: str) -> None:
    async with start(**hooks()) as client:
        answer = await client.post(path, json={"prompt": "x", "webhook_url": "ftp://example.com/?token=s3cret"})
        assert (answer.status_code, answer.json()["code"]) == (422, "url_not_allowed")
        assert "s3cret" not in answer.text
        assert (await client.get("/tasks")).json()["total"] == 0


async def test_the_secret_in_a_url_is_shown_nowhere(
    start: Start, receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver.replies_with("/in?token=s3cret", 500, "reset", 410)
    config = {"fake": {"base_size": 64}}
    async with start(models=config, **hooks(receiver)) as client:
        task_id = await client.submit(webhook_url=receiver.url("/in?token=s3cret"), webhook_events=ALL)
        shown = str(await client.until(task_id))
        assert '"host": "127.0.0.1"' in shown.replace("'", '"')
        dead = await until_state(client, "dead", task_id=task_id)
        for path in ("/tasks", "/webhooks/deliveries", f"/webhooks/deliveries/{dead['id']}"):
            shown += (await client.get(path)).raise_for_status().text
        shown += (await client.post(f"/webhooks/deliveries/{dead['id']}/replay")).text
    shown += "".join(told.body for told in receiver.received) + "".join(capfd.readouterr())
    assert "s3cret" not in shown
    assert SECRET.removeprefix("whsec_") not in shown


# -- looking -----------------------------------------------------------------------------------------------------------


async def test_deliveries_are_listed_by_task_and_state_page_by_page(start: Start, receiver: Receiver) -> None:
    receiver.replies_with("/dead", 500)
    async with start(**hooks(receiver, delays_s="0.01")) as client:
        ids = []
        for path in ("/a", "/dead", "/b"):
            ids.append(await client.submit(webhook_url=receiver.url(path)))
            await client.until(ids[-1])
        while {each["state"] for each in await deliveries(client)} != {"delivered", "dead"} or len(
            await deliveries(client, state="pending")
        ):
            await asyncio.sleep(0.005)
        assert [each["task_id"] for each in await deliveries(client)] == ids[::-1]
        assert [each["task_id"] for each in await deliveries(client, state="dead")] == [ids[1]]
        assert [each["task_id"] for each in await deliveries(client, task_id=ids[2])] == [ids[2]]
        first = await client.get("/webhooks/deliveries", params={"limit": 2})
        assert [each["task_id"] for each in first.json()["deliveries"]] == ids[:0:-1]
        address = first.headers["link"].partition(">")[0].removeprefix("<")
        last = await client.get(address)
        assert [each["task_id"] for each in last.json()["deliveries"]] == ids[:1]
        assert "link" not in last.headers


async def test_a_delivery_shows_its_content(start: Start, receiver: Receiver) -> None:
    async with start(**hooks(receiver)) as client:
        await client.submit(webhook_url=receiver.url("/in"))
        delivery = await until_state(client, "delivered")
        details = (await client.get(f"/webhooks/deliveries/{delivery['id']}")).json()
    assert [details["payload"]] == bodies(receiver.at("/in"))


async def test_an_unknown_delivery_is_not_found(start: Start) -> None:
    async with start(**hooks()) as client:
        for answer in (
            await client.get("/webhooks/deliveries/msg_1"),
            await client.post("/webhooks/deliveries/msg_1/replay"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "delivery_not_found")


async def test_deliveries_go_with_their_task(start: Start, receiver: Receiver) -> None:
    receiver.replies_with("/slow", 500)
    async with start(**hooks(receiver, delays_s="60")) as client:
        for path in ("/in", "/slow"):
            task_id = await client.submit(webhook_url=receiver.url(path))
            await client.until(task_id)
            await until_state(client, "delivered" if path == "/in" else "pending", task_id=task_id)
            await until(partial(receiver.at, path))
            await client.delete(f"/task/{task_id}")
        (waiting,) = await deliveries(client)  # what is on its way gets there
        receiver.replies_with("/slow", 200)
        await client.post(f"/webhooks/deliveries/{waiting['id']}/replay")
        while await deliveries(client):
            await asyncio.sleep(0.005)
    assert len(receiver.at("/slow")) == 2
