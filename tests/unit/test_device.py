"""Two devices in one process share no model, no queue and no measured time."""

import asyncio
from pathlib import Path

from imagegen.catalog.sources import Folders
from imagegen.core.events import EventBus
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.executor import GpuExecutor
from imagegen.storage.images import ImageStore
from imagegen.storage.journal import TaskJournal
from imagegen.tasks.admission import Limits
from imagegen.tasks.device import Device
from imagegen.tasks.manager import TaskManager
from imagegen.testing import FAMILIES
from tests.conftest import CPU, fake_catalog
from tests.unit.test_task_manager import draft

LIMITS = Limits(max_queue=10, max_batch_size=4, max_pixels=1024 * 1024)


def device(root: Path, bus: EventBus) -> Device:
    executor = GpuExecutor(lambda: LocalEngine(CPU))
    return Device(executor, fake_catalog(a={}, b={}), bus, Folders(root, root), FAMILIES)


async def test_two_devices_hold_models_of_their_own_and_run_at_the_same_time(tmp_path: Path) -> None:
    bus = EventBus(first_id=1)
    devices = [device(tmp_path, bus) for _ in range(2)]
    managers, journals = [], []
    for number, it in enumerate(devices):
        journal = TaskJournal(tmp_path / f"{number}.sqlite3")
        await journal.unfinished()  # alembic migrates one database at a time
        journals.append(journal)
        managers.append(TaskManager(it, journal, ImageStore(tmp_path / f"images-{number}"), bus, LIMITS))
    async with asyncio.TaskGroup() as running:
        for manager in managers:
            running.create_task(manager.run())
        ids = [(await manager.submit(draft(model))).id for manager, model in zip(managers, "ab", strict=True)]
        for task_id in ids:
            with bus.subscribe(task_id) as events:
                async for published in events:
                    if published.event.final:
                        break
            assert published.event.name == "completed"
        for manager in managers:
            manager.begin_drain()
    assert [[resident.model for resident in it.models.residents] for it in devices] == [["a"], ["b"]]
    assert [set(it.measurements.costs().work_s) for it in devices] == [{"a"}, {"b"}]
    for it, journal in zip(devices, journals, strict=True):
        await it.executor.close(1)
        await journal.close()
