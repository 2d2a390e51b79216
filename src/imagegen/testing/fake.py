"""The family `fake`, which has no weights: the fields of an entry set its times, its size and its faults."""

import ctypes
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Literal, NoReturn

from PIL import Image
from pydantic import Field

import imagegen
from imagegen.catalog.catalog import ModelSpec
from imagegen.catalog.fields import Text
from imagegen.catalog.sources import Folders, local_folder
from imagegen.core.provenance import Provenance
from imagegen.core.stages import StageTime
from imagegen.core.task import GenerationRequest, Pixels
from imagegen.loaders.base import Inputs, LoadedModel, ModelLoader, OnStep, Placement
from imagegen.loaders.previews import wanted_steps
from imagegen.loaders.stages import StageClock

Fault = Literal[
    "none", "error", "out_of_memory", "full_cache", "device_fault", "abort", "segfault", "exit", "hang", "spin"
]


class FakeSpec(ModelSpec):
    """Pictures of one colour, made by waiting."""

    type: Literal["fake"]
    pipeline_class: Literal["FakePipeline"] = "FakePipeline"
    load_seconds: float = Field(default=0, ge=0, le=3600)
    step_seconds: float = Field(default=0, ge=0, le=3600)
    read_seconds_per_mib: float = Field(
        default=0,
        ge=0,
        le=3600,
        description="How long its load takes for each MiB of the file that `local_path` names.",
    )
    memory_mb: int = Field(default=0, ge=0, le=65_536, description="Host memory that the loaded model holds.")
    fault: Fault = Field(default="none", description="The fault, and when it occurs.")
    fault_at: Literal["load", "step"] = "step"
    fault_prompt: Text = Field(
        default="", description="Only requests whose prompt contains this text have the fault; empty: all."
    )
    companion_cost: float = Field(
        default=0,
        ge=0,
        le=10,
        description="The share of a picture's time that each further picture of a call adds.",
    )
    grain: bool = Field(
        default=False, description="Whether the picture has the grain of a photograph, which no PNG makes small."
    )
    most_pictures: int = Field(
        default=0, ge=0, description="The most pictures of one call for which it has enough memory; 0: any number."
    )

    def check_batch(self) -> None:
        """Do nothing: a call can make any number of pictures."""


class FakeModelLoader(ModelLoader[FakeSpec]):
    """Waits instead of loading. If the entry names a file, it reads that file."""

    def __init__(self, sizes: Mapping[str, int | None] = MappingProxyType({})) -> None:
        """`sizes`: `least_bytes` of the models with these names, instead of `memory_mb`; None: unknown."""
        self._sizes = sizes

    def load(self, spec: FakeSpec, placement: Placement) -> LoadedModel:
        time.sleep(spec.load_seconds)
        for file in self.files(spec, placement.folders):
            with file.open("rb") as stream:
                while stream.read(2**20):
                    time.sleep(spec.read_seconds_per_mib)
        if spec.fault_at == "load":
            cause(spec.fault)
        return FakeModel(spec)

    def least_bytes(self, spec: FakeSpec, placement: Placement) -> int | None:
        return self._sizes.get(spec.name, spec.memory_mb * 2**20)

    def files(self, spec: FakeSpec, folders: Folders) -> Sequence[Path]:
        file = local_folder(spec, folders.models)
        return [file] if file is not None and file.is_file() else []


