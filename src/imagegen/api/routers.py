"""All routers, in the order of the OpenAPI document. Another API adds its router and its renderer of errors here."""

from fastapi import FastAPI

from imagegen.api import pages
from imagegen.api.native import config, events, keys, system, webhooks
from imagegen.api.native.images import bundle
from imagegen.api.native.images import routes as images
from imagegen.api.native.models import entries, pulls
from imagegen.api.native.models import routes as models
from imagegen.api.native.tasks import generation
from imagegen.api.native.tasks import routes as tasks
from imagegen.api.web import routes as web


def include_routers(app: FastAPI, max_upload_bytes: int) -> None:
    """Add the routes to the application. `max_upload_bytes`: the limit of bodies that contain pictures."""
    app.include_router(generation.upload_router, max_body_size=max_upload_bytes)
    app.include_router(pages.router)
    app.include_router(web.router)
    for part in (generation, tasks, bundle, images, models, pulls, entries, config, keys, webhooks, events, system):
        app.include_router(part.router)
