"""DynamicModelManager: decides which models are in memory, and loads and unloads them."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple

import structlog

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.difference import Difference, difference
from imagegen.catalog.sources import Folders, lora_files, weights_here
from imagegen.core.errors import DoesNotFit, FailureCode, LoraNotFound, ModelQuarantined
from imagegen.core.events import (
    EventBus,
    ModelCooled,
    ModelFailed,
    ModelLoaded,
    ModelLoading,
    ModelUnloaded,
    ModelUnloading,
    WorkerEnd,
    WorkerReplaced,
)
from imagegen.core.task import Failure, GenerationRequest, InputPictures
from imagegen.gpu.executor import GpuExecutor
from imagegen.gpu.protocol import (
    DeviceMemory,
    Failed,
    Generate,
    Generated,
    Load,
    Loaded,
    Measured,
    Outcome,
    Stopped,
    Unload,
)
from imagegen.loaders.base import Family, OnStep, StopFlag
from imagegen.loaders.nunchaku import precision_of
from imagegen.models.facts import Facts
from imagegen.models.fitting import Fitting
from imagegen.models.reading_ahead import ReadingAhead
from imagegen.models.residency import Kills, ModelState, Resident, Warm, is_idle, victims_for, warm_to_drop
from imagegen.models.status import LoadProgress, ModelStatus

log = structlog.get_logger(__name__)


class UnloadReport(NamedTuple):
    """The result of an unload, measured after it: bytes of device memory, or of host memory without a GPU."""

    models: list[str]
    freed: int
    #: The bytes that the engine still holds.
    left: int


OnProgress = Callable[[LoadProgress], object]


class DynamicModelManager:
    """Loads models when tasks need them, and keeps up to `max_resident` of them on the device if they fit.

    Only the run loop calls the methods that load and unload, between two tasks.
    """

    def __init__(
        self,
        catalog: Catalog,
        executor: GpuExecutor,
        bus: EventBus,
        folders: Folders,
        families: Mapping[str, Family],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._executor = executor
        self._bus = bus
        self._folders = folders
        self._clock = clock
        #: The models in device memory, the least recently used one first.
        self._residents: dict[str, Resident] = {}
        self._served_s = 0.0
        self._last_used: dict[str, datetime] = {}
        self._warm: dict[str, Warm] = {}
        self._memory = DeviceMemory()
        #: Bytes that the engine held before the first load.
        self._floor = 0
        #: What is known of each model; only this manager writes it.
        self.facts = Facts()
        self._fitting = Fitting(self.facts, folders, families)
        self._reading_ahead = ReadingAhead()
        #: The models that are being loaded or unloaded: LOADING or UNLOADING.
        self._moving: dict[str, ModelState] = {}
        #: The progress of the running load, if it reads from disk.
        self._progress: dict[str, LoadProgress] = {}
        #: Whether this process can no longer use the device. It stays false with a worker process, which is replaced.
        self.broken = False
        #: Why the engine could not be started; None: it could, or was not started yet.
        self.start_failure: Failed | None = None
        #: Whether the running load was abandoned, so that its failure is not the model's fault.
        self._abandoned = False

    def __repr__(self) -> str:
        resident, warm = ", ".join(self._residents) or None, ", ".join(self._warm) or None
        moving = "".join(f", {state.upper()}: {model}" for model, state in self._moving.items())
        return (
            f"<DynamicModelManager [Models: {len(self._catalog.models)}, Resident: {resident}, Warm: {warm}{moving}]>"
        )

    # -- reads that only inform ---------------------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    @property
    def residents(self) -> list[Resident]:
        """The models in device memory, the most recently used one first."""
        return list(reversed(self._residents.values()))

    @property
    def moving(self) -> Mapping[str, ModelState]:
        """The models that are being loaded or unloaded: LOADING or UNLOADING."""
        return MappingProxyType(self._moving)

    @property
    def current(self) -> Resident | None:
        """The most recently used model in device memory; None: no model is resident."""
        return next(reversed(self._residents.values()), None)

    def resident(self, model: str) -> Resident | None:
        """The model, if it is in device memory."""
        return self._residents.get(model)

    @property
    def served_s(self) -> float:
        """Seconds of work since the latest load, which count against the quantum of the resident models."""
        return self._served_s

    def victims(self, model: str) -> list[str]:
        """The models that would be unloaded now, in this order, if `model` were loaded."""
        return [] if model in self._residents else self._victims(model, list(self._residents))

    def stays(self, model: str, residents: Sequence[str]) -> tuple[str, ...]:
        """The models of `residents` that a load of `model` would leave in memory. Both: most recently used first."""
        return tuple(residents[: len(residents) - len(self._victims(model, residents[::-1]))])

    def _victims(self, model: str, residents: Sequence[str]) -> list[str]:
        known = {it: self._fitting.need(it, self._catalog, self._memory, self._floor) for it in (*residents, model)}
        needs = {it: need for it, need in known.items() if need is not None}
        return victims_for(model, residents, self._catalog.settings.max_resident, needs, self.facts.crowds)

    @property
    def memory(self) -> DeviceMemory:
        """The memory of the device, as last measured."""
        return self._memory

    def switch_seconds(self, model: str) -> float | None:
        """Seconds that a load of the model would take now, as last measured; None: not measured yet."""
        facts = self.facts.of(model)
        return facts.warm_seconds if model in self._warm else facts.load_seconds

    def status(self, model: str) -> ModelStatus:
        """All that this manager knows of a model, configured or not."""
        facts, resident = self.facts.of(model), self._residents.get(model)
        return ModelStatus(
            state=self._state(model),
            resident=resident,
            last_used=self._last_used.get(model),
            unloads_at=self._unloads_at(resident) if resident else None,
            load_seconds=facts.load_seconds,
            warm_seconds=facts.warm_seconds,
            load_progress=self._progress.get(model),
            host_bytes=self._host_bytes(model),
            error=facts.error,
        )

    def _state(self, model: str) -> ModelState:
        if model in self._moving:
            return self._moving[model]
        if model in self._residents:
            return ModelState.RESIDENT
        if model in self._warm:
            return ModelState.WARM
        return ModelState.COLD if self.facts.of(model).error is None else ModelState.ERROR

    def _unloads_at(self, resident: Resident) -> datetime | None:
        minutes = self._catalog.idle_minutes(resident.model)
        return resident.last_used_at + timedelta(minutes=minutes) if minutes else None

    def _host_bytes(self, model: str) -> int | None:
        if model in self._warm:
            return self._warm[model].weight_bytes
        return self._residents[model].host_bytes or None if model in self._residents else None

    def quarantined(self, model: str) -> bool:
        return self.facts.of(model).kills.quarantined

    def find_loras(self, request: GenerationRequest) -> tuple[str, ...]:
        """The paths of the request's LoRA files. Raises LoraNotFound."""
        return tuple(map(str, lora_files(request.loras, self._folders.loras)))

    async def check_fits(self, model: str, pixels: int = 0) -> None:
        """Raises DoesNotFit if the device can never hold the model, or a picture of this number of pixels by it."""
        if self.facts.of(model).weights is None:
            read_for = self._catalog
            least = await asyncio.to_thread(self._fitting.least_bytes, model, read_for, self._memory)
            # Meanwhile the model may have been loaded, or its entry may have been changed.
            if self.facts.of(model).weights is None and read_for.loaded_as(model) == self._catalog.loaded_as(model):
                self.facts.learn(model, weights=least)
        self._fitting.check(model, pixels, self._catalog, self._memory)

    async def longest_side(self, model: str) -> int:
        """The longest side that the model can make, in pixels; 0: any, or not known before its weights are here."""
        if self.facts.of(model).longest_side is None and model in self._catalog.models:
            read_for = self._catalog
            longest = await asyncio.to_thread(self._fitting.longest_side, model, read_for)
            if model in self._catalog.models and read_for.loaded_as(model) == self._catalog.loaded_as(model):
                self.facts.learn(model, longest_side=longest)
        return self.facts.of(model).longest_side or 0

    async def prompt_warnings(self, model: str, prompt: str) -> Sequence[str]:
        """Sentences about what pictures of this prompt would ignore of it, as far as that is known without a load."""
        return await asyncio.to_thread(self._fitting.prompt_warnings, model, self._catalog, prompt)

    # -- changes: the run loop makes them between two tasks -----------------------------------------------------------

    async def warm_up(self) -> None:
        """Start the engine and measure the memory of its device."""
        self._engine_started(await self._executor.measure())

    def _engine_started(self, answer: Measured | Failed) -> None:
        self.start_failure = answer if isinstance(answer, Failed) else None
        if isinstance(answer, Failed):
            log.error("worker_start_failed", code=answer.code, traceback=answer.traceback)
            self._memory_is_empty()
        else:
            self._measured(answer.memory)
            self._floor = answer.memory.held
            memory = {"total_bytes": answer.memory.total, "free_bytes": answer.memory.free}
            on_card = answer.memory.gpu_available
            log.info("device_ready", device=answer.memory.gpu_name or "cpu", **(memory if on_card else {}))

    def _measured(self, memory: DeviceMemory) -> None:
        if memory.cuda_problem is not None and memory.cuda_problem != self._memory.cuda_problem:
            log.warning("cuda_not_usable", reason=memory.cuda_problem)
        self._memory = memory

    async def ensure(self, model: str, on_progress: OnProgress = lambda progress: None) -> Failed | None:
        """Load `model` unless it is resident. Returns the failure; None: the model is resident.

        `on_progress` is called at each percent of the model's files.
        """
        if model in self._residents:
            return None
        if model not in self._catalog.models:
            return Failed(code=FailureCode.MODEL_REMOVED, message="The model is no longer configured.")
        if self.quarantined(model):
            return Failed(code=FailureCode.MODEL_QUARANTINED, message=ModelQuarantined().detail)
        try:
            await self.check_fits(model)  # at the admission of the task the device may have been unknown
        except DoesNotFit as error:
            return Failed(code=FailureCode.OUT_OF_MEMORY, message=error.detail)
        if model in self._warm or await asyncio.to_thread(self._weights_here, model):
            await self._make_room(model)
        # If the weights are not here, the load fails, and no model had to leave for it.
        failed = await self._load(model, on_progress)
        if failed is None:
            await self._make_room(model)  # in case the weights arrived after `_weights_here`
            return None if model in self._residents else await self._load(model, on_progress)
        await self._replace_if_much_stays()
        return failed

    def _weights_here(self, model: str) -> bool:
        return weights_here(self._catalog.model(model), self._folders.models, precision_of(self._memory.capability))

    async def _make_room(self, model: str) -> None:
        for victim in self._victims(model, list(self._residents)):
            await self._unload(victim, "switch", keep_warm=True, coming=model)

    async def load(self, model: str) -> Failed | None:
        """Like `ensure`, for an operator: also ends a quarantine, and counts as a use of the model."""
        if self.quarantined(model):
            self.facts.learn(model, error=None)
        self.facts.learn(model, kills=Kills())
        failed = await self.ensure(model)
        if failed is None:
            self._touch(model, datetime.now(UTC))
        return failed

    def abandon_load(self, model: str) -> None:
        """Kill the worker if it is still loading this model. Without a worker process the load continues."""
        if self._moving.get(model) is ModelState.LOADING:
            log.info("load_abandoned", model=model)
            self._abandoned = self._executor.abort()

    async def _load(self, model: str, on_progress: OnProgress) -> Failed | None:
        self._abandoned = False
        with self._moving_model(model, ModelState.LOADING):
            warm = model in self._warm
            total = None if warm else await asyncio.to_thread(self._fitting.file_bytes, model, self._catalog)
            self._bus.publish(ModelLoading(model=model, bytes_total=total))
            if not warm:
                self._progress[model] = LoadProgress(0, total)
            command = Load.entry(self._catalog, model, self._folders)

            def on_read(read: int) -> None:
                self._progressed(model, read, on_progress)

            answer = await self._load_or_retry_alone(command, on_read)
            if self._abandoned and isinstance(answer, Loaded):  # the worker was killed just after the load
                self._engine_started(await self._executor.recycle())
                answer = Failed(code=FailureCode.WORKER_CRASHED, message="The load was abandoned.")
        self._note_dropped_copies(answer)
        if isinstance(answer, Failed):
            if answer.code is not FailureCode.WEIGHTS_MISSING and not self._abandoned:
                self.facts.learn(model, error=answer)
            self._failed(model, answer)
            if not self._abandoned:
                self._blame(model, answer)
            self._cooled(model, "load_failed")  # the engine drops the copy in host memory after a failed load
            failure = Failure(code=answer.code, message=answer.message)
            self._bus.publish(ModelFailed(model=model, failure=failure))
            if not answer.worker_died:
                await self._measure_again(model)
            return answer
        self._became_resident(model, answer)
        await self._keep_budget()  # an offloaded model takes host memory, too
        return None

    async def _measure_again(self, model: str) -> None:
        """Measure the memory. The latest measurement is of an earlier unload, which kept some memory for this load."""
        answer = await self._executor.measure()
        if isinstance(answer, Failed):
            self._failed(model, answer)
        else:
            self._measured(answer.memory)

    async def _load_or_retry_alone(self, command: Load, on_read: Callable[[int], object]) -> Loaded | Failed:
        """Load a model. If it runs out of memory while others are resident, unload these and try once more."""
        answer = await self._executor.load(command, on_read)
        if not self._abandoned and self._wants_more_room(command.model, answer):
            await self._evict_others(command.model, answer, "switch")
            answer = await self._executor.load(command, on_read)
        return answer

    @contextmanager
    def _moving_model(self, model: str, state: ModelState) -> Iterator[None]:
        self._moving[model] = state
        try:
            yield
        finally:
            del self._moving[model]
            self._progress.pop(model, None)

    def _progressed(self, model: str, read: int, on_progress: OnProgress) -> None:
        before = self._progress.get(model)
        if before is None:  # the model is loaded from host memory
            return
        now = before._replace(bytes_done=max(before.bytes_done, min(read, before.bytes_total or read)))
        self._progress[model] = now
        if now.percent != before.percent:
            self._bus.publish(ModelLoading(model=model, **now._asdict()))
            on_progress(now)

    def _became_resident(self, model: str, loaded: Loaded) -> None:
        now, self._served_s = datetime.now(UTC), 0.0
        self._residents[model] = Resident(
            model=model,
            weight_bytes=loaded.weight_bytes,
            device_bytes=loaded.device_bytes,
            host_bytes=loaded.host_bytes,
            loaded_at=now,
            last_used_at=now,
            last_used=self._clock(),
        )
        self._warm.pop(model, None)
        self._reading_ahead.forget(model)
        self._measured(loaded.memory)
        self.start_failure = None
        self.facts.loaded(model, loaded)
        log.info(
            "model_loaded",
            model=model,
            seconds=round(loaded.seconds, 3),
            weight_bytes=loaded.weight_bytes,
            moved_bytes=loaded.moved_bytes,
        )
        seconds, size = loaded.seconds, loaded.device_bytes
        self._bus.publish(ModelLoaded(model=model, seconds=seconds, device_bytes=size, warm=loaded.warm))

    async def generate(
        self,
        model: str,
        request: GenerationRequest,
        pictures: InputPictures,
        stop: StopFlag,
        on_step: OnStep,
        previews: int = 0,
        companions: Sequence[GenerationRequest] = (),
        *,
        together: bool = False,
    ) -> Generated | Stopped | Failed:
        """Run a request, and those of `companions`, on a model that `ensure` has loaded. `together`: as in Generate.

        If pictures that are made one by one run out of memory, unload the other models and try once more.
        """
        try:
            loras = self.find_loras(request)
        except LoraNotFound as error:
            return Failed(code=FailureCode.LORA_NOT_FOUND, message=error.detail)
        began = self._clock()
        self._touch(model, datetime.now(UTC))
        command = Generate(
            model=model,
            request=request,
            init_image=pictures.init_image,
            mask_image=pictures.mask_image,
            lora_files=loras,
            previews=previews,
            together=together,
            companions=tuple(companions),
        )
        answer = await self._executor.generate(command, stop, on_step)
        if not together and self._wants_more_room(model, answer):
            await self._evict_others(model, answer, "room")
            failed = await self.ensure(model)  # an unload may have killed the worker
            if failed is not None:
                return failed
            answer = await self._executor.generate(command, stop, on_step)
        self._note_dropped_copies(answer)
        if isinstance(answer, Failed):
            self._failed(model, answer, request)
            self._blame(model, answer, request, *companions)
        elif isinstance(answer, Generated):
            self._measured(answer.memory)
            self.facts.worked(model, answer.working_bytes)
        self._used(model, self._clock() - began)
        return answer

    def _wants_more_room(self, model: str, answer: Outcome) -> bool:
        """Whether the model ran out of memory while others were resident."""
        out_of_memory = isinstance(answer, Failed) and answer.code is FailureCode.OUT_OF_MEMORY
        return out_of_memory and bool(self._residents.keys() - {model})

    async def _evict_others(self, model: str, answer: Outcome, reason: str) -> None:
        """Unload the other models for a second try. They do not stay warm, because host memory may be what lacks."""
        self._note_dropped_copies(answer)
        self.facts.crowded(model, *self._residents)
        others = [resident for resident in self._residents if resident != model]
        log.warning("out_of_memory_beside_others", model=model, evicted=others)
        for other in others:
            await self._unload(other, reason)

    @contextmanager
    def reading_ahead(self, model: str | None) -> Iterator[None]:
        """While the context lasts, read the files of this model, which is loaded next, into the page cache.

        Without a GPU nothing is read, because the models themselves need the host memory.
        """
        catalog = self._catalog
        known = model if model in catalog.models and self._memory.gpu_available else None
        with self._reading_ahead.of(known, lambda: self._fitting.files(known, catalog) if known else ()):
            yield

    def _note_dropped_copies(self, outcome: Outcome) -> None:
        if outcome.made_room:
            self._all_cooled()

    def _used(self, model: str, seconds: float) -> None:
        self._last_used[model] = now = datetime.now(UTC)
        self._served_s += seconds
        self._touch(model, now)

    def _touch(self, model: str, now: datetime) -> None:
        """Make a resident model the most recently used one."""
        resident = self._residents.pop(model, None)
        if resident is not None:
            self._residents[model] = resident.evolve(last_used=self._clock(), last_used_at=now)

    def _failed(self, model: str, failed: Failed, request: GenerationRequest | None = None) -> None:
        self.facts.failed(model, request.size.pixels if request else 0, failed)
        self.broken = self.broken or failed.code is FailureCode.DEVICE_FAULT
        log.error("engine_failed", model=model, code=failed.code, reason=failed.message, traceback=failed.traceback)
        if (reason := self._replaced_because(failed)) is not None:
            self._bus.observe(WorkerReplaced(reason=reason))
            for lost in list(self._residents):
                self._left_device(lost, "worker_died")
            self._all_cooled("worker_died")
            self._memory_is_empty()

    def _replaced_because(self, failed: Failed) -> WorkerEnd | None:
        """Why the worker process was replaced after this failure; None: it was not."""
        if not failed.worker_died:
            return "spoiled" if failed.worker_replaced else None
        if self._abandoned:
            return "abandoned"
        return "hung" if failed.code is FailureCode.WORKER_HUNG else "crashed"

    def _memory_is_empty(self) -> None:
        free = self._memory.total - self._memory.foreign
        self._memory = self._memory.evolve(allocated=0, cached=0, outside=0, free=free, host=0)

    def _blame(self, model: str, failed: Failed, *requests: GenerationRequest) -> None:
        """If the worker died, count a kill by the load or by these requests. Its death in an unload is not counted."""
        if not failed.worker_died:
            return
        self.facts.learn(model, kills=self.facts.of(model).kills.another(*requests))
        if self.quarantined(model):
            self._quarantine(model)

    def _quarantine(self, model: str) -> None:
        failure = Failure(code=FailureCode.MODEL_QUARANTINED, message=ModelQuarantined().detail)
        log.error("model_quarantined", model=model)
        self.facts.learn(model, error=Failed(code=failure.code, message=failure.message))
        self._bus.publish(ModelFailed(model=model, failure=failure))

    def apply_at_once(self, catalog: Catalog) -> Difference | None:
        """Put a catalog in force if no model may have to leave memory for it, even while a task runs or a model loads.

        None: it is not in force, and needs `apply`.
        """
        change = difference(self._catalog, catalog)
        if change.moves_models:
            return None
        self._catalog = catalog
        return change

    async def apply(self, catalog: Catalog) -> Difference:
        """Put a catalog in force. Unload and forget the models that it removes, or that must be loaded differently."""
        change = difference(self._catalog, catalog)
        for model in change.outdated:
            if model in self._residents:
                await self._unload(model, "config")
            await self._cool(model, "config")
            self.facts.forget(model)
        self._catalog = catalog
        await self._keep_budget()
        for victim in list(self._residents)[: -catalog.settings.max_resident]:
            await self._unload(victim, "config", keep_warm=True)
        return change

    async def _keep_budget(self) -> None:
        """Drop the oldest warm models until all copies fit into the host budget."""
        for kept in sorted(self._warm.values(), key=lambda kept: kept.since):
            if sum(self._in_host().values()) > self._host_budget():
                await self._cool(kept.model, "room")

    def _in_host(self) -> dict[str, int]:
        """Bytes of host memory that the weights of each model take."""
        models = (*self._warm, *self._residents)
        return {model: size for model in models if (size := self._host_bytes(model))}

    def _host_budget(self) -> int:
        """Bytes of host memory that the weights of all models may take.

        `auto` is half of the memory that would be available without them. The other half is for the page cache of
        loads, for offloaded models, and for the growth of other processes.
        """
        share = self._catalog.settings.host_cache_gb
        if share != "auto":
            return int(share * 2**30)
        return (self._memory.host_available + sum(self._in_host().values())) // 2 if self._memory.gpu_available else 0

    async def evict_idle(self, wanted: Collection[str] = ()) -> None:
        """Unload idle models that no task waits for. `wanted`: the models of waiting tasks."""
        for resident in list(self._residents.values()):
            if resident.model not in wanted and is_idle(
                resident, self._catalog.idle_minutes(resident.model), self._clock()
            ):
                await self._unload(resident.model, "idle", keep_warm=True)
        for kept in list(self._warm.values()):
            minutes = self._catalog.idle_minutes(kept.model)
            if kept.model not in wanted and minutes and self._clock() - kept.since >= minutes * 60:
                await self._cool(kept.model, "idle")

    async def unload_all(self) -> UnloadReport:
        """Unload all models, warm ones included."""
        return await self.unload(*self._residents, *self._warm)

    async def unload(self, *models: str) -> UnloadReport:
        """Unload models, and drop warm ones. Models that are not in memory are ignored."""
        found, before = [model for model in models if model in self._residents or model in self._warm], self._memory
        for model in found:
            await (self._unload(model, "asked") if model in self._residents else self._cool(model, "asked"))
        return UnloadReport(found, freed=max(0, before.held - self._memory.held), left=self._memory.held)

    async def _cool(self, model: str, reason: str) -> None:
        """Drop a warm model. Does nothing if it is not warm, for example because its worker died."""
        if model not in self._warm:
            return
        self._cooled(model, reason)
        answer = await self._executor.unload(Unload(model=model))
        if isinstance(answer, Failed):
            self._failed(model, answer)
        else:
            self._measured(answer.memory)
        await self._replace_if_much_stays()

    def _cooled(self, model: str, reason: str) -> None:
        if self._warm.pop(model, None) is not None:
            self._bus.publish(ModelCooled(model=model, reason=reason))

    def _all_cooled(self, reason: str = "room") -> None:
        for kept in list(self._warm):
            self._cooled(kept, reason)

    async def _replace_if_much_stays(self) -> None:
        """Replace the worker if it holds much memory while no model is loaded. Only its end frees that memory."""
        limit = self._catalog.settings.residual_limit_mb * 2**20
        if not self._residents and not self._warm and self._memory.held - self._floor > limit:
            log.warning("worker_recycled", left_bytes=self._memory.held, floor_bytes=self._floor)
            self._bus.observe(WorkerReplaced(reason="recycled"))
            self._engine_started(await self._executor.recycle())

    async def _make_host_room(self, resident: Resident, coming: str | None) -> bool:
        """Make room in the host budget for a model that leaves the device; returns whether it fits.

        Older warm models are dropped, but not `coming`, which is loaded next. The copies of resident models count: a
        model that came back from host memory keeps its copy until it leaves the device.
        """
        others = [kept for kept in self._warm.values() if kept.model != coming]
        movable = {resident.model, *(kept.model for kept in others)}
        fixed = sum(size for model, size in self._in_host().items() if model not in movable)
        budget = self._host_budget() - fixed
        to_drop = warm_to_drop(resident, others, budget) if budget > 0 else None
        for model in to_drop or ():
            await self._cool(model, "room")
        return to_drop is not None

    async def _unload(self, model: str, reason: str, *, keep_warm: bool = False, coming: str | None = None) -> None:
        resident = self._residents.get(model)
        if resident is None:
            return  # its worker died during another unload
        keep_warm = keep_warm and await self._make_host_room(resident, coming)
        if model not in self._residents:
            return  # its worker died while older warm models were dropped
        self._bus.publish(ModelUnloading(model=model, reason=reason))
        with self._moving_model(model, ModelState.UNLOADING):
            command = Unload(model=model, keep_warm=keep_warm, switching=reason == "switch")
            answer = await self._executor.unload(command)
        if isinstance(answer, Failed):
            self._failed(model, answer)
        else:
            self._measured(answer.memory)
            if answer.warm:
                self._warm[model] = Warm(model=model, weight_bytes=resident.weight_bytes, since=self._clock())
        if model in self._residents:
            self._left_device(model, reason)
        if reason != "switch":
            await self._replace_if_much_stays()

    def _left_device(self, model: str, reason: str) -> None:
        del self._residents[model]
        warm = model in self._warm
        log.info("model_unloaded", model=model, reason=reason, warm=warm)
        self._bus.publish(ModelUnloaded(model=model, reason=reason, warm=warm))