class FakeModel(LoadedModel):
    """Fills each picture with a colour that depends on its seed."""

    def __init__(self, spec: FakeSpec) -> None:
        self._spec = spec
        self._stages = StageClock()
        self._trimmed = False
        # Written once, so that the pages are resident.
        self._ballast = bytearray(os.urandom(4096) * (256 * spec.memory_mb))

    def provenance(self, inputs: Inputs) -> Provenance:
        return Provenance(
            weights=(f"fake:{self._spec.memory_mb}",),
            loader=self._spec.type,
            pipeline=self._spec.pipeline_class,
            dtype="uint8",
            device="none",
            versions={"imagegen": imagegen.__version__},
        )

    @property
    def weight_bytes(self) -> int:
        return len(self._ballast)

    @property
    def stages(self) -> Sequence[StageTime]:
        return self._stages.stages

    def generate(self, request: GenerationRequest, inputs: Inputs, on_step: OnStep) -> list[Pixels]:
        self._stages.begin()
        self._stages.picture()
        total = request.steps * request.batch_size
        for step in range(total):
            _wait(self._spec.step_seconds)
            if self._spec.fault_at == "step" and self._spec.fault_prompt in request.prompt:
                self._cause()
            wanted = step % request.steps + 1 in wanted_steps(inputs.previews, request.steps)
            on_step(step + 1, total, _preview(request) if wanted else b"")
        self._stages.decoding()
        pictures = [self._picture(request, seed) for seed in request.seeds]
        self._stages.finish()
        return pictures

    def generate_together(self, requests: Sequence[GenerationRequest], on_step: OnStep) -> list[Pixels]:
        pictures, steps = [(request, seed) for request in requests for seed in request.seeds], requests[0].steps
        if 0 < self._spec.most_pictures < len(pictures):
            cause("out_of_memory")
        self._stages.begin()
        self._stages.picture()
        for step in range(steps):
            _wait(self._spec.step_seconds * (1 + self._spec.companion_cost * (len(pictures) - 1)))
            if self._spec.fault_at == "step" and any(self._spec.fault_prompt in it.prompt for it in requests):
                self._cause()
            on_step(step + 1, steps)
        self._stages.decoding()
        made = [self._picture(request, seed) for request, seed in pictures]
        self._stages.finish()
        return made

    def _picture(self, request: GenerationRequest, seed: int) -> Pixels:
        size = request.size.pixels
        rgb = grain(size) if self._spec.grain else colour_of(seed) * size
        return Pixels(width=request.width, height=request.height, seed=seed, rgb=rgb)

    def _cause(self) -> None:
        if not (self._spec.fault == "full_cache" and self._trimmed):
            cause(self._spec.fault)

    def trim(self) -> None:
        self._trimmed = True


@cache
def grain(pixels: int) -> bytes:
    """As many pixels of one colour with noise of 4 bits in each channel."""
    return bytes(96 + (it & 15) for it in Random(0).randbytes(3 * pixels))


def _wait(seconds: float) -> None:
    if seconds:  # a sleep of no seconds costs a switch of threads
        time.sleep(seconds)


def colour_of(seed: int) -> bytes:
    """The colour of a seed: red, green, blue."""
    return (seed * 2654435761 % 2**32).to_bytes(4, "big")[:3]


def _preview(request: GenerationRequest) -> bytes:
    colour = tuple(colour_of(request.seed))
    Image.new("RGB", (8, 8), colour).save(file := io.BytesIO(), "JPEG")
    return file.getvalue()


def cause(fault: Fault) -> None:
    """Cause the fault in this process."""
    _FAULTS[fault]()


def _raise(error: Exception) -> NoReturn:
    raise error


def _spin() -> NoReturn:
    while True:
        pass


_FAULTS: Mapping[Fault, Callable[[], object]] = MappingProxyType(
    {
        "none": lambda: None,
        "error": lambda: _raise(RuntimeError("a fake fault")),
        "out_of_memory": lambda: _raise(MemoryError("fake")),
        # Until `trim()` is called.
        "full_cache": lambda: _raise(MemoryError("fake")),
        "device_fault": lambda: _raise(RuntimeError("CUDA error: an illegal memory access was encountered")),
        "abort": os.abort,
        "segfault": lambda: ctypes.string_at(0),
        "exit": lambda: os._exit(137),
        "hang": lambda: time.sleep(3600),
        "spin": _spin,
    }
)
