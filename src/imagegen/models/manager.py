"""DynamicModelManager: the single writer of residency. Its changing methods are awaited by the run loop only."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.sources import Folders, lora_files
from imagegen.core.errors import FailureCode, LoraNotFound
from imagegen.core.events import EventBus, ModelLoaded, ModelLoading, ModelUnloaded
from imagegen.core.task import GenerationRequest, InputPictures
from imagegen.gpu.executor import GpuExecutor
from imagegen.gpu.protocol import (
    DeviceMemory,
    Failed,
    Generate,
    Generated,
    Load,
    Loaded,
    Stopped,
    Unload,
)
from imagegen.loaders.base import OnStep
from imagegen.models.residency import Resident, is_idle, victims_for

log = structlog.get_logger(__name__)


class DynamicModelManager:
    """Loads a model when it is needed, keeps at most one in device memory, and lets it go."""

    def __init__(
        self,
        catalog: Catalog,
        executor: GpuExecutor,
        bus: EventBus,
        folders: Folders,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._executor = executor
        self._bus = bus
        self._folders = folders
        self._clock = clock
        self._residents: dict[str, Resident] = {}
        self._last_used: dict[str, datetime] = {}
        self._load_seconds: dict[str, float] = {}
        self._memory = DeviceMemory()

    # -- reads that only inform; anyone may ask -----------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    @property
    def current(self) -> Resident | None:
        """The model in device memory."""
        return next(iter(self._residents.values()), None)

    @property
    def memory(self) -> DeviceMemory:
        """As last measured."""
        return self._memory

    def last_used(self, model: str) -> datetime | None:
        return self._last_used.get(model)

    def load_seconds(self, model: str) -> float | None:
        """How long its last load took; None before the first."""
        return self._load_seconds.get(model)

    def find_loras(self, request: GenerationRequest) -> tuple[str, ...]:
        """The files of the request's LoRAs. Raises LoraNotFound."""
        return tuple(map(str, lora_files(request.loras, self._folders.loras)))

    # -- changes: between two tasks, by the run loop ------------------------------------------------------------------

    async def warm_up(self) -> None:
        """Start the engine and learn what device it has."""
        answer = await self._executor.measure()
        if isinstance(answer, Failed):
            log.error("worker_start_failed", code=answer.code, traceback=answer.traceback)
        else:
            self._memory = answer.memory

    async def ensure(self, model: str) -> Failed | None:
        """Make `model` the resident one. Returns why that was not possible."""
        if model in self._residents:
            return None
        if model not in self._catalog.models:
            return Failed(code=FailureCode.MODEL_REMOVED, message="The model is no longer configured.")
        for victim in victims_for(model, self._residents.values()):
            await self._unload(victim, "switch")
        return await self._load(model)

    async def _load(self, model: str) -> Failed | None:
        self._bus.publish(ModelLoading(model=model))
        answer = await self._executor.load(Load.entry(self._catalog, model, self._folders))
        if isinstance(answer, Failed):
            self._failed(model, answer)
            return answer
        self._arrived(model, answer)
        return None

    def _arrived(self, model: str, loaded: Loaded) -> None:
        now = datetime.now(UTC)
        self._residents[model] = Resident(
            model=model,
            weight_bytes=loaded.weight_bytes,
            loaded_at=now,
            last_used_at=now,
            last_used=self._clock(),
        )
        self._memory = loaded.memory
        self._load_seconds[model] = loaded.seconds
        log.info("model_loaded", model=model, seconds=round(loaded.seconds, 3), weight_bytes=loaded.weight_bytes)
        self._bus.publish(ModelLoaded(model=model, seconds=loaded.seconds, device_bytes=loaded.weight_bytes))

    async def generate(
        self, model: str, request: GenerationRequest, pictures: InputPictures, stop: threading.Event, on_step: OnStep
    ) -> Generated | Stopped | Failed:
        """Run a request on the resident model, which `ensure` has made it."""
        try:
            loras = self.find_loras(request)
        except LoraNotFound as error:
            return Failed(code=FailureCode.LORA_NOT_FOUND, message=error.detail)
        began = self._clock()
        command = Generate(
            model=model,
            request=request,
            init_image=pictures.init_image,
            mask_image=pictures.mask_image,
            lora_files=loras,
        )
        answer = await self._executor.generate(command, stop, on_step)
        if isinstance(answer, Failed):
            self._failed(model, answer)
        elif isinstance(answer, Generated):
            self._memory = answer.memory
        self._used(model, self._clock() - began)
        return answer

    def _used(self, model: str, seconds: float) -> None:
        self._last_used[model] = datetime.now(UTC)
        resident = self._residents.get(model)
        if resident is not None:
            self._residents[model] = resident.evolve(
                last_used=self._clock(), last_used_at=self._last_used[model], served_s=resident.served_s + seconds
            )

    def _failed(self, model: str, failed: Failed) -> None:
        log.error("engine_failed", model=model, code=failed.code, reason=failed.message, traceback=failed.traceback)
        if failed.worker_died:
            for lost in list(self._residents):
                self._gone(lost, "worker_died")
            self._memory = self._memory.evolve(allocated=0, cached=0, host=0)

    async def evict_idle(self) -> None:
        """Unload what has not been used for its time."""
        for resident in list(self._residents.values()):
            if is_idle(resident, self._catalog.idle_minutes(resident.model), self._clock()):
                await self._unload(resident.model, "idle")

    async def unload_all(self) -> list[str]:
        """Unload whatever is resident; the ids of what was."""
        gone = list(self._residents)
        for model in gone:
            await self._unload(model, "asked")
        return gone

    async def _unload(self, model: str, reason: str) -> None:
        answer = await self._executor.unload(Unload(model=model))
        if isinstance(answer, Failed):
            self._failed(model, answer)
        else:
            self._memory = answer.memory
        if model in self._residents:
            self._gone(model, reason)

    def _gone(self, model: str, reason: str) -> None:
        del self._residents[model]
        log.info("model_unloaded", model=model, reason=reason)
        self._bus.publish(ModelUnloaded(model=model, reason=reason))
