"""Eight tasks of the embedded model share one call, through the whole service."""

import asyncio
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagegen.builtin import default_config
from imagegen.core.task import TaskType
from imagegen.tasks.batching import likeness
from tests.api.conftest import Client, Start
from tests.conftest import request_for

PROMPTS = ("a red circle", "a green star on a table", "two cats", "a blue square", "a boat", "the sea", "a tree", "x")


async def submit(client: Client) -> list[str]:
    """Submit them so that all wait before the first one is taken."""
    gate = asyncio.Event()
    holding = asyncio.create_task(client.app.state.services.tasks.between_tasks(gate.wait))
    asked = (client.submit(prompt, seed=seed, width=64, height=64, steps=4) for seed, prompt in enumerate(PROMPTS))
    ids = list(await asyncio.gather(*asked))
    gate.set()
    await holding
    return ids


async def pictures(client: Client, ids: Sequence[str]) -> list[Any]:
    tasks = [await client.until(task_id) for task_id in ids]
    assert [task["status"] for task in tasks] == ["completed"] * len(ids)
    assert [task["images"][0]["seed"] for task in tasks] == list(range(len(ids)))
    files = [(await client.get(task["images"][0]["url"])).content for task in tasks]
    return [np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in files]


async def calls(client: Client, ids: Sequence[str]) -> list[int]:
    tasks = [await client.app.state.services.tasks.records.get(task_id) for task_id in ids]
    return [task.provenance.call_pictures for task in tasks]


async def test_eight_tasks_in_one_call_get_the_pictures_that_they_get_one_by_one(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(default_config().read_text())
    async with start(config=config) as client:
        alone = await pictures(client, first := await submit(client))
        assert await calls(client, first) == [1] * 8
        device, models = client.app.state.services.device, client.app.state.services.models
        loaded_at = models.current.loaded_at
        assert (await client.patch("/models/tiny", json={"max_batch": 8})).status_code == 200
        alike = likeness(TaskType.TEXT2IMAGE, request_for(), 0)
        assert alike is not None
        for number in (2, 4, 8):  # as if that had been fast
            device.measurements.payoffs.learn("tiny", alike.kind, number, 1e-6 / number)
        together = await pictures(client, second := await submit(client))
        assert await calls(client, second) == [8] * 8
        assert max(abs(one - other).max() for one, other in zip(alone, together, strict=True)) <= 1
        # How a model is run is no reason to load it again.
        assert models.current.loaded_at == loaded_at
