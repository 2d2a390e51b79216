"""The composition root: builds the service's objects and connects them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware

import imagegen
from imagegen.api.callers import Retries
from imagegen.api.dependencies import Services
from imagegen.api.document import complete_document
from imagegen.api.forwarding import Forwarding
from imagegen.api.guard import ANSWERED_HEADERS, ASKED_HEADERS, Guard, host_name
from imagegen.api.head import HeadAsGet
from imagegen.api.mcp import McpEndpoint
from imagegen.api.measuring import HttpMetrics
from imagegen.api.native.models.entries import config_schemas
from imagegen.api.native.webhooks import WebhookPayloads, sent_webhooks
from imagegen.api.problems import TextAsProblem, install
from imagegen.api.request_ids import RequestIds
from imagegen.api.routers import include_routers, webhook_bodies
from imagegen.api.sse import Streams
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.file import ConfigFile
from imagegen.catalog.sources import Folders
from imagegen.catalog.versions import Versions
from imagegen.catalog.writer import CatalogWriter
from imagegen.core.events import EventBus
from imagegen.gpu.devices import see_only_card
from imagegen.gpu.engine import Engine, LocalEngine
from imagegen.gpu.executor import GpuExecutor
from imagegen.gpu.protocol import EngineOptions
from imagegen.gpu.worker_engine import WorkerEngine
from imagegen.hub.puller import ModelPuller
from imagegen.lifecycle import CatalogSwap, Lifecycle
from imagegen.loaders import PRODUCT
from imagegen.loaders.base import families_named, specs_of
from imagegen.loaders.nunchaku import precision_of
from imagegen.service.access import Access
from imagegen.service.image_service import ImageService
from imagegen.service.keys_file import read_keys
from imagegen.service.vitals import Vitals
from imagegen.settings import Settings
from imagegen.storage.images import ImageStore
from imagegen.storage.journal import TaskJournal
from imagegen.storage.outbox import Outbox
from imagegen.storage.room import Room
from imagegen.storage.s3 import S3
from imagegen.tasks.admission import Limits
from imagegen.tasks.checking import PictureChecks
from imagegen.tasks.device import Device
from imagegen.tasks.manager import TaskManager
from imagegen.telemetry.metrics import Metrics
from imagegen.telemetry.state import Gauges
from imagegen.telemetry.traces import Traces, end, http_options, new_provider
from imagegen.webhooks.client import GuardedClient, policy_of
from imagegen.webhooks.sender import WebhookSender
from imagegen.webhooks.signing import Signer

log = structlog.get_logger(__name__)


def make_engine(settings: Settings, families: str) -> Engine:
    """The engine of the settings. `families`: the table of model families, as `module:attribute`."""
    options = EngineOptions(
        device=settings.device,
        compiled_dir=str(settings.compiled_path),
        temporary_dir=str(settings.temporary_path),
        families=families,
    )
    if settings.isolation == "thread":
        return LocalEngine(options.evolve(device=see_only_card(settings.device)))
    return WorkerEngine(options, load_timeout_s=settings.load_timeout_s, step_timeout_s=settings.step_timeout_s)


def make_images(settings: Settings) -> ImageStore:
    """The store of pictures of the settings. Raises StoreMisconfigured."""
    bucket = S3(settings.store, settings.store_url_s) if settings.store else None
    return ImageStore(settings.images_path, bucket, patient=settings.store_down == "wait")


def limits_of(settings: Settings) -> Limits:
    """The limits of a task's fields, and of the queue."""
    return Limits(
        max_queue=settings.max_queue,
        max_batch_size=settings.max_batch_size,
        max_pixels=settings.max_pixels,
        max_pixel_steps=settings.max_pixel_steps,
    )


def make_sender(settings: Settings, outbox: Outbox, access: Access) -> WebhookSender:
    """The sender of webhooks, with the secrets and the networks of the settings."""
    return WebhookSender(
        outbox,
        GuardedClient(policy_of(settings), settings.webhook_timeout_s),
        Signer(settings.webhook_secrets) if settings.webhook_secrets else None,
        settings.webhook_delays_s,
        secret_of=access.webhook_secret,
    )


