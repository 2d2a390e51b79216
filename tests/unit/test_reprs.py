"""The owners of the service show their state in a debugger, a traceback and a log."""

from collections.abc import Callable
from pathlib import Path

import pytest

from imagegen.app import Service
from imagegen.catalog.loading import load_catalog
from imagegen.gpu.executor import GpuExecutor
from imagegen.gpu.protocol import EngineOptions
from imagegen.gpu.worker_engine import WorkerEngine
from imagegen.settings import Settings
from imagegen.tasks.queue import ControlTicket, TaskQueue
from imagegen.tasks.scheduling import Costs, Current, Fairness
from imagegen.tasks.tickets import TaskTicket
from imagegen.testing import SPECS, WITH_FAKE
from tests.conftest import fake_config


async def nothing() -> None:
    pass


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """The parts of a service before it runs."""
    config = tmp_path / "models.yaml"
    config.write_text(fake_config(a={}, b={}))
    settings = Settings(config=config, data_dir=tmp_path / "data", isolation="process", device="cpu")
    return Service(settings, load_catalog(config, SPECS), WITH_FAKE)


class NothingMeasured:
    def current(self) -> Current:
        return Current(None)

    def costs(self) -> Costs:
        return Costs()

    def fairness(self) -> Fairness:
        return Fairness()


def queue() -> TaskQueue:
    queue = TaskQueue(NothingMeasured(), lambda: 0)
    queue.put_nowait(ControlTicket(1, nothing))
    for number in range(2):
        queue.put_nowait(TaskTicket(0, number, str(number), "a", since=0))
    queue.held = True
    return queue


OWNERS: list[tuple[Callable[[Service], object], str]] = [
    (lambda service: service.services.tasks, "<TaskManager [OPEN, Waiting: 0, Live: 0, None]>"),
    (lambda service: service.services.tasks._runner, "<Runner [OPEN, None]>"),
    (lambda service: queue(), "<TaskQueue [HELD, Waiting: 2, Control: 1]>"),
    (lambda service: service.services.models, "<DynamicModelManager [Models: 2, Resident: None, Warm: None]>"),
    (lambda service: service.services.models.facts, "<Facts [Models: 0, Crowds: 0]>"),
    (
        lambda service: GpuExecutor(lambda: WorkerEngine(EngineOptions())),
        "<GpuExecutor [IDLE, Calls: 0, Engine: WorkerEngine]>",
    ),
    (lambda service: WorkerEngine(EngineOptions()), "<WorkerEngine [NO WORKER, Lingering: 0]>"),
    (lambda service: service.services.puller, "<ModelPuller [OPEN, Pulling: None, Waiting: 0, Known: 0]>"),
    (lambda service: service.services.webhooks, "<WebhookSender [OFF, Pending: 0]>"),
    (lambda service: service.services.writer, "<CatalogWriter [OK, File: models.yaml, ETag: None, Swaps: 0]>"),
    (lambda service: service.services.bus, "<EventBus [OPEN, Subscribers: 0, Tasks: 0, Last ID: {last_id}]>"),
]


@pytest.mark.parametrize(("owner", "expected"), OWNERS, ids=[expected.split()[0][1:] for _, expected in OWNERS])
async def test_an_owner_shows_its_state(service: Service, owner: Callable[[Service], object], expected: str) -> None:
    assert repr(owner(service)) == expected.format(last_id=service.services.bus.last_id)
