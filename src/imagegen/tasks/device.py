"""Device: one GPU, and the objects that exist once for each GPU."""

import time
from collections.abc import Callable, Mapping

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.sources import Folders
from imagegen.core.events import EventBus
from imagegen.gpu.executor import GpuExecutor
from imagegen.loaders.base import Family
from imagegen.models.manager import DynamicModelManager
from imagegen.tasks.call import Call
from imagegen.tasks.measurements import Measurements
from imagegen.tasks.queue import TaskQueue


class Device:
    """One GPU: its thread with the worker, its models, its queue, its measured times, its running call.

    Two devices share only the bus. Runner is the only writer of `call`.
    """

    def __init__(
        self,
        executor: GpuExecutor,
        catalog: Catalog,
        bus: EventBus,
        folders: Folders,
        families: Mapping[str, Family],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.executor = executor
        self.models = DynamicModelManager(catalog, executor, bus, folders, families, clock)
        self.measurements = Measurements(self.models)
        self.queue = TaskQueue(self.measurements, clock)
        self.clock = clock
        #: The running call; None: no call runs.
        self.call: Call | None = None

    def __repr__(self) -> str:
        return f"<Device [{self.call!r}, {self.queue!r}, {self.models!r}]>"
