"""Models: list, load and unload them."""

import asyncio
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from imagegen.api.dependencies import Models, Puller, Tasks, Writer
from imagegen.api.document import DocumentedAs
from imagegen.api.headers import headers
from imagegen.api.native.config import tag
from imagegen.api.native.models.pulls import PullView, pull_view
from imagegen.api.native.shared import gib
from imagegen.api.problems import describe
from imagegen.api.security import MANAGE, SEE, KeyedRoute
from imagegen.catalog.catalog import ModelSpec
from imagegen.core.errors import FailureCode, LoadFailed, ModelBusy
from imagegen.hub.puller import Pull
from imagegen.models.manager import UnloadReport
from imagegen.models.residency import ModelState, Resident
from imagegen.models.status import ModelStatus

router = APIRouter(prefix="/models", tags=["models"], route_class=KeyedRoute, dependencies=[SEE])


class ModelView(BaseModel):
    """A configured model."""

    id: str = Field(examples=["tiny"])
    name: str = Field(examples=["Tiny FLUX"])
    type: str = Field(examples=["flux"])
    pipeline_class: str = Field(examples=["FluxPipeline"])
    memory_usage: str = Field(examples=["low"])
    is_loaded: bool = Field(description="Whether it is in device memory now.")
    state: ModelState = Field(description="Where the model is, or what is done with it.")
    error_code: FailureCode | None = Field(description="In state `error`: a stable code.")
    error_message: str | None = Field(description="In state `error`: the reason.")
    last_used: datetime | None
    unloads_at: datetime | None = Field(description="When it will be unloaded, unless it is used before.")
    load_seconds: float | None = Field(description="How long its latest load from disk took.")
    warm_load_seconds: float | None = Field(description="How long its latest return from host memory took.")
    device_bytes: int | None = Field(
        description="While it is loaded: the most bytes of its weights that are in device memory at one time; with "
        "`cpu_offload`, fewer than all."
    )
    host_bytes: int | None = Field(
        description="Bytes of its weights in host memory: while it is warm, while it is offloaded, and after it came "
        "back from there."
    )
    supports_text2img: bool
    supports_img2img: bool
    supports_inpaint: bool = Field(description="image2image with a mask.")
    supports_negative_prompt: bool
    supports_lora: bool
    supports_strength: bool = Field(
        description="Whether image2image without a mask heeds `strength`: models that edit as the prompt says do not."
    )
    description: str


class LoadProgressView(BaseModel):
    """The progress of a load."""

    bytes_done: int = Field(
        description="Bytes read so far. Parts that are in memory already are not read, so it may stay below the total."
    )
    bytes_total: int | None = Field(description="Bytes of the model's files; null: unknown.")


class ModelConfig(BaseModel):
    """An entry of models.yaml, with defaults: the fields of its family."""


class ModelDetails(ModelView):
    """A configured model with its configuration."""

    weights_here: bool = Field(description="Whether it can be loaded without a pull.")
    longest_side: int | None = Field(
        description="The longest side of a picture that the model can draw, in pixels, from its files; null: no limit, "
        "or the files are not here."
    )
    load_progress: LoadProgressView | None = Field(description="During a load from disk: its progress.")
    pull: PullView | None = Field(description="The latest pull since the service started.")
    config: Annotated[dict[str, Any], DocumentedAs(ModelConfig)] = Field(
        description="The entry of models.yaml, with defaults."
    )


class ModelList(BaseModel):
    models: list[ModelView]
    total: int


class GpuMemory(BaseModel):
    """Device memory in GiB, as last measured by the worker."""

    allocated: float
    cached: float
    total: float


class ResidentModel(BaseModel):
    """A model in device memory."""

    model: str = Field(examples=["tiny"])
    name: str = Field(examples=["Tiny FLUX"])
    device_bytes: int = Field(description="Bytes of its weights. Parts that two models share are in memory once.")
    last_used: datetime
    unloads_at: datetime | None = Field(description="When it leaves unless it is used before.")


class CurrentModels(BaseModel):
    """What is in device memory."""

    current_model: str | None = Field(description="The most recently used model.", examples=["tiny"])
    model_name: str | None = Field(examples=["Tiny FLUX"])
    is_loaded: bool
    last_used: datetime | None
    gpu_memory: GpuMemory
    models: list[ResidentModel] = Field(description="All that are in device memory, the most recently used first.")


