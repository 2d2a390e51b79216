"""Probes and the health report."""

from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

import imagegen
from imagegen.api.dependencies import DiskRoom, Images, Models, Tasks, services_of
from imagegen.api.native.shared import gib
from imagegen.api.problems import describe
from imagegen.api.security import SEE, KeyedRoute, Needs
from imagegen.core.errors import Draining, StoreUnreachable
from imagegen.core.keys import Scope

router = APIRouter(tags=["service"], route_class=KeyedRoute)


class GpuInfo(BaseModel):
    """The device, as last measured by the worker. Memory is in GiB."""

    gpu_available: bool
    gpu_name: str | None
    gpu_memory_allocated: float
    gpu_memory_cached: float = Field(description="What torch's allocator in this service holds, in use or not.")
    gpu_memory_free: float = Field(description="What no process holds.")
    gpu_memory_foreign: float = Field(
        description="An estimate of what other processes hold: the total, less what is free, less what is cached, less "
        "0.5 GiB for CUDA itself."
    )
    gpu_memory_total: float
    cuda_problem: str | None = Field(
        description="Why models run on the CPU although a GPU was configured or seems to be installed."
    )
    host_memory: float = Field(description="Resident host memory of the process that runs the models.")


class Health(BaseModel):
    """The state of the service, its device and its store."""

    status: Literal["healthy", "draining", "unhealthy"]
    timestamp: datetime
    version: str
    queue_size: int = Field(description="Tasks that wait.")
    total_tasks: int = Field(description="Tasks in the history, ended or not.")
    current_model: str | None = Field(description="The most recently used model in device memory.")
    store: Literal["ok", "unreachable"] = Field(description="Whether the files of pictures can be reached.")
    disk_free: float = Field(
        description="Free space of the disk of the data directory in GiB. Below IMAGEGEN_MIN_FREE_MB new tasks are "
        "refused (507)."
    )
    gpu_info: GpuInfo


class Probe(BaseModel):
    status: Literal["ok"] = "ok"


@router.get("/livez", operation_id="livez", summary="Is the process alive?")
async def livez() -> Probe:
    """200 while the process answers. If it does not answer, restart it."""
    return Probe()


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Does the service accept tasks?",
    responses=describe("draining", "store_unreachable"),
)
async def readyz(tasks: Tasks, images: Images) -> Probe:
    """503 while the service is stopping.

    Also 503 while the bucket for pictures cannot be reached, if IMAGEGEN_STORE_DOWN is `fail`.
    """
    if tasks.draining:
        raise Draining
    if not (images.reachable or images.patient):
        raise StoreUnreachable
    return Probe()


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Metrics for Prometheus",
    dependencies=[Depends(Needs(Scope.READ))],
    response_class=PlainTextResponse,
    responses={200: {"description": "The text format of Prometheus, or OpenMetrics if `Accept` asks for it."}},
)
async def metrics(request: Request) -> PlainTextResponse:
    """Counters, histograms and gauges of tasks, models, memory, the journal, webhooks and requests.

    A key needs the scope `read`: the numbers are those of all callers. Labels have models, routes and codes, never a
    text of a caller. A scrape loads no model, and counts as no use of one.
    """
    services = services_of(request)
    text, media_type = await services.gauges.scrape(services.metrics, request.headers.get("accept", ""))
    return PlainTextResponse(text, media_type=media_type)


@router.get("/health", operation_id="health", dependencies=[SEE], summary="State of the service")
async def health(tasks: Tasks, models: Models, images: Images, room: DiskRoom) -> Health:
    """The state of the queue, the models, the device and the store of pictures."""
    resident, memory = models.current, models.memory
    return Health(
        status="draining" if tasks.draining else "healthy",
        timestamp=datetime.now(UTC),
        version=imagegen.__version__,
        queue_size=tasks.queue_size,
        total_tasks=await tasks.records.count(),
        store="ok" if images.reachable else "unreachable",
        disk_free=gib(room.free()),
        current_model=resident.model if resident else None,
        gpu_info=GpuInfo(
            gpu_available=memory.gpu_available,
            gpu_name=memory.gpu_name,
            gpu_memory_allocated=gib(memory.allocated),
            gpu_memory_cached=gib(memory.cached),
            gpu_memory_free=gib(memory.free),
            gpu_memory_foreign=gib(memory.foreign),
            gpu_memory_total=gib(memory.total),
            cuda_problem=memory.cuda_problem,
            host_memory=gib(memory.host),
        ),
    )
