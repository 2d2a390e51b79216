"""The outbox: its events are on disk together with their task's state, and their number is limited."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from imagegen.core.errors import DeliveryNotFound, StorageFailed
from imagegen.core.task import GenerationTask, TaskStatus
from imagegen.core.webhooks import Delivery, DeliveryState, Webhook, WebhookEvent
from imagegen.storage import outbox as outbox_module
from imagegen.storage.journal import TaskJournal
from imagegen.storage.outbox import DeliveryFilter
from imagegen.webhooks import sender as sender_module
from imagegen.webhooks.client import Answer
from imagegen.webhooks.sender import WebhookSender
from imagegen.webhooks.signing import Signer
from tests.receiver import SECRET
from tests.unit.conftest import MORNING, insert_one, task_of

ALL = tuple(WebhookEvent)
DELAYS_S = (5, 300, 1800)


def told(number: int, url: str = "https://example.com/a", events: tuple[WebhookEvent, ...] = ALL) -> GenerationTask:
    return task_of(number, webhook=Webhook(url=url, events=events))


def ended(task: GenerationTask, status: TaskStatus = TaskStatus.COMPLETED) -> GenerationTask:
    return task.evolve(status=status, completed_at=MORNING)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "imagegen.sqlite3"


def open_journal(path: Path) -> TaskJournal:
    return TaskJournal(path, render=lambda task, event, at: f'{{"{event}": "{task.id}"}}')


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[TaskJournal]:
    opened = open_journal(path)
    yield opened
    await opened.close()


async def all_of(journal: TaskJournal, **wanted: Any) -> list[Delivery]:
    """All deliveries, oldest first."""
    found, _ = await journal.outbox.page(DeliveryFilter(**wanted), 1000)
    return found[::-1]


async def born(journal: TaskJournal, *tasks: GenerationTask) -> list[Delivery]:
    for task in tasks:
        await insert_one(journal, task)
        await journal.update(ended(task))
    return await all_of(journal)


# -- born with what happened -------------------------------------------------------------------------------------------


async def test_an_end_and_its_telling_are_one_transaction(journal: TaskJournal, path: Path) -> None:
    task = await insert_one(journal, told(1))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TRIGGER no BEFORE INSERT ON deliveries BEGIN SELECT RAISE(ABORT, 'no'); END")
        connection.commit()
        with pytest.raises(StorageFailed):
            await journal.update(ended(task))
        assert await journal.get(task.id) == task
        connection.execute("DROP TRIGGER no")
        connection.commit()
        await journal.update(ended(task))
        # As a killed process leaves it.
        rows = connection.execute("SELECT task_id, event, state, attempts FROM deliveries").fetchall()
    assert rows == [(task.id, "completed", "pending", 0)]


async def test_events_that_were_not_requested_are_not_sent(journal: TaskJournal) -> None:
    for number, events in enumerate([(WebhookEvent.FAILED,), ALL, (WebhookEvent.STARTED,)]):
        task = await insert_one(journal, told(number, events=events))
        await journal.update(task.evolve(status=TaskStatus.PROCESSING))  # its model is being loaded
        await journal.begin(task.evolve(status=TaskStatus.PROCESSING, attempt=1))
        await journal.update(ended(task))
    await born(journal, task_of(9))
    assert [(each.task_id[-1], each.event.value) for each in await all_of(journal)] == [
        ("1", "started"),
        ("1", "completed"),
        ("2", "started"),
    ]


@pytest.mark.parametrize("status", [TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED])
async def test_each_end_has_its_own_event(journal: TaskJournal, status: TaskStatus) -> None:
    task = await insert_one(journal, told(1))
    await journal.update(ended(task, status))
    (found,) = await all_of(journal)
    delivery = await journal.outbox.get(found.id)
    assert delivery is not None
    assert (delivery.event.value, delivery.payload) == (status.value, f'{{"{status}": "{task.id}"}}')


async def test_every_delivery_has_its_own_id(journal: TaskJournal) -> None:
    found = await born(journal, *(told(number) for number in range(20)))
    assert len({each.id for each in found}) == 20
    assert all(each.id.startswith("msg_") for each in found)


A, B, C = (f"https://{name}.example/hook?token=secret" for name in "abc")


def states(found: list[Delivery]) -> list[str]:
    return [each.error or each.state.value for each in found]


async def test_a_host_may_have_as_many_pending_deliveries_as_are_free(
    journal: TaskJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MAX_PENDING", 6)
    urls = [A, A, A, A, B, C, B]
    found = await born(journal, *(told(number, url) for number, url in enumerate(urls)))
    assert states(found) == ["pending", "pending", "pending", "outbox_full", "pending", "pending", "outbox_full"]


async def test_a_delivery_that_ends_returns_its_share(journal: TaskJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MAX_PENDING", 2)
    (first,) = await born(journal, told(1))
    assert states(await born(journal, told(2)))[1:] == ["outbox_full"]
    await journal.outbox.delivered(first.evolve(state=DeliveryState.DELIVERED))
    *_, third = await born(journal, told(3))
    assert third.state is DeliveryState.PENDING
    await journal.outbox.failed(third.evolve(attempts=1, error="timeout"))  # it still waits
    assert states(await born(journal, told(4)))[-1:] == ["outbox_full"]
    await journal.outbox.failed(third.evolve(state=DeliveryState.DEAD, error="timeout"))
    await journal.outbox.failed(third.evolve(state=DeliveryState.DEAD, error="timeout"))  # once only
    assert states(await born(journal, told(5), told(6)))[-2:] == ["pending", "outbox_full"]


async def test_a_transaction_that_is_undone_takes_no_share(
    journal: TaskJournal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MAX_PENDING", 2)
    task = await insert_one(journal, told(1))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TRIGGER no BEFORE INSERT ON deliveries BEGIN SELECT RAISE(ABORT, 'no'); END")
        connection.commit()
        for _ in range(3):
            with pytest.raises(StorageFailed):
                await journal.update(ended(task))
        connection.execute("DROP TRIGGER no")
        connection.commit()
    await journal.update(ended(task))
    assert states(await all_of(journal)) == ["pending"]


async def test_shares_hold_over_a_restart_and_a_revived_delivery_counts_again(
    journal: TaskJournal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = await born(journal, told(1))
    await journal.outbox.failed(first.evolve(state=DeliveryState.DEAD, error="timeout"))
    await journal.outbox.redeliver(first.id)
    await journal.outbox.redeliver(first.id)
    monkeypatch.setattr(outbox_module, "MAX_PENDING", 2)
    assert states(await born(journal, told(2))) == ["pending", "outbox_full"]
    second = open_journal(path)
    assert states(await born(second, told(3))) == ["pending", "outbox_full", "outbox_full"]
    await second.close()


async def test_each_delivery_that_dies_is_logged_and_counted_without_its_url(
    journal: TaskJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MAX_PENDING", 6)
    with capture_logs() as lines:
        first, _, late, full = await born(journal, *(told(number, A) for number in range(4)))
        await journal.outbox.failed(late.evolve(state=DeliveryState.DEAD, attempts=4, error="timeout"))
        await journal.outbox.failed(first.evolve(state=DeliveryState.DEAD, attempts=1, error="gone"), gone=True)
        await born(journal, told(4, A))
    dead = [line for line in lines if line["event"] == "delivery_dead"]
    assert [(line["task_id"][-1], line["error"], line["attempts"]) for line in dead] == [
        ("3", "outbox_full", 0),
        ("2", "timeout", 4),
        ("0", "gone", 1),
        ("1", "gone", 0),
        ("4", "gone", 0),
    ]
    assert dead[0]["delivery_id"] == full.id
    assert {line["host"] for line in dead} == {"a.example"}
    assert "secret" not in str(lines)


# -- gone --------------------------------------------------------------------------------------------------------------


async def test_a_url_with_410_gets_nothing_until_a_delivery_succeeds(journal: TaskJournal) -> None:
    first, second, other = await born(journal, told(1), told(2), told(3, "https://example.com/b"))
    dead = first.evolve(state=DeliveryState.DEAD, attempts=1, error="gone")
    assert await journal.outbox.failed(dead, gone=True) == [second.id]
    *_, third = await born(journal, told(4))
    assert [each.state.value for each in await all_of(journal)] == ["dead", "dead", "pending", "dead"]
    assert third.error == "gone"
    revived = await journal.outbox.redeliver(third.id)
    assert revived is not None
    assert (revived.state, revived.attempts, revived.error) == (DeliveryState.PENDING, 0, None)
    *_, fifth = await born(journal, told(5))
    assert fifth.error == "gone"  # a replay alone changes nothing
    assert await journal.outbox.redeliver(first.id) is not None
    await journal.outbox.failed(first.evolve(attempts=1, error="timeout"))
    *_, fifth = await born(journal, told(7))
    assert fifth.error == "gone"  # nor does one that fails
    await journal.outbox.delivered(revived.evolve(state=DeliveryState.DELIVERED))
    *_, sixth = await born(journal, told(6))
    assert sixth.state is DeliveryState.PENDING
    assert other.state is DeliveryState.PENDING


async def test_an_attempt_that_fails_late_does_not_bring_a_dead_delivery_back(journal: TaskJournal) -> None:
    first, second = await born(journal, told(1), told(2))
    await journal.outbox.failed(first.evolve(state=DeliveryState.DEAD), gone=True)
    await journal.outbox.failed(second.evolve(attempts=1, error="timeout"))
    assert [each.state.value for each in await all_of(journal)] == ["dead", "dead"]


# -- kept as long as the task ------------------------------------------------------------------------------------------


async def test_ended_deliveries_are_deleted_with_their_task_and_others_when_they_end(journal: TaskJournal) -> None:
    arrived, waiting, dying = await born(journal, told(1), told(2), told(3))
    await journal.outbox.delivered(arrived.evolve(state=DeliveryState.DELIVERED))
    assert len(await all_of(journal)) == 3
    await journal.delete([each.task_id for each in (arrived, waiting, dying)])
    assert [each.id for each in await all_of(journal)] == [waiting.id, dying.id]
    await journal.outbox.failed(waiting.evolve(attempts=1, error="timeout"))
    await journal.outbox.failed(dying.evolve(state=DeliveryState.DEAD))
    assert [each.id for each in await all_of(journal)] == [waiting.id]
    await journal.outbox.delivered(waiting.evolve(state=DeliveryState.DELIVERED))
    assert await all_of(journal) == []


async def test_deliveries_to_a_url_with_410_are_deleted_if_their_tasks_were(journal: TaskJournal) -> None:
    first, second = await born(journal, told(1), told(2))
    await journal.delete([second.task_id])
    await journal.outbox.failed(first.evolve(state=DeliveryState.DEAD), gone=True)
    assert [each.id for each in await all_of(journal)] == [first.id]


# -- a sender over it --------------------------------------------------------------------------------------------------


class Script:
    """A client that gives the answers of the test, and records its calls."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.posts: list[tuple[str, str]] = []

    def check(self, url: str) -> None:
        pass

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> Answer:
        self.posts.append((url, headers["webhook-id"]))
        return self.answers.pop(0) if self.answers else Answer(200)


