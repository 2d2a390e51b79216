"""The health report: what an operator looks at first."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, Protocol

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, Field

import imagegen
from imagegen.api.dependencies import Services, Who, services_of
from imagegen.api.native.shared import gib
from imagegen.api.security import SEE, KeyedRoute
from imagegen.catalog.writer import ConfigStatus
from imagegen.core.errors import (
    FailureCode,
    JournalLost,
    SearchTooLong,
    StorageFailed,
    StorageFull,
    StoreUnreachable,
)
from imagegen.core.owner import Owner
from imagegen.core.task import TaskStatus
from imagegen.gpu.nvml import CardNow
from imagegen.gpu.protocol import DeviceMemory
from imagegen.models.residency import ModelState
from imagegen.service.vitals import Host
from imagegen.storage.journal import TaskFilter

router = APIRouter(tags=["service"], route_class=KeyedRoute)

#: Failed tasks of the report.
FAILURES = 20

#: Seconds after which the report does without what the journal does not answer.
JOURNAL_S = 2.0


class Life(Protocol):
    """What the report needs of the service's Lifecycle."""

    @property
    def lost(self) -> bool: ...

    @property
    def crashed(self) -> bool: ...


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


class GpuNow(BaseModel):
    """A card at this moment, as NVML reports it. Memory is in GiB. Null: the card does not report it."""

    index: int
    name: str
    in_use: bool = Field(description="Whether the models of this service run on it.")
    memory_total: float | None
    memory_used: float | None = Field(description="What all processes hold.")
    memory_ours: float | None = Field(
        description="What this service holds. Where NVML does not know its processes, as in most containers, it is "
        "what the worker has measured last, plus 0.5 GiB for CUDA itself."
    )
    memory_others: float | None = Field(description="What other processes hold.")
    utilization: int | None = Field(description="Per cent of the last second or so in which a kernel ran.")
    temperature: int | None = Field(description="Degrees Celsius.")
    power: float | None = Field(description="Watts.")


class HostInfo(BaseModel):
    """The machine, or the container's share of it. Memory is in GiB."""

    cores: int
    load: list[float] = Field(description="Load averages of the last 1, 5 and 15 minutes.", min_length=3, max_length=3)
    cpu_percent: float = Field(
        description="What the process that answers has used since the report before, in per cent of one core."
    )
    memory_total: float
    memory_available: float
    memory_service: float = Field(description="Resident memory of the process that answers.")


class HealthProblem(BaseModel):
    """Something that an operator should look at."""

    code: Literal[
        "service_crashed",
        "journal_lost",
        "journal_silent",
        "storage_full",
        "disk_silent",
        "store_unreachable",
        "config_broken",
        "cuda_not_usable",
        "worker_failed",
        "model_quarantined",
    ]
    detail: str


WorkerState = Literal["starting", "idle", "loading", "unloading", "working", "failed"]


class WorkerInfo(BaseModel):
    """What runs the models."""

    state: WorkerState
    model: str | None = Field(description="The model that is loaded, unloaded or at work.")
    pid: int | None = Field(description="The process; null: it is started with the next call.")


class ConfigInfo(BaseModel):
    """The configuration."""

    ok: bool = Field(description="False: the file is broken, and an older configuration is in force.")
    problems: int = Field(description="Problems of the file. `GET /config/status` has them, for administrators.")
    source: str = Field(description="Where the configuration in force came from, as in `GET /config/status`.")
    loaded_at: datetime


class WebhooksInfo(BaseModel):
    """The webhooks."""

    on: bool = Field(description="Whether tasks may have webhooks.")
    pending: int = Field(description="Deliveries that wait for an attempt.")


class WaitingInfo(BaseModel):
    """Tasks that wait."""

    model: str
    priority: int
    tasks: int


class FailureInfo(BaseModel):
    """A task that has failed."""

    task_id: str
    model: str
    code: FailureCode
    message: str
    attempt: int
    completed_at: datetime | None


