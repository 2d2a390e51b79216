"""Shared by the unit tests: reproducible hypothesis runs, and small records."""

from datetime import UTC, datetime
from typing import Any

from hypothesis import settings

from imagegen.core.task import GenerationTask, InputPictures, Pixels, StoredImage, TaskType
from imagegen.storage.images import ImageStore
from imagegen.storage.journal import TaskJournal
from imagegen.storage.png import encode_png
from tests.conftest import request_for

# The gate must not be a game of chance: the same examples each time. `--hypothesis-profile=default` explores.
settings.register_profile("gate", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("gate")

MORNING = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


def task_of(number: int, **changes: Any) -> GenerationTask:
    """A task that waits."""
    fields = {"type": TaskType.TEXT2IMAGE, "model": "fake", "request": request_for(), "created_at": MORNING} | changes
    return GenerationTask(id=task_id(number), **fields)


async def insert_one(
    journal: TaskJournal, task: GenerationTask, pictures: InputPictures | None = None
) -> GenerationTask:
    """Insert a task without a claim."""
    inserted = await journal.insert(task, pictures or InputPictures())
    assert isinstance(inserted, GenerationTask)
    return inserted


def task_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def grey(seed: int = 7, *, width: int = 8, height: int = 6) -> Pixels:
    """A picture of one colour."""
    return Pixels(width=width, height=height, seed=seed, rgb=bytes([128]) * (width * height * 3))


async def save(store: ImageStore, task: str, pictures: list[Pixels]) -> tuple[StoredImage, ...]:
    """Store pictures as PNG."""
    return await store.save(task, pictures, "png", lambda it: encode_png(it.rgb, it.width, it.height))
