"""A TaskManager with everything that it needs, and nothing above it: no settings, no HTTP, no housekeeping."""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.sources import Folders
from imagegen.core.events import EventBus
from imagegen.gpu.executor import GpuExecutor
from imagegen.hub.process import Fetcher, fetch_in_process
from imagegen.hub.puller import ModelPuller
from imagegen.loaders.base import Family
from imagegen.storage.images import FileStore, ImageStore
from imagegen.storage.journal import TaskJournal
from imagegen.tasks.admission import Limits
from imagegen.tasks.device import Device
from imagegen.tasks.manager import TaskManager
from imagegen.testing import FAMILIES


class Managers:
    """The managers, one device, a journal and a folder of images, connected as in `imagegen.app`.

    Nothing runs until `tasks.run()` does. A test advances the clock, scripts the executor, and reads the journal and
    the events.
    """

    def __init__(
        self,
        root: Path,
        executor: GpuExecutor,
        catalog: Catalog,
        *,
        limits: Limits,
        families: Mapping[str, Family] = FAMILIES,
        journal: TaskJournal | None = None,
        bucket: FileStore | None = None,
        fetch: Fetcher = fetch_in_process,
        clock: Callable[[], float] = time.monotonic,
        cancel_grace_s: float = 3600,
    ) -> None:
        """`root`: the folder of journal, images and weights. `fetch` downloads weights.

        `cancel_grace_s`: seconds until a cancelled call is stopped by force.
        """
        self.bus = EventBus(first_id=1)
        self.executor = executor
        self.journal = journal or TaskJournal(root / "tasks.sqlite3")
        self.images = ImageStore(root / "images", bucket)
        self.device = Device(executor, catalog, self.bus, Folders(root, root), families, clock)
        self.models = self.device.models
        self.puller = ModelPuller(lambda: self.models.catalog, root, self.bus, fetch)
        self.tasks = TaskManager(
            self.device,
            self.journal,
            self.images,
            self.bus,
            limits,
            puller=self.puller,
            cancel_grace_s=cancel_grace_s,
        )

    async def close(self, *running: "asyncio.Task[None]") -> None:
        """Stop these tasks as kill -9 would, and close the journal, the images and the executor."""
        for it in running:
            it.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.executor.close(1)
        await self.journal.close()
        self.images.close()