class Health(BaseModel):
    """The state of the service, its device and its store."""

    status: Literal["healthy", "degraded", "draining", "unhealthy"] = Field(
        description="`unhealthy`: new tasks are refused because of one of the `problems`. `degraded`: there are "
        "`problems`, and tasks are accepted. `draining`: the service is stopping."
    )
    problems: list[HealthProblem]
    timestamp: datetime
    version: str
    uptime_s: float = Field(description="Seconds since the start.")
    queue_size: int = Field(description="Tasks that wait.")
    total_tasks: int = Field(description="Tasks in the history, ended or not.")
    current_model: str | None = Field(description="The most recently used model in device memory.")
    worker: WorkerInfo
    config: ConfigInfo
    store: Literal["ok", "unreachable"] = Field(description="Whether the files of pictures can be reached.")
    webhooks: WebhooksInfo
    disk_free: float = Field(
        description="Free space of the disk of the data directory in GiB. Below IMAGEGEN_MIN_FREE_MB new tasks are "
        "refused (507). 0 if the disk does not answer."
    )
    host: HostInfo | None = Field(description="Null: the system does not answer.")
    gpu_info: GpuInfo
    gpus: list[GpuNow] | None = Field(
        description="The card that models run on, with `verbose` all of them. Null: there is no NVIDIA driver, or it "
        "does not answer."
    )
    queue: list[WaitingInfo] | None = Field(
        None, description="With `verbose`: the waiting tasks by model and priority."
    )
    failures: list[FailureInfo] | None = Field(
        None, description="With `verbose`: the newest failed tasks that the caller may see, at most 20."
    )


#: Problems with which new tasks are refused. The store is one of them if tasks do not wait for it.
_REFUSING = frozenset({"service_crashed", "journal_lost", "storage_full"})

#: Quarantined models that a problem names.
_NAMED = 5


@router.get("/health", operation_id="health", dependencies=[SEE], summary="State of the service")
async def health(
    request: Request,
    who: Who,
    verbose: Annotated[
        bool,
        BeforeValidator(lambda given: given or given == ""),
        Query(description="Also the queue by model and priority, failed tasks, and all cards: `?verbose`."),
    ] = False,
) -> Health:
    """The state of the queue, the models, the device, the machine, the configuration and the store of pictures.

    Nothing in it waits for long: what the system does not tell within a second is null. It loads no model.
    """
    it = services_of(request)
    resident, memory = it.models.current, it.models.memory
    free, total, host, cards, failures = await asyncio.gather(
        it.vitals.free(), _total(it), it.vitals.host(), it.vitals.cards(), _failures(it, who, wanted=verbose)
    )
    problems = list(_problems(it, request.app.state.lifecycle, free, total, cards))
    return Health(
        status=_status(it, problems),
        problems=problems,
        timestamp=datetime.now(UTC),
        version=imagegen.__version__,
        uptime_s=round(it.vitals.uptime_s, 1),
        queue_size=it.tasks.queue_size,
        total_tasks=total or 0,
        current_model=resident.model if resident else None,
        worker=_worker(it),
        config=_config(it.writer.present),
        store="ok" if it.images.reachable else "unreachable",
        webhooks=WebhooksInfo(on=it.webhooks.on, pending=it.webhooks.pending),
        disk_free=gib(free or 0),
        host=None if host is None else _host(host),
        gpu_info=_gpu_info(memory),
        gpus=None if cards is None else [card for card in _gpus(cards, memory) if verbose or card.in_use],
        queue=_queue(Counter(it.tasks.waiting) + Counter(it.tasks.parked)) if verbose else None,
        failures=failures,
    )


async def _total(it: Services) -> int | None:
    """The number of tasks; None: the journal does not answer."""
    try:
        async with asyncio.timeout(JOURNAL_S):
            return await it.tasks.records.count()
    except (TimeoutError, StorageFailed, StorageFull):
        return None


async def _failures(it: Services, who: Owner, *, wanted: bool) -> list[FailureInfo] | None:
    """The newest failed tasks that the caller may see; None: not asked for, or the journal does not answer."""
    if not wanted:
        return None
    failed = TaskFilter(status=TaskStatus.FAILED, owner=None if who.sees_all else who.name)
    try:
        async with asyncio.timeout(JOURNAL_S):
            page = await it.tasks.records.page(failed, FAILURES)
    except (TimeoutError, StorageFailed, StorageFull, SearchTooLong):
        return None
    return [
        FailureInfo(
            task_id=task.id,
            model=task.model,
            code=task.failure.code,
            message=task.failure.message,
            attempt=task.attempt,
            completed_at=task.completed_at,
        )
        for task in page.tasks
        if task.failure is not None
    ]


