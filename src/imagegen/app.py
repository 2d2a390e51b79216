"""The composition root: the only file that builds the service's objects and decides in which order they end."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

import imagegen
from imagegen import logs
from imagegen.api import bundle, config, events, generation, images, models, system, tasks, webhooks
from imagegen.api.dependencies import Services
from imagegen.api.guard import Guard
from imagegen.api.problems import TextAsProblem, install
from imagegen.api.views import task_view, webhook_payload
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.difference import Difference
from imagegen.catalog.file import ConfigFile, etag_of
from imagegen.catalog.sources import Folders
from imagegen.catalog.versions import Versions
from imagegen.catalog.writer import CatalogWriter
from imagegen.core.errors import Draining, ImagegenError
from imagegen.core.events import EventBus
from imagegen.core.receipt import receipt_of
from imagegen.core.task import GenerationTask
from imagegen.core.webhooks import WebhookEvent
from imagegen.gpu.devices import see_only_card
from imagegen.gpu.engine import Engine, LocalEngine
from imagegen.gpu.executor import GpuExecutor
from imagegen.gpu.protocol import EngineOptions
from imagegen.gpu.worker_engine import WorkerEngine
from imagegen.hub.puller import ModelPuller
from imagegen.loaders import SPECS
from imagegen.models.manager import DynamicModelManager
from imagegen.service.image_service import ImageService
from imagegen.settings import Settings
from imagegen.storage.images import ImageStore
from imagegen.storage.s3 import S3
from imagegen.storage.tasks import Retention, TaskJournal
from imagegen.tasks.admission import Limits
from imagegen.tasks.manager import TaskManager
from imagegen.webhooks.client import GuardedClient, policy_of
from imagegen.webhooks.sender import WebhookSender
from imagegen.webhooks.signing import Signer

log = structlog.get_logger(__name__)

#: Seconds that a running task gets to stop between two steps before its worker is killed.
STOP_GRACE_S = 3

#: Seconds by which the end of a task that has missed its deadline may be late.
DEADLINES_EVERY_S = 1

Chore = Callable[[], Coroutine[Any, Any, object]]


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings ask for."""
    options = EngineOptions(device=settings.device, compiled_dir=str(settings.compiled_path))
    if settings.isolation == "thread":
        return LocalEngine(options.evolve(device=see_only_card(settings.device)))
    return WorkerEngine(options, load_timeout_s=settings.load_timeout_s, step_timeout_s=settings.step_timeout_s)


def make_images(settings: Settings) -> ImageStore:
    """Where the settings want pictures kept. Raises StoreMisconfigured."""
    bucket = S3(settings.store, settings.store_url_s) if settings.store else None
    return ImageStore(settings.images_path, bucket, patient=settings.store_down == "wait")