class Service:
    """Builds the objects of a service and connects them. `lifecycle` runs them."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        families: str = PRODUCT,
        *,
        executor: GpuExecutor | None = None,
        journal: TaskJournal | None = None,
    ) -> None:
        """`families`: the table of model families, as `module:attribute`. Raises what `families_named` raises.

        Tests pass an executor or a journal of their own.
        """
        table, bus = families_named(families), EventBus()
        folders = Folders(settings.models_path, settings.loras_path)
        executor = executor or GpuExecutor(lambda: make_engine(settings, families))
        device = Device(executor, catalog, bus, folders, table)
        models = device.models
        journal, images = journal or TaskJournal(settings.journal_path), make_images(settings)
        puller = ModelPuller(
            lambda: models.catalog,
            settings.models_path,
            bus,
            precision=lambda: precision_of(models.memory.capability),
        )
        room = Room((settings.data_dir, settings.images_path), settings.min_free_mb * 2**20)
        tasks = TaskManager(
            device,
            journal,
            images,
            bus,
            limits_of(settings),
            puller=puller,
            cancel_grace_s=settings.cancel_grace_s,
            room=room,
            log_prompts=settings.log_prompts,
        )
        access = Access(journal.keys, read_keys(settings.keys_file) if settings.keys_file else (), journal.budgets)
        journal.outbox.render = webhook_bodies(WebhookPayloads(settings, models, tasks))
        webhooks = make_sender(settings, journal.outbox, access)
        versions, swap = Versions.of(settings.config, settings.data_dir), CatalogSwap(device, tasks, puller)
        config = CatalogWriter(ConfigFile(settings.config), versions, specs_of(table), catalog, swap, bus)
        metrics = Metrics(device, tasks.records.live)
        metrics.attach(bus, journal)
        self.lifecycle = Lifecycle(settings, device, tasks, journal, images, bus, puller, webhooks, config, access)
        self.services = Services(
            settings,
            ImageService(tasks, bus),
            tasks,
            device,
            puller,
            images,
            bus,
            config,
            webhooks,
            PictureChecks(),
            access,
            journal.keys,
            room,
            metrics,
            Gauges(device, tasks, images, webhooks, config, room, bus),
            Vitals(room.free, lambda: executor.pid),
        )


def create_app(settings: Settings, catalog: Catalog, families: str = PRODUCT) -> FastAPI:
    """The ASGI application. `families`: the table of model families, as `module:attribute`."""
    return app_of(Service(settings, catalog, families))


def app_of(service: Service) -> FastAPI:
    """The ASGI application of a service. Its lifespan runs the service, and `app.state.lifecycle` drains it."""
    settings = service.services.settings
    if (traces := new_provider()) is not None:
        Traces(traces, service.services.tasks.records.live).attach(service.services.bus)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        it = service.services
        async with aclosing(it.checks), aclosing(it.vitals), aclosing(app.state.mcp), service.lifecycle.run():
            yield
        if traces is not None:
            await asyncio.to_thread(end, traces)

    app = FastAPIOffline(
        title="imagegen",
        summary="Self-hosted image generation: many models, one GPU, no lost task.",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        version=imagegen.__version__,
        lifespan=lifespan,
        license_info={"name": "MIT", "identifier": "MIT"},
        servers=[{"url": settings.public_url or settings.prefix or "/"}],
        root_path_in_servers=not settings.public_url,
        webhooks=sent_webhooks(),
        separate_input_output_schemas=False,
        telemetry=http_options(traces),
    )
    app.state.lifecycle = service.lifecycle
    app.state.services = service.services
    app.state.retries = Retries(service.services.service)
    app.state.mcp = McpEndpoint(service.services)
    app.state.streams = Streams(settings.max_event_streams, settings.max_event_streams_per_caller)
    install(app)
    complete_document(app, partial(config_schemas, service.services.writer.families))
    include_routers(app, settings.max_upload_bytes)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    public_host = {host_name(urlsplit(settings.public_url).netloc)} - {""}
    allowed_hosts = settings.allowed_hosts | public_host
    app.add_middleware(Guard, host=settings.host, allowed_hosts=allowed_hosts, origins=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(settings.cors_origins),
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=ASKED_HEADERS,
            expose_headers=ANSWERED_HEADERS,
            max_age=600,
        )
    app.add_middleware(TextAsProblem)
    app.add_middleware(RequestIds)
    app.add_middleware(HttpMetrics, metrics=service.services.metrics)
    app.add_middleware(Forwarding, proxies=settings.trusted_proxies, prefix=settings.prefix)
    return app


_DESCRIPTION = """
`POST /text2image` answers `202` once the task is on disk. Follow it at `links.events` (server-sent events) or poll
`links.self`; fetch the pictures from `images[].url`. The same seed gives the same pixels.

Errors are RFC 9457 problem details with a stable `code`.

The Images API of OpenAI is below `/v1`, and not in this document: its clients bring OpenAI's own.
"""

#: The nouns of docs/glossary.md that routes belong to, in the order of the reference.
_TAGS = [
    {"name": "tasks", "description": "A task is one accepted request, from its acceptance to its end."},
    {"name": "images", "description": "An image is the file of a picture."},
    {"name": "models", "description": "A model is an entry of models.yaml and its weights."},
    {"name": "configuration", "description": "The entries of models.yaml, the global settings, and their versions."},
    {"name": "keys", "description": "A key is what a caller of a protected service sends; tasks belong to its name."},
    {"name": "webhooks", "description": "A webhook reports an event of a task; a delivery is one on its way."},
    {"name": "service", "description": "Probes, health, and the events of all tasks and models."},
]
