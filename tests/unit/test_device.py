"""Two devices in one process share no model, no queue and no measured time."""

import asyncio
from pathlib import Path

from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.executor import GpuExecutor
from imagegen.tasks.admission import Limits
from imagegen.testing.managers import Managers
from tests.conftest import CPU, fake_catalog
from tests.unit.test_task_manager import draft

LIMITS = Limits(max_queue=10, max_batch_size=4, max_pixels=1024 * 1024)


async def test_two_devices_hold_models_of_their_own_and_run_at_the_same_time(tmp_path: Path) -> None:
    both = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        both.append(Managers(folder, GpuExecutor(lambda: LocalEngine(CPU)), fake_catalog(a={}, b={}), limits=LIMITS))
        await both[-1].journal.unfinished()  # alembic migrates one database at a time
    async with asyncio.TaskGroup() as running:
        for it in both:
            running.create_task(it.tasks.run())
        tasks = [await it.tasks.submit(draft(model)) for it, model in zip(both, "ab", strict=True)]
        for it, task in zip(both, tasks, strict=True):
            with it.bus.subscribe(task.id) as events:
                async for published in events:
                    if published.event.final:
                        break
            assert published.event.name == "completed"
        for it in both:
            it.tasks.begin_drain()
    assert [[resident.model for resident in it.models.residents] for it in both] == [["a"], ["b"]]
    assert [set(it.device.measurements.costs().work_s) for it in both] == [{"a"}, {"b"}]
    for it in both:
        await it.close()
