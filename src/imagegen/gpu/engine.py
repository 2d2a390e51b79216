"""The Engine protocol, and LocalEngine: loaded models in this very process."""

import gc
import os
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from imagegen.catalog.catalog import GlobalSettings
from imagegen.catalog.sources import Folders, missing
from imagegen.core.errors import FailureCode, WeightsMissing
from imagegen.gpu.memory import classify, forget_peak, give_back, limit, measure, peak
from imagegen.gpu.protocol import (
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
from imagegen.loaders import FAMILIES
from imagegen.loaders.base import Family, Inputs, LoadedModel, OnStep, Placement, Stop, StopFlag
from imagegen.loaders.parts import Parts

T = TypeVar("T")
OutcomeT = TypeVar("OutcomeT", bound=Outcome)


class Engine(Protocol):
    """Owns the loaded models. Every method blocks, is called from one thread, and returns instead of raising."""

    def load(self, command: Load) -> Loaded | Failed:
        """Add a model to those in memory. Making room is the caller's business."""
        ...

    def unload(self, command: Unload) -> Unloaded | Failed:
        """Drop a model, or let it stay warm; dropping one that is not there is no failure."""
        ...

    def generate(self, command: Generate, stop: StopFlag, on_step: OnStep) -> Generated | Stopped | Failed:
        """Run a loaded model. `stop` ends it between two steps; another thread may set it."""
        ...

    def measure(self) -> Measured | Failed:
        """Memory now; the first call also warms the engine up."""
        ...

    def abort(self) -> bool:
        """From any thread: end what is running at the price of everything loaded. False: this engine cannot."""
        ...

    @property
    def bytes_read(self) -> int:
        """From any thread: bytes that its process has read since the load under way began."""
        ...

    def close(self) -> None:
        """Drop everything, and the process where the engine has one."""
        ...


class _Kept(NamedTuple):
    """A model in memory, and the command that brought it there: another entry of the same name is another model."""

    entry: str
    model: LoadedModel


class LocalEngine:
    """Runs pipelines in the calling thread."""

    def __init__(self, options: EngineOptions, families: Mapping[str, Family] = FAMILIES) -> None:
        self._options = options
        self._families = families
        self._models: dict[str, _Kept] = {}
        #: Those that left the device and stayed in host memory.
        self._warm: dict[str, _Kept] = {}
        self._parts = Parts()
        self._device: str | None = None
        #: Since the last load began.
        self._reading: Reading | None = None

    @property
    def bytes_read(self) -> int:
        return self._reading.bytes if self._reading else 0

    @property
    def device(self) -> str:
        """The device's name, found out at the first use: it takes an import of torch."""
        if self._device is None:
            self._device = _choose_device(self._options)
        return self._device

    def load(self, command: Load) -> Loaded | Failed:
        self._reading = Reading(os.getpid())
        return self._with_room(lambda: at_border(lambda: self._load(command), FailureCode.LOAD_FAILED, self._give_back))

    def _load(self, command: Load) -> Loaded:
        began = time.monotonic()
        forget_peak(self.device)
        limit(self.device, command.memory_fraction)
        entry = command.model_dump_json()
        warm = self._come_back(command.model, entry)
        try:
            model = warm or self._open(command)
        finally:
            self._parts.let_go()
        self._models[command.model] = _Kept(entry, model)
        return Loaded(
            seconds=time.monotonic() - began,
            warm=warm is not None,
            weight_bytes=model.weight_bytes,
            moved_bytes=model.moved_bytes,
            memory=measure(self.device),
        )

    def _come_back(self, model: str, entry: str) -> LoadedModel | None:
        """The warm model, on the device again; None where none of the same entry is warm."""
        kept = self._warm.pop(model, None)
        if kept is None or kept.entry != entry:
            return None
        kept.model.to_device()
        return kept.model

    def _open(self, command: Load) -> LoadedModel:
        family = self._families[command.spec["type"]]
        spec = family.spec.model_validate(command.spec)
        folders = Folders(Path(command.models_dir), Path(command.loras_dir))
        placement = Placement(self.device, GlobalSettings.model_validate(command.settings), folders, self._parts)
        try:
            return family.loader.load(spec, placement)
        except WeightsMissing as error:
            if not missing(spec, folders.models):
                raise
            advice = f"`imagegen models pull {command.model}` fetches what is missing."
            raise WeightsMissing(f"{error.detail.rstrip('.')}. {advice}") from None

    def unload(self, command: Unload) -> Unloaded | Failed:
        return at_border(lambda: self._unload(command), FailureCode.GENERATION_FAILED, self._give_back)

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
        self._give_back()
        return Unloaded(warm=warm, memory=measure(self.device))

    def generate(self, command: Generate, stop: StopFlag, on_step: OnStep) -> Generated | Stopped | Failed:
        self._parts.let_go()

        def step(done: int, total: int, *preview: bytes) -> None:
            on_step(done, total, *preview)
            if stop.is_set():
                raise Stop

        def attempt() -> Generated | Stopped | Failed:
            with suppress(Stop):
                return at_border(lambda: self._generate(command, step), FailureCode.GENERATION_FAILED, self._give_back)
            return Stopped()

        # For pictures that can be made one by one, no warm model is dropped.
        return attempt() if command.together else self._with_room(attempt)

    def _with_room(self, attempt: Callable[[], OutcomeT | Failed]) -> OutcomeT | Failed:
        """Once more, with everything given up that is only kept for speed, if the memory did not suffice."""
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
        memory = measure(self.device)
        if failed.code is not FailureCode.OUT_OF_MEMORY or not memory.total:
            return failed
        used, total = (size / 2**30 for size in (memory.allocated, memory.total))
        numbers = f"The weights take {used:.1f} of {total:.1f} GiB, and the rest did not suffice."
        need = peak(self.device, failed.traceback)
        return failed.evolve(message=f"{failed.message} {numbers}", need_bytes=need)

    def _generate(self, command: Generate, on_step: OnStep) -> Generated:
        forget_peak(self.device)
        inputs = Inputs(command.init_image, command.mask_image, [Path(file) for file in command.lora_files])
        inputs = inputs._replace(previews=command.previews)
        model = self._models[command.model].model
        if not command.together:
            images, in_call = model.generate(command.request, inputs, on_step), 1
        else:
            images = model.generate_together([command.request, *command.companions], on_step)
            in_call = len(images)
        made_by = model.provenance(inputs).evolve(call_pictures=in_call)
        return Generated(images=tuple(images), memory=measure(self.device), provenance=made_by)

    def measure(self) -> Measured | Failed:
        self._parts.let_go()
        return at_border(lambda: Measured(memory=measure(self.device)), FailureCode.GENERATION_FAILED, gc.collect)

    def abort(self) -> bool:
        """A thread cannot be ended from outside; the stop flag is all there is."""
        return False

    def close(self) -> None:
        self._parts.let_go()
        for kept in (*self._models.values(), *self._warm.values()):
            kept.model.close()
        self._models.clear()
        self._warm.clear()
        gc.collect()

    def _give_back(self) -> None:
        if self._device is not None:
            give_back(self._device)


def at_border(work: Callable[[], T], during: FailureCode, clean_up: Callable[[], object]) -> T | Failed:
    """Run `work`; flatten what it raises (but Stop) to a Failed that keeps no frame, hence no tensor, alive."""
    try:
        return work()
    except Stop:
        raise
    except Exception as error:  # noqa: BLE001 - the GPU border is the one place that catches everything
        code, message = classify(error, during)
        failed = Failed(code=code, message=message, traceback="".join(traceback.format_exception(error)))
        traceback.clear_frames(error.__traceback__)
    if failed.code is not FailureCode.DEVICE_FAULT:
        clean_up()
    return failed


def _choose_device(options: EngineOptions) -> str:
    import torch

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not device.startswith("cuda"):
        # One core stays free for the API. Threads that share a core spin for each other: measured 35 times slower.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    return device