class Unloaded(BaseModel):
    """The result of an unload, measured afterwards in bytes of device memory; without a GPU, of host memory."""

    message: str = Field(examples=["'tiny' was unloaded."])
    freed_bytes: int
    left_bytes: int


class UnloadAccepted(BaseModel):
    """The models are unloaded later."""

    message: str = Field(examples=["All models are unloaded once the running task has ended."])


def model_view(model_id: str, spec: ModelSpec, status: ModelStatus) -> ModelView:
    return ModelView(**_model_fields(model_id, spec, status))


def model_details(
    model_id: str,
    spec: ModelSpec,
    status: ModelStatus,
    pull: Pull | None,
    *,
    weights_here: bool,
    longest_side: int | None,
) -> ModelDetails:
    progress = status.load_progress
    return ModelDetails(
        **_model_fields(model_id, spec, status),
        weights_here=weights_here,
        longest_side=longest_side,
        load_progress=LoadProgressView(**progress._asdict()) if progress else None,
        pull=pull_view(pull) if pull else None,
        config=spec.model_dump(mode="json"),
    )


def _model_fields(model_id: str, spec: ModelSpec, status: ModelStatus) -> dict[str, Any]:
    resident, error = status.resident, status.error
    return {
        "id": model_id,
        "is_loaded": resident is not None,
        "last_used": status.last_used,
        "state": status.state,
        "error_code": error.code if error else None,
        "error_message": error.message if error else None,
        "unloads_at": status.unloads_at,
        "load_seconds": status.load_seconds,
        "warm_load_seconds": status.warm_seconds,
        "host_bytes": status.host_bytes,
        "device_bytes": resident.device_bytes if resident else None,
        **{name: getattr(spec, name) for name in _MODEL_FIELDS},
    }


_MODEL_FIELDS = {
    "name",
    "type",
    "pipeline_class",
    "memory_usage",
    "supports_text2img",
    "supports_img2img",
    "supports_inpaint",
    "supports_negative_prompt",
    "supports_lora",
    "supports_strength",
    "description",
}


def resident_view(resident: Resident, spec: ModelSpec, status: ModelStatus) -> ResidentModel:
    return ResidentModel(
        model=resident.model,
        name=spec.name,
        device_bytes=resident.device_bytes,
        last_used=resident.last_used_at,
        unloads_at=status.unloads_at,
    )


def unloaded(report: UnloadReport) -> Unloaded:
    names = ", ".join(f"'{model}'" for model in report.models)
    message = f"{names} {'was' if len(report.models) == 1 else 'were'} unloaded." if names else "No model was loaded."
    return Unloaded(message=message, freed_bytes=report.freed, left_bytes=report.left)


@router.get(
    "", operation_id="list_models", summary="All configured models", responses={200: {"headers": headers("ETag")}}
)
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
async def get_current_model(models: Models) -> CurrentModels:
    """`current_model` is the most recently used one; `models` are all, at most `max_resident`."""
    resident, memory = models.current, models.memory
    return CurrentModels(
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
    dependencies=[MANAGE],
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


@router.get(
    "/{model_id}",
    operation_id="get_model",
    summary="One model",
    responses={200: {"headers": headers("ETag")}, **describe("model_not_found")},
)
async def get_model(model_id: str, models: Models, puller: Puller, writer: Writer, response: Response) -> ModelDetails:
    """A model with its configuration, the progress of its load, and the latest pull of its weights."""
    tag(response, writer.etag)
    return await _details(model_id, models, puller)


async def _details(model_id: str, models: Models, puller: Puller) -> ModelDetails:
    spec = models.catalog.model(model_id)
    here = await asyncio.to_thread(puller.has, spec)
    pull = puller.pull(model_id)
    status = models.status(model_id).with_weights(pull, here=here)
    longest = await models.longest_side(model_id)
    return model_details(model_id, spec, status, pull, weights_here=here, longest_side=longest or None)


@router.post(
    "/{model_id}/load",
    operation_id="load_model",
    dependencies=[MANAGE],
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
    dependencies=[MANAGE],
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
