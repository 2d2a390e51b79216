"""Budgets of keys: reserved with the task, settled with its end."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from imagegen.core.errors import FailureCode, LimitReached
from imagegen.core.keys import KeyLimits
from imagegen.core.task import Failure, GenerationTask, InputPictures, StoredImage, TaskStatus
from imagegen.storage.budgets import Reservation, Used
from imagegen.storage.journal import Claim, Claimed, TaskJournal
from tests.conftest import request_for
from tests.unit.conftest import task_of

EVENING = datetime(2026, 11, 28, 23, 0, tzinfo=UTC)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[TaskJournal]:
    journal = TaskJournal(tmp_path / "a.sqlite3")
    journal.budgets.now = lambda: EVENING
    yield journal
    await journal.close()


async def insert(
    journal: TaskJournal, number: int, limits: KeyLimits, *, pictures: int = 1, seconds: float = 0, **more: Any
) -> GenerationTask:
    task = task_of(number, owner="alice", request=request_for(batch_size=pictures))
    stored = await journal.insert(task, InputPictures(), more.get("claim"), Reservation(limits, seconds))
    assert isinstance(stored, GenerationTask)
    return stored


def ended(task: GenerationTask, status: TaskStatus = TaskStatus.COMPLETED, **changes: Any) -> GenerationTask:
    number = task.request.batch_size if status is TaskStatus.COMPLETED else 0
    images = tuple(StoredImage(path=f"d/{task.id}-{it}.png", width=8, height=6, seed=1) for it in range(number))
    return task.evolve(status=status, images=images, attempt=1, **changes)


#: Each budget is spent by ten of 200 tasks.
BUDGETS = {
    "queued": KeyLimits(queued=10),
    "images": KeyLimits(images_per_day=20),
    "device-seconds": KeyLimits(device_seconds_per_day=50),
}


@pytest.mark.parametrize("name", BUDGETS)
async def test_requests_that_arrive_together_spend_no_budget_twice(journal: TaskJournal, name: str) -> None:
    asked = (insert(journal, number, BUDGETS[name], pictures=2, seconds=5) for number in range(200))
    made = await asyncio.gather(*asked, return_exceptions=True)
    refused = [it for it in made if isinstance(it, LimitReached)]
    assert (len(refused), sum(isinstance(it, GenerationTask) for it in made)) == (190, 10)
    assert {it.limit.name for it in refused if it.limit} == {name}
    assert await journal.count() == 10
    again = (insert(journal, number, BUDGETS[name], pictures=2, seconds=5) for number in range(300, 500))
    made = await asyncio.gather(*again, return_exceptions=True)
    assert {type(it) for it in made} == {LimitReached}  # at a spent budget none passes
    assert await journal.count() == 10


async def test_a_refusal_says_what_is_left_and_until_when(journal: TaskJournal) -> None:
    limits = KeyLimits(images_per_day=5)
    await insert(journal, 1, limits, pictures=3)
    with pytest.raises(LimitReached) as refused:
        await insert(journal, 2, limits, pictures=3)
    left = refused.value.limit
    assert left is not None
    assert left == ("images", 5, 2, 86_400, 3600)
    assert refused.value.retry_after == 3600
    await insert(journal, 3, limits, pictures=2)


async def test_the_budget_of_the_next_day_is_a_new_one(journal: TaskJournal) -> None:
    limits = KeyLimits(images_per_day=1)
    first = await insert(journal, 1, limits)
    journal.budgets.now = lambda: EVENING + timedelta(hours=1)
    await insert(journal, 2, limits)
    await journal.update(ended(first, TaskStatus.CANCELLED))  # settles the day of its acceptance
    with pytest.raises(LimitReached):
        await insert(journal, 3, limits)


async def test_what_was_measured_takes_the_place_of_what_was_reserved(journal: TaskJournal) -> None:
    limits = KeyLimits(images_per_day=100, device_seconds_per_day=100)
    tasks = [await insert(journal, number, limits, pictures=2, seconds=10) for number in range(5)]
    assert await journal.budgets.used("alice") == Used(5, 10, 50)
    failure = Failure(code=FailureCode.GENERATION_FAILED, message="No.")
    await journal.update(
        ended(tasks[0], device_s=12.5),
        ended(tasks[1], TaskStatus.FAILED, device_s=1, failure=failure),
        ended(tasks[2], TaskStatus.CANCELLED),  # while it ran with others: nobody knows its seconds
        ended(tasks[3], TaskStatus.CANCELLED).evolve(attempt=0),  # while it waited
    )
    assert await journal.budgets.used("alice") == Used(1, 4, 12.5 + 1 + 10 + 0 + 10)
    await journal.update(ended(tasks[0], device_s=12.5))  # an end may be written twice
    assert await journal.budgets.used("alice") == Used(1, 4, 33.5)


async def test_unknown_seconds_pass_until_the_budget_is_spent(journal: TaskJournal) -> None:
    limits = KeyLimits(device_seconds_per_day=10)
    task = await insert(journal, 1, limits)
    await journal.update(ended(task, device_s=10))
    with pytest.raises(LimitReached):
        await insert(journal, 2, limits)


async def test_a_repeated_request_gets_its_task_at_a_spent_budget(journal: TaskJournal) -> None:
    limits, claim = KeyLimits(images_per_day=1), Claim("k", "d" * 64, "alice")
    task = await insert(journal, 1, limits, claim=claim)
    again = await journal.insert(task_of(2, owner="alice"), InputPictures(), claim, Reservation(limits))
    assert again == Claimed(task.id, claim.digest)


async def test_budgets_survive_a_restart(tmp_path: Path) -> None:
    limits, before = KeyLimits(images_per_day=2), TaskJournal(tmp_path / "b.sqlite3")
    before.budgets.now = lambda: EVENING
    task = await insert(before, 1, limits)
    await before.close()
    again = TaskJournal(tmp_path / "b.sqlite3")
    again.budgets.now = lambda: EVENING
    assert await again.budgets.used("alice") == Used(1, 1, 0)
    await again.update(ended(task, TaskStatus.CANCELLED))
    assert await again.budgets.used("alice") == Used(0, 0, 0)
    await again.close()


async def test_sums_of_old_days_are_deleted(journal: TaskJournal, tmp_path: Path) -> None:
    limits = KeyLimits(images_per_day=2)
    for number, days in enumerate((0, 1, 40)):
        journal.budgets.now = lambda days=days: EVENING + timedelta(days=days)  # type: ignore[misc]
        await insert(journal, number, limits)
    with sqlite3.connect(tmp_path / "a.sqlite3") as connection:
        assert connection.execute("SELECT count(*) FROM spent").fetchall() == [(1,)]
    connection.close()