def _problems(
    it: Services, life: Life, free: int | None, total: int | None, cards: Sequence[CardNow] | None
) -> Iterator[HealthProblem]:
    """What is wrong, the worst first."""
    if life.lost:
        yield HealthProblem(code="journal_lost", detail=JournalLost().detail)
    elif life.crashed:
        yield HealthProblem(code="service_crashed", detail="A part of the service has failed; the process ends.")
    elif total is None:
        yield HealthProblem(code="journal_silent", detail="The journal does not answer.")
    if free is None:
        yield HealthProblem(code="disk_silent", detail="The disk of the data directory does not answer.")
    elif free < it.room.floor:
        detail = f"{free / 2**20:,.0f} MiB are free, and {it.room.floor / 2**20:,.0f} MiB must stay free."
        yield HealthProblem(code="storage_full", detail=detail)
    if not it.images.reachable:
        yield HealthProblem(code="store_unreachable", detail=StoreUnreachable().detail)
    if not it.writer.ok:
        detail = "models.yaml is broken, and an older configuration is in force; GET /config/status says why."
        yield HealthProblem(code="config_broken", detail=detail)
    yield from _problems_of_models(it, cards)


def _problems_of_models(it: Services, cards: Sequence[CardNow] | None) -> Iterator[HealthProblem]:
    # On a machine without a card, `auto` is the CPU, and no problem.
    problem = it.models.memory.cuda_problem
    if problem is not None and (cards or it.settings.device != "auto"):
        yield HealthProblem(code="cuda_not_usable", detail=problem)
    if (failed := it.models.start_failure) is not None:
        yield HealthProblem(code="worker_failed", detail=failed.message)
    if found := [model for model in it.models.catalog.models if it.models.quarantined(model)]:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        detail = f"{', '.join(found[:_NAMED])}{more}: tasks are refused until the model is loaded by hand."
        yield HealthProblem(code="model_quarantined", detail=detail)


def _status(it: Services, problems: Iterable[HealthProblem]) -> Literal["healthy", "degraded", "draining", "unhealthy"]:
    codes = {problem.code for problem in problems}
    refusing = codes & _REFUSING or ("store_unreachable" in codes and not it.images.patient)
    if it.tasks.draining and not codes & {"service_crashed", "journal_lost"}:
        return "draining"
    return "unhealthy" if refusing else "degraded" if codes else "healthy"


def _worker(it: Services) -> WorkerInfo:
    models, call = it.models, it.device.call
    state: WorkerState = "idle" if models.memory.host_total else "starting"
    model = None
    if models.start_failure is not None:
        state = "failed"
    if moving := dict(models.moving):
        model, moved = next(iter(moving.items()))
        state = "loading" if moved is ModelState.LOADING else "unloading"
    elif call is not None:
        state, model = "working", call.model
    return WorkerInfo(state=state, model=model, pid=it.device.executor.pid)


def _config(status: ConfigStatus) -> ConfigInfo:
    return ConfigInfo(ok=status.ok, problems=len(status.errors), source=status.source, loaded_at=status.loaded_at)


def _queue(waiting: Mapping[tuple[int, str], int]) -> list[WaitingInfo]:
    return [WaitingInfo(model=model, priority=level, tasks=n) for (level, model), n in sorted(waiting.items())]


def _host(host: Host) -> HostInfo:
    return HostInfo(
        cores=host.cores,
        load=[round(it, 2) for it in host.load],
        cpu_percent=round(host.cpu, 1),
        memory_total=gib(host.memory_total),
        memory_available=gib(host.memory_available),
        memory_service=gib(host.memory_ours),
    )


def _gpus(cards: Sequence[CardNow], memory: DeviceMemory) -> Iterator[GpuNow]:
    for card in cards:
        in_use = memory.gpu_uuid is not None and card.uuid.removeprefix("GPU-") == memory.gpu_uuid
        ours = card.memory_ours if card.memory_ours or not in_use else memory.ours
        others = None if card.memory_used is None or ours is None else max(0, card.memory_used - ours)
        yield GpuNow(
            index=card.index,
            name=card.name,
            in_use=in_use,
            memory_total=_gib(card.memory_total),
            memory_used=_gib(card.memory_used),
            memory_ours=_gib(ours),
            memory_others=_gib(others),
            utilization=card.utilization,
            temperature=card.temperature,
            power=card.power,
        )


def _gib(size: int | None) -> float | None:
    return None if size is None else gib(size)


def _gpu_info(memory: DeviceMemory) -> GpuInfo:
    return GpuInfo(
        gpu_available=memory.gpu_available,
        gpu_name=memory.gpu_name,
        gpu_memory_allocated=gib(memory.allocated),
        gpu_memory_cached=gib(memory.cached),
        gpu_memory_free=gib(memory.free),
        gpu_memory_foreign=gib(memory.foreign),
        gpu_memory_total=gib(memory.total),
        cuda_problem=memory.cuda_problem,
        host_memory=gib(memory.host),
    )
