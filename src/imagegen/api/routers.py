"""All routers, in the order of the OpenAPI document. Another API adds its router and its renderer of errors here."""

from datetime import datetime

from fastapi import FastAPI

from imagegen.api import huggingface, mcp, pages, replicate, sdapi
from imagegen.api.native import config, events, health, keys, system, webhooks
from imagegen.api.native.images import bundle
from imagegen.api.native.images import routes as images
from imagegen.api.native.models import entries, pulls
from imagegen.api.native.models import routes as models
from imagegen.api.native.tasks import generation
from imagegen.api.native.tasks import routes as tasks
from imagegen.api.openai import errors as openai_errors
from imagegen.api.openai import routes as openai
from imagegen.api.problems import problem_json, render_errors
from imagegen.api.web import routes as web
from imagegen.core.task import GenerationTask
from imagegen.core.webhooks import WebhookEvent
from imagegen.storage.outbox import Render


def include_routers(app: FastAPI, max_upload_bytes: int) -> None:
    """Add the routes to the application. `max_upload_bytes`: the limit of bodies that contain pictures."""
    app.include_router(generation.router)
    app.include_router(generation.upload_router, max_body_size=max_upload_bytes)
    app.include_router(generation.plan_router)
    app.include_router(pages.router)
    app.include_router(web.router)
    for part in (tasks, bundle, images, models, pulls, entries, config, keys, webhooks, events, system, health):
        app.include_router(part.router)
    _include_others(app, max_upload_bytes)


def _include_others(app: FastAPI, max_upload_bytes: int) -> None:
    """The APIs of other services."""
    app.include_router(openai.json_router, max_body_size=max_upload_bytes)
    app.include_router(openai.form_router, max_body_size=max_upload_bytes)
    app.include_router(openai.models_router)
    render_errors(app, "/v1", openai_errors.render)
    uploads = (sdapi.upload_router, huggingface.upload_router, replicate.upload_router, replicate.form_router)
    for router in (*uploads, mcp.upload_router):
        app.include_router(router, max_body_size=max_upload_bytes)
    for router in (sdapi.router, replicate.router, replicate.stream_router):
        app.include_router(router)
    sdapi.install(app)
    for api in (huggingface, mcp):
        render_errors(app, api.PREFIX, api.render)
    for prefix in replicate.PREFIXES:
        render_errors(app, prefix, problem_json)


def webhook_bodies(native: Render) -> Render:
    """Makes the body of a webhook in the form of the API that its task was submitted by."""

    def render(task: GenerationTask, event: WebhookEvent, at: datetime) -> str:
        of_replicate = task.webhook is not None and task.webhook.api == "replicate"
        return (replicate.webhook_body if of_replicate else native)(task, event, at)

    return render
