"""Models: list, load and unload them, and pull their weights."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from imagegen.api.dependencies import Models, Puller, Tasks, Writer
from imagegen.api.problems import describe
from imagegen.api.schemas import CurrentModel, GpuMemory, ModelDetails, ModelList, PullView, UnloadAccepted, Unloaded
from imagegen.api.views import gib, model_details, model_view, pull_view, resident_view, tag, unloaded
from imagegen.core.errors import LoadFailed, ModelBusy, NotPulling

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", operation_id="list_models", summary="All configured models")
async def list_models(models: Models, puller: Puller, writer: Writer, response: Response) -> ModelList:
    """All models, in the order of models.yaml."""
    tag(response, writer.etag)
    entries = models.catalog.models
    here = await asyncio.to_thread(lambda: {model_id: puller.has(spec) for model_id, spec in entries.items()})
    views = [
        model_view(id_, spec, models.status(id_).with_weights(puller.pull(id_), here=here[id_]))
        for id_, spec in entries.items()
    ]
    return ModelList(models=views, total=len(views))


@router.get("/current", operation_id="get_current_model", summary="The models in device memory")
async def get_current_model(models: Models) -> CurrentModel:
    """`current_model` is the most recently used one; `models` are all, at most `max_resident`."""
    resident, memory = models.current, models.memory
    return CurrentModel(
        current_model=resident.model if resident else None,
        model_name=models.catalog.model(resident.model).name if resident else None,
        is_loaded=resident is not None,
        last_used=resident.last_used_at if resident else None,
        gpu_memory=GpuMemory(allocated=gib(memory.allocated), cached=gib(memory.cached), total=gib(memory.total)),
        models=[
            resident_view(each, models.catalog.model(each.model), models.status(each.model))
            for each in models.residents
        ],
    )


@router.post(
    "/unload",
    response_model=Unloaded,
    operation_id="unload_model",
    summary="Unload all models",
    responses={202: {"model": UnloadAccepted, "description": "With `wait=false`"}, **describe("draining")},
)
async def unload_model(
    models: Models,
    tasks: Tasks,
    wait: Annotated[
        bool, Query(description="Wait until the models are unloaded; if false, answer 202 at once.")
    ] = True,
) -> Unloaded | Response:
    """Waits for the running task, then frees the memory. The next task that needs a model loads it again."""
    if wait:
        return unloaded(await tasks.between_tasks(models.unload_all))
    tasks.ask_between_tasks(models.unload_all)
    accepted = UnloadAccepted(message="All models are unloaded once the running task has ended.")
    return Response(accepted.model_dump_json(), 202, media_type="application/json")


@router.get("/{model_id}", operation_id="get_model", summary="One model", responses=describe("model_not_found"))
async def get_model(model_id: str, models: Models, puller: Puller, writer: Writer, response: Response) -> ModelDetails:
    """A model with its configuration, the progress of its load, and the latest pull of its weights."""
    tag(response, writer.etag)
    return await _details(model_id, models, puller)


async def _details(model_id: str, models: Models, puller: Puller) -> ModelDetails:
    spec = models.catalog.model(model_id)
    here = await asyncio.to_thread(puller.has, spec)
    pull = puller.pull(model_id)
    status = models.status(model_id).with_weights(pull, here=here)
    return model_details(model_id, spec, status, pull, weights_here=here)


@router.post(
    "/{model_id}/load",
    operation_id="load_model",
    summary="Load a model",
    responses=describe("model_not_found", "does_not_fit", "load_failed", "draining"),
)
async def load_model(model_id: str, models: Models, tasks: Tasks, puller: Puller) -> ModelDetails:
    """Waits for the running task, then loads the model unless it is resident. That also ends a quarantine."""
    models.catalog.model(model_id)
    await models.check_fits(model_id)
    failed = await tasks.between_tasks(lambda: models.load(model_id))
    if failed is not None:
        raise LoadFailed(f"{failed.code}: {failed.message}")
    return await _details(model_id, models, puller)


@router.post(
    "/{model_id}/unload",
    operation_id="unload_this_model",
    summary="Unload a model",
    responses=describe("model_not_found", "model_busy", "draining"),
)
async def unload_this_model(
    model_id: str,
    models: Models,
    tasks: Tasks,
    wait: Annotated[bool, Query(description="Wait for its running task; if false, answer 409.")] = True,
) -> Unloaded:
    """Unloads the model. The answer has the bytes that became free, measured afterwards."""
    models.catalog.model(model_id)
    if not wait and tasks.is_running(model_id):
        raise ModelBusy
    return unloaded(await tasks.between_tasks(lambda: models.unload(model_id)))


@router.post(
    "/{model_id}/pull",
    status_code=202,
    operation_id="pull_model",
    summary="Pull a model's weights",
    responses=describe("model_not_found", "weights_here", "no_repository", "draining"),
)
async def pull_model(model_id: str, puller: Puller) -> PullView:
    """Starts a pull, or resumes one that was interrupted or cancelled. Has no effect while the model is pulled.

    One model is pulled at a time; the others are `waiting`. Follow the pull at `GET /models/{model_id}/pull/events`, or
    poll `GET /models/{model_id}`.
    """
    return pull_view(puller.start(model_id))


@router.delete(
    "/{model_id}/pull",
    operation_id="cancel_pull",
    summary="Cancel a pull",
    responses=describe("model_not_found", "not_pulling"),
)
async def cancel_pull(model_id: str, puller: Puller) -> PullView:
    """Keeps the bytes that have arrived, and the next pull resumes there. Tasks that wait for the weights fail."""
    return pull_view(puller.cancel(model_id))


async def _pulled(model_id: str, puller: Puller) -> str:
    # A dependency, because a stream that has begun cannot answer with another status.
    if puller.pull(model_id) is None:
        raise NotPulling
    return model_id


@router.get(
    "/{model_id}/pull/events",
    operation_id="follow_pull",
    summary="Follow a pull (server-sent events)",
    response_class=EventSourceResponse,
    responses=describe("not_pulling"),
)
async def follow_pull(model_id: Annotated[str, Depends(_pulled)], puller: Puller) -> AsyncIterator[ServerSentEvent]:
    """`waiting`, `downloading` with bytes, then `ready`, `failed` or `cancelled`, which ends the stream."""
    async for pull in puller.follow(model_id):
        yield ServerSentEvent(event=pull.state, data=pull_view(pull).model_dump(mode="json"))
