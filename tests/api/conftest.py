"""The whole service in this process, with fake models, behind a real HTTP client."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from imagegen.app import app_of
from imagegen.core.errors import StorageFull
from imagegen.core.task import GenerationTask, InputPictures
from imagegen.storage.budgets import Reservation
from imagegen.storage.journal import Claim, Claimed, Retention, TaskJournal
from imagegen.testing.service import new_service


class Client(httpx.AsyncClient):
    """An httpx client with the calls that these tests use most."""

    app: FastAPI

    async def submit(self, prompt: str = "a picture", **fields: Any) -> str:
        """Submit a text2image task and return its id."""
        answer = await self.post("/text2image", json={"prompt": prompt, **fields})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    async def task(self, task_id: str) -> dict[str, Any]:
        answer = await self.get(f"/task/{task_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def until(self, task_id: str, *statuses: str) -> dict[str, Any]:
        """Poll until the task has one of the statuses (default: until it has ended)."""
        while True:
            task = await self.task(task_id)
            if task["status"] in (statuses or ("completed", "failed", "cancelled")):
                return task
            await asyncio.sleep(0.01)


class FullDisk(TaskJournal):
    """The journal of the service in `folder`, on a disk that is full for the methods that `full` names.

    `update` only refuses the ends of tasks.
    """

    def __init__(self, folder: Path, *full: str) -> None:
        super().__init__(folder / "data" / "imagegen.sqlite3")
        self.full: Collection[str] = full
        self.refused = 0

    def _refuse(self, method: str) -> None:
        if method in self.full:
            self.refused += 1
            raise StorageFull

    async def insert(
        self,
        task: GenerationTask,
        pictures: InputPictures,
        claim: Claim | None = None,
        wanted: Reservation | None = None,
    ) -> GenerationTask | Claimed:
        self._refuse("insert")
        return await super().insert(task, pictures, claim, wanted)

    async def update(self, *changed: GenerationTask) -> None:
        if any(task.status.finished for task in changed):
            self._refuse("update")
        await super().update(*changed)

    async def surplus(self, kept: Retention, without: Collection[str] = ()) -> list[GenerationTask]:
        self._refuse("surplus")
        return await super().surplus(kept, without)


#: start(settings..., models={...}) -> the service, running; `config` names a file of the test's own.
Start = Callable[..., AbstractAsyncContextManager[Client]]


@asynccontextmanager
async def running_in(
    folder: Path, models: dict[str, dict[str, Any]] | None = None, **settings: Any
) -> AsyncIterator[Client]:
    """A client of a service that runs in this process, with its files in `folder`."""
    app = app_of(new_service(folder, models, **settings))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with Client(transport=transport, base_url="http://127.0.0.1") as client:
            client.app = app
            yield client


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return partial(running_in, tmp_path)


@pytest.fixture
async def client(start: Start) -> AsyncIterator[Client]:
    async with start() as running:
        yield running