class Sending:
    """A sender on a clock that the test sets."""

    def __init__(self, journal: TaskJournal, client: Script, chance: Callable[[], float] = lambda: 0.5) -> None:
        self.now = 1000.0
        self.sender = WebhookSender(
            journal.outbox, client, Signer([SecretStr(SECRET)]), DELAYS_S, lambda: self.now, chance
        )
        self.client = client

    async def __aenter__(self) -> "Sending":
        self._running = asyncio.create_task(self.sender.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    async def settled(self, journal: TaskJournal, attempts: int) -> Delivery:
        """The only delivery, after this many attempts were made and written."""
        while len(self.client.posts) < attempts:
            await asyncio.sleep(0)
        while True:
            (delivery,) = await all_of(journal)
            if delivery.state is not DeliveryState.PENDING or self.sender.next_attempt_at(delivery) is not None:
                # Read again: the attempt may have been written after the row was read.
                return (await all_of(journal))[0]

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.sender._wake.set()


async def test_a_failed_attempt_waits_for_its_time(journal: TaskJournal) -> None:
    client = Script(Answer(500), Answer(error="timeout"), Answer(503, retry_after="4000"), Answer(200))
    outcomes = list[tuple[str, int]]()
    journal.outbox.on_outcome = lambda outcome, number: outcomes.append((outcome, number))
    async with Sending(journal, client) as sending:
        await born(journal, told(1))
        for attempts, (wait_s, error) in enumerate([(5, "status 500"), (300, "timeout"), (4000, "status 503")], 1):
            delivery = await sending.settled(journal, attempts)
            assert (delivery.attempts, delivery.error) == (attempts, error)
            sending.pass_time(wait_s - 1)
            await journal.check()
            assert len(client.posts) == attempts
            sending.pass_time(1)
        assert (await sending.settled(journal, 4)).state is DeliveryState.DELIVERED
    assert len(set(client.posts)) == 1
    assert outcomes == [*[("retried", 1)] * 3, ("delivered", 1)]


async def test_after_a_restart_a_delivery_is_tried_soon_without_counting_an_attempt(journal: TaskJournal) -> None:
    async with Sending(journal, Script(Answer(500), Answer(500))) as sending:
        await born(journal, told(1))
        await sending.settled(journal, 1)
        sending.pass_time(5)
        assert (await sending.settled(journal, 2)).attempts == 2
    for _ in range(5):
        async with Sending(journal, Script(Answer(500)), lambda: 1.0) as sending:
            sending.pass_time(0)
            while sending.sender._turns.next_due() is None:
                await asyncio.sleep(0)
            sending.pass_time(1)
            assert (await sending.settled(journal, 1)).attempts == 2
    async with Sending(journal, Script(Answer(200)), lambda: 0.0) as sending:
        delivery = await sending.settled(journal, 1)
    assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERED, 3)


