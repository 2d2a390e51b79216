"""The Engine protocol, and LocalEngine, which runs models in this process."""

import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

from imagegen.catalog.catalog import GlobalSettings
from imagegen.catalog.fields import Request, marked
from imagegen.catalog.sources import Folders, missing
from imagegen.core.errors import FailureCode, UnsupportedDevice, WeightsMissing
from imagegen.gpu.devices import Device, choose
from imagegen.gpu.importing import Importing
from imagegen.gpu.memory import (
    BROKEN_CONTEXT,
    causes,
    classify,
    context_works,
    forget_peak,
    give_back,
    limit,
    measure,
    needed,
    peak,
)
from imagegen.gpu.protocol import (
    DeviceMemory,
    EngineOptions,
    Failed,
    Generate,
    Generated,
    Load,
    Loaded,
    Measured,
    Outcome,
    Stopped,
    Unload,
    Unloaded,
)
from imagegen.gpu.reading import Reading
from imagegen.loaders.base import Inputs, LoadedModel, OnStep, Placement, Stop, StopFlag, families_named
from imagegen.loaders.parts import Parts

#: A smaller `foreign` is within the error of its estimate.
LEAST_FOREIGN_BYTES = 2**30

#: The folders of torch's compiler and of Triton. Their own defaults are below the temporary folder, which every user of
#: the machine can write to and which a restart empties, and in the home folder.
COMPILER_CACHES: Mapping[str, str] = MappingProxyType(
    {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
)

#: Makes diffusers read the files of a part at the same time, each in a thread. diffusers reads the variable when it is
#: imported. Not set on a CPU, where threads that cast weights wait for each other on shared cores.
PARALLEL_LOADING = ("HF_ENABLE_PARALLEL_LOADING", "yes")

T = TypeVar("T")
OutcomeT = TypeVar("OutcomeT", bound=Outcome)


class Engine(Protocol):
    """Owns the loaded models. Every method blocks, is called from one thread, and returns instead of raising."""

    def load(self, command: Load) -> Loaded | Failed:
        """Load a model beside those in memory. The caller has evicted others if that is necessary."""
        ...

    def unload(self, command: Unload) -> Unloaded | Failed:
        """Unload a model, or keep it warm. Unloading a model that is not loaded succeeds."""
        ...

    def generate(self, command: Generate, stop: StopFlag, on_step: OnStep) -> Generated | Stopped | Failed:
        """Run a loaded model. `stop` ends it between two steps; another thread may set it."""
        ...

    def measure(self) -> Measured | Failed:
        """Memory now; the first call also warms the engine up."""
        ...

    def abort(self) -> bool:
        """End the running call, from any thread. All loaded models are lost. False: this engine cannot do that."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes that the engine's process has read since the running load began. From any thread."""
        ...

    @property
    def pid(self) -> int | None:
        """The process that holds the models; None: there is none now. From any thread."""
        ...

    def close(self) -> None:
        """Unload everything, and end the worker process if the engine has one."""
        ...


class _Kept(NamedTuple):
    """A model in memory, and the command that loaded it: a different entry of the same name is a different model."""

    entry: str
    model: LoadedModel
    #: Share of the device's memory that the process may take while this model loads or works.
    memory_fraction: float


class LocalEngine:
    """Runs pipelines in the calling thread."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._families = families_named(options.families)
        self._models: dict[str, _Kept] = {}
        #: The models that left the device and stay in host memory.
        self._warm: dict[str, _Kept] = {}
        self._parts = Parts()
        self._chosen: Device | None = None
        #: Whether the libraries' objects are frozen: the garbage collector ignores them.
        self._libraries_frozen = False
        self._importing = Importing()
        #: What the process has read since the latest load began.
        self._reading: Reading | None = None

    @property
    def bytes_read(self) -> int:
        return self._reading.bytes if self._reading else 0

    @property
    def pid(self) -> int | None:
        return os.getpid()

    @property
    def device(self) -> str:
        """The device. It is determined at the first use, because that imports torch unless it is `cpu` by request."""
        return self._choose().name

    def _choose(self) -> Device:
        if self._chosen is None:
            if self._options.compiled_dir:
                for variable, folder in COMPILER_CACHES.items():
                    os.environ.setdefault(variable, str(Path(self._options.compiled_dir, folder)))
            with self._importing:
                self._chosen = choose(self._options.device)
            if self._chosen.name != "cpu":
                os.environ.setdefault(*PARALLEL_LOADING)
        return self._chosen

    def load(self, command: Load) -> Loaded | Failed:
        self._reading = Reading(os.getpid())
        return self._with_room(lambda: self._at_border(lambda: self._load(command), FailureCode.LOAD_FAILED))

    def _load(self, command: Load) -> Loaded:
        began = time.monotonic()
        problem = self._choose().problem
        if problem is not None and self._options.device != "auto":
            raise UnsupportedDevice(f"The card that IMAGEGEN_DEVICE names cannot be used: {problem}")
        forget_peak(self.device)
        limit(self.device, command.memory_fraction)
        entry = self._entry(command)
        warm = self._come_back(command.model, entry)
        try:
            model = warm or self._open(command)
        finally:
            self._parts.let_go()
        self._models[command.model] = _Kept(entry, model, command.memory_fraction)
        return Loaded(
            seconds=time.monotonic() - began,
            warm=warm is not None,
            weight_bytes=model.weight_bytes,
            device_bytes=model.device_bytes,
            host_bytes=model.host_bytes,
            moved_bytes=model.moved_bytes,
            shared={part.name: part.bytes for part in model.parts if part.name},
            memory=self._measure(),
        )

    def _entry(self, command: Load) -> str:
        """The fields of the entry that a load depends on. Entries that differ in other fields are the same model."""
        not_loaded = marked(self._families[command.spec["type"]].spec, Request)
        spec = {name: value for name, value in command.spec.items() if name not in not_loaded}
        return command.evolve(spec=spec).model_dump_json()

    def _come_back(self, model: str, entry: str) -> LoadedModel | None:
        """Move the warm model back to the device; None: no model of the same entry is warm."""
        kept = self._warm.pop(model, None)
        if kept is None or kept.entry != entry:
            return None
        kept.model.to_device()
        return kept.model

    def _open(self, command: Load) -> LoadedModel:
        family = self._families[command.spec["type"]]
        spec = family.spec.model_validate(command.spec)
        folders = Folders(Path(command.models_dir), Path(command.loras_dir))
        settings = GlobalSettings.model_validate(command.settings)
        placement = Placement(self.device, settings, folders, self._parts, self._importing_pipeline)
        try:
            return family.loader.load(spec, placement)
        except WeightsMissing as error:
            if not missing(spec, folders.models):
                raise
            advice = f"`imagegen models pull {command.model}` fetches what is missing."
            raise WeightsMissing(f"{error.detail.rstrip('.')}. {advice}") from None

    def unload(self, command: Unload) -> Unloaded | Failed:
        return self._at_border(lambda: self._unload(command), FailureCode.GENERATION_FAILED)

    def _unload(self, command: Unload) -> Unloaded:
        kept = self._models.pop(command.model, None) or self._warm.pop(command.model, None)
        if kept is not None and command.switching:
            self._parts.hold(kept.model.parts)
        warm = kept is not None and command.keep_warm and kept.model.to_host()
        if kept is not None and warm:
            self._warm[command.model] = kept
        elif kept is not None:
            kept.model.close()
        del kept
        give_back(self.device, switching=command.switching)
        return Unloaded(warm=warm, memory=self._measure())

    def generate(self, command: Generate, stop: StopFlag, on_step: OnStep) -> Generated | Stopped | Failed:
        self._parts.let_go()

        def step(done: int, total: int, preview: bytes = b"") -> None:
            on_step(done, total, preview)
            if stop.is_set():
                raise Stop

        def attempt() -> Generated | Stopped | Failed:
            with suppress(Stop):
                return self._at_border(lambda: self._generate(command, step), FailureCode.GENERATION_FAILED)
            return Stopped()

        # A call of several pictures drops no warm model: the service makes its pictures one by one instead.
        return attempt() if command.together else self._with_room(attempt)

    def _with_room(self, attempt: Callable[[], OutcomeT | Failed]) -> OutcomeT | Failed:
        """Run `attempt`. If it runs out of memory, free everything that is kept only for speed, and run it again."""
        outcome = attempt()
        if not (isinstance(outcome, Failed) and outcome.code is FailureCode.OUT_OF_MEMORY):
            return outcome
        for kept in self._models.values():
            kept.model.trim()
        self._parts.let_go()
        self._warm.clear()
        self._give_back()
        outcome = attempt()
        if isinstance(outcome, Failed):
            outcome = self._with_numbers(outcome)
        return outcome.evolve(made_room=True)

    def _with_numbers(self, failed: Failed) -> Failed:
        if failed.code is not FailureCode.OUT_OF_MEMORY:
            return failed
        memory = self._measure()
        if not memory.total:
            return failed
        held, total, free, foreign = (
            f"{size / 2**30:.1f}"
            for size in (memory.cached + memory.outside, memory.total, memory.free, memory.foreign)
        )
        others = f" other processes hold about {foreign}," if memory.foreign >= LEAST_FOREIGN_BYTES else ""
        numbers = f"Of the card's {total} GiB, this process holds {held},{others} and {free} are free."
        need_bytes = needed(self.device, failed.traceback)
        return failed.evolve(message=f"{failed.message} {numbers}", need_bytes=need_bytes)

    def _generate(self, command: Generate, on_step: OnStep) -> Generated:
        forget_peak(self.device)
        before, kept = self._measure().allocated, self._models[command.model]
        limit(self.device, kept.memory_fraction)
        lora_files = [Path(file) for file in command.lora_files]
        inputs = Inputs(command.init_image, command.mask_image, lora_files, command.previews)
        model = kept.model
        requests = [command.request, *command.companions]
        if not command.together:
            images, in_call = model.generate(command.request, inputs, on_step), 1
        else:
            images = model.generate_together(requests, on_step)
            in_call = len(images)
        warnings = tuple(tuple(model.warnings(request)) for request in requests)
        made_by = model.provenance(inputs).evolve(call_pictures=in_call)
        working_bytes = max(0, peak(self.device) - before)
        memory = self._measure()
        return Generated(
            images=tuple(images),
            memory=memory,
            provenance=made_by,
            warnings=warnings if any(warnings) else (),
            tokens=tuple(tuple(model.tokens(request)) for request in requests),
            working_bytes=working_bytes,
            stages=tuple(model.stages),
        )

    def measure(self) -> Measured | Failed:
        self._parts.let_go()
        return self._at_border(lambda: Measured(memory=self._measure()), FailureCode.GENERATION_FAILED)

    def _measure(self) -> DeviceMemory:
        device = self._choose()
        outside = sum(kept.model.outside_bytes for kept in self._models.values())
        return measure(device.name).evolve(cuda_problem=device.problem, outside=outside)

    def abort(self) -> bool:
        """A thread cannot be ended from outside. The stop flag ends the call between two steps."""
        return False

    def close(self) -> None:
        self._parts.let_go()
        for kept in (*self._models.values(), *self._warm.values()):
            kept.model.close()
        self._models.clear()
        self._warm.clear()
        gc.collect()

    def _give_back(self) -> None:
        if self._chosen is not None:
            give_back(self._chosen.name)

    def _context_works(self) -> bool:
        return self._chosen is None or context_works(self._chosen.name)

    def _at_border(self, work: Callable[[], T], during: FailureCode) -> T | Failed:
        outcome = at_border(work, during, self._give_back, self._context_works)
        return outcome.evolve(spoiled=True) if isinstance(outcome, Failed) and self._importing.failed else outcome

    @contextmanager
    def _importing_pipeline(self) -> Iterator[None]:
        with self._importing:
            yield
        if self.device == "cpu":
            _share_cores()
        self._freeze_libraries()

    def _freeze_libraries(self) -> None:
        """Exclude the objects in memory from later garbage collections, unless there is a model among them.

        torch, diffusers and transformers have 431,000 objects. A collection takes 0.3 s or more to visit them
        (measured on a CPU).
        """
        if not (self._libraries_frozen or self._models or self._warm):
            self._libraries_frozen = True
            gc.freeze()


def at_border(
    work: Callable[[], T],
    during: FailureCode,
    clean_up: Callable[[], object],
    context_works: Callable[[], bool] = lambda: True,
) -> T | Failed:
    """Run `work`. Any exception but Stop becomes a Failed, which keeps no frame and thus no tensor alive.

    After a failure, `context_works` tells whether the device still works. If it does not, the code is DEVICE_FAULT,
    whatever was raised.
    """
    try:
        return work()
    except Stop:
        raise
    except Exception as error:  # noqa: BLE001 - the GPU border is the one place that catches everything
        code, message = classify(error, during)
        failed = Failed(code=code, message=message, traceback="".join(traceback.format_exception(error)))
        for cause in causes(error):
            traceback.clear_frames(cause.__traceback__)
    if failed.code is not FailureCode.DEVICE_FAULT and not context_works():
        failed = failed.evolve(code=FailureCode.DEVICE_FAULT, message=BROKEN_CONTEXT)
    if failed.code is not FailureCode.DEVICE_FAULT:
        clean_up()
    return failed


def _share_cores() -> None:
    """Leave one core free for the API: threads that must share a core are 35 times slower, measured."""
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
