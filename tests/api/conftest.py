"""The whole service in this process, with fake models, behind a real HTTP client."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from imagegen.app import app_of
from imagegen.testing.service import new_service


class Client(httpx.AsyncClient):
    """httpx, and the words that these tests use all the time."""

    app: FastAPI

    async def submit(self, prompt: str = "a picture", **fields: Any) -> str:
        """Submit a text2image task; its id."""
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


#: start(settings..., models={...}) -> the service, running; `config` names a file of the test's own.
Start = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    @asynccontextmanager
    async def run(models: dict[str, dict[str, Any]] | None = None, **settings: Any) -> AsyncIterator[Client]:
        app = app_of(new_service(tmp_path, models, **settings))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with Client(transport=transport, base_url="http://127.0.0.1") as client:
                client.app = app
                yield client

    return run


@pytest.fixture
async def client(start: Start) -> AsyncIterator[Client]:
    async with start() as running:
        yield running