class Hosts(Script):
    """A client of hosts that never answer, hosts that refuse, and good ones."""

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> Answer:
        answer = await super().post(url, body, headers)
        if "//hangs" in url:
            await asyncio.Event().wait()
        return Answer(error="refused") if "//refuses" in url else answer

    async def until_posted(self, url: str) -> None:
        while url not in [posted for posted, _ in self.posts]:
            await asyncio.sleep(0)


GOOD = "https://good.example/"


async def test_a_host_with_a_full_share_does_not_keep_others_from_their_webhooks(
    journal: TaskJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MAX_PENDING", 20)
    await born(journal, *(told(number, "https://refuses.example/") for number in range(20)))
    async with Sending(journal, client := Hosts()):
        await born(journal, told(20, GOOD))
        await client.until_posted(GOOD)


async def test_hosts_that_hang_do_not_delay_others_until_their_timeouts(journal: TaskJournal) -> None:
    hanging = [told(number, f"https://hangs{number % 8}.example/") for number in range(24)]
    async with Sending(journal, client := Hosts()) as sending:
        await born(journal, *hanging)
        while len(client.posts) < 16:
            await asyncio.sleep(0)
        await born(journal, told(24, GOOD))
        sending.pass_time(sending.sender._turns.slow_s)
        await client.until_posted(GOOD)


async def test_a_host_that_refuses_is_asked_once_and_not_for_each_delivery(journal: TaskJournal) -> None:
    async with Sending(journal, client := Hosts()) as sending:
        await born(journal, *(told(number, "https://refuses.example/") for number in range(9)))
        while (await all_of(journal))[0].error != "refused":
            await asyncio.sleep(0)
        await born(journal, told(9, GOOD))
        await client.until_posted(GOOD)
        asked = len(client.posts) - 1
        assert asked <= 2
        sending.pass_time(sending.sender._turns.rest_s)
        while len(client.posts) - 1 == asked:
            await asyncio.sleep(0)


async def test_a_disk_that_refuses_the_result_repeats_the_attempt_and_the_sender_continues(
    journal: TaskJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise StorageFailed

    client = Script(Answer(200), Answer(200))
    async with Sending(journal, client) as sending:
        with monkeypatch.context() as patch:
            patch.setattr(journal.outbox, "delivered", refuse)
            await born(journal, told(1))
            assert (await sending.settled(journal, 1)).state is DeliveryState.PENDING
        sending.pass_time(10)
        assert (await sending.settled(journal, 2)).state is DeliveryState.DELIVERED
    assert len(set(client.posts)) == 1


async def test_a_redelivery_of_a_waiting_delivery_is_made_at_once(journal: TaskJournal) -> None:
    async with Sending(journal, Script(Answer(500), Answer(200))) as sending:
        (delivery,) = await born(journal, told(1))
        await sending.settled(journal, 1)
        await sending.sender.replay(delivery.id)
        delivery = await sending.settled(journal, 2)
        assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERED, 1)
        with pytest.raises(DeliveryNotFound):
            await sending.sender.replay("msg_unknown")


async def test_all_waiting_deliveries_are_read(journal: TaskJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (outbox_module, sender_module):
        monkeypatch.setattr(module, "CHUNK", 3)
    found = await born(journal, *(told(number, f"https://{number % 4}.example/") for number in range(10)))
    client = Script()
    async with Sending(journal, client, lambda: 0.0):
        while len(client.posts) < 10:
            await asyncio.sleep(0)
    assert {delivery_id for _, delivery_id in client.posts} == {each.id for each in found}
