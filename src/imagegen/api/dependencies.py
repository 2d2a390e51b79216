"""The dependencies of routes: the service's objects, by type."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Request

from imagegen.catalog.writer import CatalogWriter
from imagegen.core.events import EventBus
from imagegen.core.owner import Owner
from imagegen.hub.puller import ModelPuller
from imagegen.models.manager import DynamicModelManager
from imagegen.service.access import Access
from imagegen.service.image_service import ImageService
from imagegen.service.vitals import Vitals
from imagegen.settings import Settings
from imagegen.storage.images import ImageStore
from imagegen.storage.keys import KeyStore
from imagegen.storage.room import Room
from imagegen.tasks.checking import PictureChecks
from imagegen.tasks.device import Device
from imagegen.tasks.manager import TaskManager
from imagegen.telemetry.metrics import Metrics
from imagegen.telemetry.state import Gauges
from imagegen.webhooks.sender import WebhookSender


@dataclass(frozen=True)
class Services:
    """The objects that routes use. app.py builds them."""

    settings: Settings
    service: ImageService
    tasks: TaskManager
    device: Device
    puller: ModelPuller
    images: ImageStore
    bus: EventBus
    writer: CatalogWriter
    webhooks: WebhookSender
    checks: PictureChecks
    access: Access
    keys: KeyStore
    room: Room
    metrics: Metrics
    gauges: Gauges
    vitals: Vitals

    @property
    def models(self) -> DynamicModelManager:
        return self.device.models


def services_of(request: Request) -> Services:
    """The services of the application that a request is for."""
    return services_in(request.app)


def services_in(app: FastAPI) -> Services:
    """The services of an application."""
    services = app.state.services
    assert isinstance(services, Services)
    return services


def settings_of(services: Services) -> Settings:
    """The settings in force: models.yaml may override some of the process's settings."""
    return services.models.catalog.settings.over(services.settings)


# All are `async def`, because FastAPI runs plain functions in a thread, which takes longer than the functions do. None
# depends on another, because each dependency that FastAPI resolves takes as long as a small query.


async def _service(request: Request) -> ImageService:
    return services_of(request).service


async def _keys(request: Request) -> KeyStore:
    return services_of(request).keys


async def _who(request: Request) -> Owner:
    # Set by api/security.py. A route without a scope has no caller, and fails.
    who = request.state.who
    assert isinstance(who, Owner)
    return who


async def _tasks(request: Request) -> TaskManager:
    return services_of(request).tasks


async def _models(request: Request) -> DynamicModelManager:
    return services_of(request).models


async def _puller(request: Request) -> ModelPuller:
    return services_of(request).puller


async def _images(request: Request) -> ImageStore:
    return services_of(request).images


async def _bus(request: Request) -> EventBus:
    return services_of(request).bus


async def _settings(request: Request) -> Settings:
    return settings_of(services_of(request))


async def _writer(request: Request) -> CatalogWriter:
    return services_of(request).writer


async def _checks(request: Request) -> PictureChecks:
    return services_of(request).checks


async def _webhooks(request: Request) -> WebhookSender:
    return services_of(request).webhooks


Service = Annotated[ImageService, Depends(_service)]
Keys = Annotated[KeyStore, Depends(_keys)]
Who = Annotated[Owner, Depends(_who)]
Tasks = Annotated[TaskManager, Depends(_tasks)]
Models = Annotated[DynamicModelManager, Depends(_models)]
Puller = Annotated[ModelPuller, Depends(_puller)]
Images = Annotated[ImageStore, Depends(_images)]
Bus = Annotated[EventBus, Depends(_bus)]
EffectiveSettings = Annotated[Settings, Depends(_settings)]
Checks = Annotated[PictureChecks, Depends(_checks)]
Writer = Annotated[CatalogWriter, Depends(_writer)]
Webhooks = Annotated[WebhookSender, Depends(_webhooks)]
