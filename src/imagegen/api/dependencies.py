"""What routers are given: the managers, by type."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from imagegen.catalog.writer import CatalogWriter
from imagegen.core.events import EventBus
from imagegen.hub.puller import ModelPuller
from imagegen.models.manager import DynamicModelManager
from imagegen.settings import Settings
from imagegen.storage.images import ImageStore
from imagegen.tasks.manager import TaskManager
from imagegen.webhooks.sender import WebhookSender


@dataclass(frozen=True)
class Services:
    """Everything a router may ask; the composition root fills it."""

    settings: Settings
    tasks: TaskManager
    models: DynamicModelManager
    puller: ModelPuller
    images: ImageStore
    bus: EventBus
    config: CatalogWriter
    webhooks: WebhookSender


# All are `async def`: FastAPI sends plain functions to a thread, which costs more than all that they do.


async def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


async def _tasks(services: Annotated[Services, Depends(_services)]) -> TaskManager:
    return services.tasks


async def _models(services: Annotated[Services, Depends(_services)]) -> DynamicModelManager:
    return services.models


async def _puller(services: Annotated[Services, Depends(_services)]) -> ModelPuller:
    return services.puller


async def _images(services: Annotated[Services, Depends(_services)]) -> ImageStore:
    return services.images


async def _bus(services: Annotated[Services, Depends(_services)]) -> EventBus:
    return services.bus


async def _settings(services: Annotated[Services, Depends(_services)]) -> Settings:
    return services.models.catalog.settings.over(services.settings)


async def _writer(services: Annotated[Services, Depends(_services)]) -> CatalogWriter:
    return services.config


async def _webhooks(services: Annotated[Services, Depends(_services)]) -> WebhookSender:
    return services.webhooks


Tasks = Annotated[TaskManager, Depends(_tasks)]
Models = Annotated[DynamicModelManager, Depends(_models)]
Puller = Annotated[ModelPuller, Depends(_puller)]
Images = Annotated[ImageStore, Depends(_images)]
Bus = Annotated[EventBus, Depends(_bus)]
Config = Annotated[Settings, Depends(_settings)]
Writer = Annotated[CatalogWriter, Depends(_writer)]
Webhooks = Annotated[WebhookSender, Depends(_webhooks)]
