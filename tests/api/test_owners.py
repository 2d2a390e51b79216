"""ImageService: a task is visible to its owner, and to callers that may see all tasks."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from imagegen.core.errors import TaskNotFound
from imagegen.core.owner import ANYONE, Owner
from imagegen.core.task import TaskStatus, TaskType
from imagegen.service.image_service import ImageService
from imagegen.storage.journal import Claim, TaskFilter
from imagegen.tasks.admission import TaskDraft
from tests.api.conftest import Client, Start

ALICE, BOB = Owner(name="alice", sees_all=False), Owner(name="bob", sees_all=False)
DRAFT = TaskDraft(type=TaskType.TEXT2IMAGE, prompt="a picture")


@pytest.fixture
def service(client: Client) -> ImageService:
    service: ImageService = client.app.state.services.service
    return service


async def first_event(service: ImageService, who: Owner, task_id: str) -> object:
    return await anext(service.events(who, task_id))


Ask = Callable[[ImageService, Owner, str], Coroutine[Any, Any, object]]
ASKS: dict[str, Ask] = {
    "task": lambda service, who, task_id: service.task(who, task_id),
    "wait": lambda service, who, task_id: service.wait(who, task_id, 30),
    "events": first_event,
    "cancel": lambda service, who, task_id: service.cancel(who, task_id),
    "replay": lambda service, who, task_id: service.replay(who, task_id),
    "delete": lambda service, who, task_id: service.delete(who, task_id),
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
async def test_a_task_of_another_owner_does_not_exist(service: ImageService, ask: Ask) -> None:
    task = (await service.submit(ALICE, DRAFT)).task
    with pytest.raises(TaskNotFound):
        await ask(service, BOB, task.id)
    assert (await service.wait(ALICE, task.id, 30)).status is TaskStatus.COMPLETED
    assert (await service.task(ANYONE, task.id)).owner == "alice"


async def test_each_owner_lists_its_own_tasks(service: ImageService) -> None:
    tasks = [(await service.submit(who, DRAFT)).task.id for who in (ALICE, BOB, ALICE)]
    listed = {who.name: await service.tasks(who, TaskFilter(), 10) for who in (ALICE, BOB, ANYONE)}
    assert [task.id for task in listed["alice"].tasks] == [tasks[2], tasks[0]]
    assert [task.id for task in listed["bob"].tasks] == [tasks[1]]
    assert listed[""].filtered == 3


async def test_a_key_of_one_owner_is_no_key_of_another(service: ImageService) -> None:
    claim = Claim(key="k", digest="d" * 64)
    made = [await service.submit(who, DRAFT, claim) for who in (ALICE, BOB, ALICE)]
    assert [it.repeated for it in made] == [False, False, True]
    assert made[0].task.id == made[2].task.id != made[1].task.id


async def test_a_wait_ends_after_its_time_with_the_current_task(start: Start) -> None:
    async with start(models={"fake": {"step_seconds": 0.2}}) as client:
        service: ImageService = client.app.state.services.service
        task = (await service.submit(ALICE, DRAFT.evolve(steps=100))).task
        async with asyncio.timeout(10):
            assert not (await service.wait(ALICE, task.id, 0.01)).status.finished
        await service.cancel(ALICE, task.id)
        assert (await service.wait(ALICE, task.id, 30)).status is TaskStatus.CANCELLED