class Service:
    """The running parts, from start to end."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        # Microseconds of the wall clock: above every id of an earlier run, below what JSON numbers hold.
        self._bus = EventBus(first_id=time.time_ns() // 1000)
        self._executor = GpuExecutor(lambda: make_engine(settings))
        self._journal = TaskJournal(settings.journal_path, render=self._payload)
        self._images = make_images(settings)
        folders = Folders(settings.models_path, settings.loras_path)
        self._models = DynamicModelManager(catalog, self._executor, self._bus, folders)
        limits = Limits(
            max_queue=settings.max_queue,
            max_batch_size=settings.max_batch_size,
            max_pixels=settings.max_pixels,
        )
        self._puller = ModelPuller(lambda: self._models.catalog, settings.models_path, self._bus)
        self._tasks = TaskManager(
            self._models,
            self._journal,
            self._images,
            self._bus,
            limits,
            puller=self._puller,
            cancel_grace_s=settings.cancel_grace_s,
        )
        self._webhooks = WebhookSender(
            self._journal.outbox,
            GuardedClient(policy_of(settings), settings.webhook_timeout_s),
            Signer(settings.webhook_secrets) if settings.webhook_secrets else None,
            settings.webhook_delays_s,
        )
        versions = Versions(settings.data_dir / "config" / etag_of(str(settings.config.absolute())))
        self._config = CatalogWriter(ConfigFile(settings.config), versions, SPECS, catalog, self._swap, self._bus)
        self._running: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._in_a_hurry = asyncio.Event()
        #: Catalogs that wait for the running task.
        self._swaps = 0

    @property
    def services(self) -> Services:
        return Services(
            self._settings,
            ImageService(self._tasks, self._bus),
            self._tasks,
            self._models,
            self._puller,
            self._images,
            self._bus,
            self._config,
            self._webhooks,
        )

    @property
    def crashed(self) -> bool:
        """Whether the part that runs tasks has ended by an error. The process must then end: it would only lie."""
        running = self._running
        return running is not None and running.done() and not running.cancelled() and running.exception() is not None

    @property
    def ended(self) -> bool:
        """Whether nothing runs any more and nothing will: the drain is over, or the service crashed."""
        return self._running is not None and self._running.done()

    def begin_drain(self) -> None:
        """Refuse new tasks and end all event streams; the running task goes on, and so do reads."""
        if self._running is not None and self._leaving is None:
            self._tasks.begin_drain()
            self._puller.begin_drain()
            self._bus.close()
            self._leaving = asyncio.create_task(self._drain(self._running), name="drain")

    def hurry(self) -> None:
        """Do not wait for the running task: it goes back to the queue."""
        self._in_a_hurry.set()

    def reload(self) -> None:
        """Look at models.yaml again: somebody sent SIGHUP."""
        self._config.ask_reload("signal")

    def _payload(self, task: GenerationTask, event: WebhookEvent, at: datetime) -> str:
        """The body of a webhook: the task as GET /task/{id} shows it."""
        kept_days = self._models.catalog.settings.over(self._settings).retention_days
        outlook, download = self._tasks.outlook(task), self._tasks.download(task.id)
        view = task_view(task, outlook, download, kept_days, receipt_of(task))
        return webhook_payload(event, at, view)

    async def _swap(self, catalog: Catalog) -> Difference:
        """Put a catalog in force: at once, or while no task runs if a model may have to leave memory. Raises Draining.

        No catalog overtakes one that waits for the running task.
        """
        if not self._swaps and (change := self._models.apply_at_once(catalog)) is not None:
            self._follow(change, catalog)
            return change
        self._swaps += 1
        try:
            return await self._tasks.between_tasks(lambda: self._apply(catalog))
        finally:
            self._swaps -= 1

    async def _apply(self, catalog: Catalog) -> Difference:
        change = await self._models.apply(catalog)
        self._follow(change, catalog)
        await self._tasks.fail_removed()
        return change

    def _follow(self, change: Difference, catalog: Catalog) -> None:
        for model in change.removed:
            self._puller.removed(model)
        if "log_level" in change.settings:
            logs.configure(catalog.settings.log_level)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve from here to the end of the context, then drain."""
        async with AsyncExitStack() as stack:
            self._images.sweep()
            stack.callback(self._images.close)
            stack.push_async_callback(self._journal.close)
            stack.push_async_callback(self._executor.close, 2 * STOP_GRACE_S)
            sending = asyncio.create_task(self._webhooks.run(), name="webhooks")
            sending.add_done_callback(_log_crash)
            stack.push_async_callback(_cancel, sending)
            pulling = asyncio.create_task(self._puller.run(), name="pulls")
            pulling.add_done_callback(_log_crash)
            stack.push_async_callback(_cancel, pulling)
            self._running = asyncio.create_task(self._tasks.run(), name="tasks")
            self._running.add_done_callback(_log_crash)
            stack.push_async_callback(self._leave)
            await self._config.begin()
            following = asyncio.create_task(self._config.run(), name="config file")
            following.add_done_callback(_log_crash)
            stack.push_async_callback(_cancel, following)
            stack.callback(self._config.close)
            for chore, every_s in self._chores():
                housekeeping = asyncio.create_task(_again_and_again(chore, every_s), name=chore.__name__)
                stack.push_async_callback(_cancel, housekeeping)
            yield

    def _chores(self) -> list[tuple[Chore, float]]:
        """What is to be done now and then, and every how many seconds."""
        every_s = self._settings.housekeeping_s
        usual: list[Chore] = [self._evict_idle, self._expire, self._tasks.records.write_ends, self._images.check]
        return [*((chore, every_s) for chore in usual), (self._tasks.fail_late, min(every_s, DEADLINES_EVERY_S))]

    async def _evict_idle(self) -> None:
        """Only asks: what is resident changes between two tasks."""
        await self._tasks.between_tasks(lambda: self._models.evict_idle(self._tasks.wanted))

    async def _expire(self) -> None:
        settings = self._models.catalog.settings.over(self._settings)
        kept = Retention(
            age_s=settings.retention_days * 86_400,
            tasks=settings.retention_tasks,
            size=int(settings.retention_gb * 2**30),
        )
        if any(kept):
            await self._tasks.records.expire(kept)

    async def _leave(self) -> None:
        self.begin_drain()
        assert self._leaving is not None
        await self._leaving
        with suppress(ImagegenError):  # what the disk still refuses runs once more after the next start
            await self._tasks.records.write_ends()

    async def _drain(self, running: asyncio.Task[None]) -> None:
        """The running task finishes in time, or goes back to the queue; at the worst its worker is killed."""
        hurried = asyncio.create_task(self._in_a_hurry.wait())
        await asyncio.wait(
            [running, hurried], timeout=self._settings.drain_timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        hurried.cancel()
        for harder in (self._tasks.hurry, self._executor.abort):
            if running.done():
                return
            harder()
            await asyncio.wait([running], timeout=STOP_GRACE_S)
        await _cancel(running)


async def _again_and_again(chore: Chore, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            await chore()
        except Draining:
            return
        except ImagegenError as error:  # a full disk, say: the next time may go better
            log.warning("housekeeping_failed", chore=chore.__name__, code=error.code)


def _log_crash(running: asyncio.Task[None]) -> None:
    if not running.cancelled() and (error := running.exception()) is not None:
        log.critical("service_crashed", reason=repr(error), exc_info=error)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def create_app(settings: Settings, catalog: Catalog) -> FastAPI:
    """The ASGI application. Nothing runs before its lifespan begins; `app.state.service` is the Service."""
    service = Service(settings, catalog)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.run():
            yield

    app = FastAPIOffline(
        title="imagegen",
        summary="Self-hosted image generation: many models, one GPU, no lost task.",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        version=imagegen.__version__,
        lifespan=lifespan,
        license_info={"name": "MIT", "identifier": "MIT"},
        separate_input_output_schemas=False,
    )
    app.state.service = service
    app.state.services = service.services
    app.include_router(generation.upload_router, max_body_size=settings.max_upload_bytes)
    for room in (generation, tasks, bundle, images, models, config, webhooks, events, system):
        app.include_router(room.router)
    install(app)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(Guard, host=settings.host, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(TextAsProblem)
    return app


_DESCRIPTION = """
`POST /text2image` answers `202` once the task is on disk. Follow it at `links.events` (server-sent events) or poll
`links.self`; fetch the pictures from `images[].url`. The same seed gives the same pixels.

Errors are RFC 9457 problem details with a stable `code`.
"""

#: The nouns of docs/glossary.md that routes belong to, in the order of the reference.
_TAGS = [
    {"name": "tasks", "description": "A task is one accepted request, from its acceptance to its end."},
    {"name": "images", "description": "An image is the file of a picture."},
    {"name": "models", "description": "A model is an entry of models.yaml and its weights."},
    {"name": "configuration", "description": "The entries of models.yaml, the global settings, and their versions."},
    {"name": "webhooks", "description": "A webhook reports an event of a task; a delivery is one on its way."},
    {"name": "service", "description": "Probes, health, and the events of all tasks and models."},
]
