"""A whole service in this process, with fake models or a scripted engine: for tests and for a Python prompt."""

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from imagegen.app import Service
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import load_catalog
from imagegen.core.owner import ANYONE
from imagegen.core.task import GenerationTask, TaskType
from imagegen.gpu.executor import GpuExecutor
from imagegen.settings import Settings
from imagegen.storage.journal import TaskJournal
from imagegen.tasks.admission import TaskDraft
from imagegen.testing import SPECS, WITH_FAKE
from imagegen.testing.config import fake_config

Models = Mapping[str, dict[str, Any]]


def new_service(
    folder: Path,
    models: Models | None = None,
    *,
    config: Path | None = None,
    catalog: Catalog | None = None,
    engine: GpuExecutor | None = None,
    journal: TaskJournal | None = None,
    **settings: Any,
) -> Service:
    """Make a service that does not run yet, with its data directory and its models.yaml in `folder`.

    `models`: the fake models by id, with their fields; else `config` names a models.yaml. `catalog`: the catalog in
    force at the start, if it is not the file's. `engine` replaces the GPU: a ScriptedEngine, or a GpuExecutor with
    another engine. `journal` replaces the one in the data directory. `settings`: fields of Settings; by default models
    run in a thread, on the CPU. Raises ConfigError and ValidationError.
    """
    if config is None:
        config = folder / "models.yaml"
        config.write_text(fake_config(**(models or {})))
    usual: dict[str, Any] = {"data_dir": folder / "data", "isolation": "thread", "device": "cpu", "drain_timeout_s": 5}
    known = Settings(config=config, **usual | settings)
    return Service(known, catalog or load_catalog(config, SPECS), WITH_FAKE, executor=engine, journal=journal)


@asynccontextmanager
async def make_service(
    models: Models | None = None,
    *,
    folder: Path | None = None,
    **more: Any,
) -> AsyncIterator[Service]:
    """Run a service until the context ends. Without a folder it uses a temporary one, which is removed at the end.

    `more`: the other arguments of `new_service`. `.services` holds its objects by name: `service`, `tasks`, `device`,
    `images`, `bus` and more.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="imagegen-")))
        made = new_service(folder, models, **more)
        async with made.lifecycle.run():
            yield made


async def draw(made: Service, prompt: str = "a picture", **fields: Any) -> GenerationTask:
    """Submit a text-to-image request with these fields (`TaskDraft`) and return its task when it has ended.

    Raises ImagegenError if the request is refused.
    """
    service = made.services.service
    draft = TaskDraft(type=TaskType.TEXT2IMAGE, prompt=prompt, **fields)
    accepted = await service.submit(ANYONE, draft)
    return await service.wait(ANYONE, accepted.task.id, math.inf)
