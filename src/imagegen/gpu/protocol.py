"""Everything that crosses the GPU border, in both directions. Over a pipe each value is one msgpack frame."""

from typing import Annotated, Any, Literal, Self

import msgpack
from pydantic import Field, TypeAdapter

from imagegen.catalog.catalog import Catalog, GlobalSettings
from imagegen.catalog.fields import Loads, marked
from imagegen.catalog.sources import Folders
from imagegen.core.errors import FailureCode
from imagegen.core.provenance import Provenance
from imagegen.core.task import GenerationRequest, Pixels, Warnings
from imagegen.core.value import Value


class EngineOptions(Value):
    """What an engine is told once, at its start."""

    #: `auto`, `cpu`, `cuda`, `cuda:1`; a UUID (`GPU-...`, `MIG-...`) for a worker process only.
    device: str = "auto"
    #: Where compiled code is kept from one process to the next; empty: where torch's own default says.
    compiled_dir: str = ""


# -- commands ----------------------------------------------------------------------------------------------------------


class Load(Value):
    """Bring a model into device memory. Answer: Loaded or Failed."""

    kind: Literal["load"] = "load"
    model: str
    #: The entry of models.yaml, as its spec class dumps it.
    spec: dict[str, Any]
    #: The section `global`, likewise, as far as loading depends on it.
    settings: dict[str, Any]
    models_dir: str
    loras_dir: str
    #: Share of the device's memory that it may take (CUDA only).
    memory_fraction: float = 0.9

    @classmethod
    def entry(cls, catalog: Catalog, model: str, folders: Folders) -> Self:
        """The command for an entry of the catalog. Raises ModelNotFound."""
        return cls(
            model=model,
            spec=catalog.model(model).model_dump(mode="json"),
            settings=catalog.settings.model_dump(mode="json", include=set(marked(GlobalSettings, Loads))),
            models_dir=str(folders.models),
            loras_dir=str(folders.loras),
            memory_fraction=catalog.memory_fraction(model),
        )


class Unload(Value):
    """Drop a model and give its memory back. Answer: Unloaded or Failed."""

    kind: Literal["unload"] = "unload"
    model: str
    #: Let it stay in host memory: the next Load of the same entry is a copy.
    keep_warm: bool = False
    #: A Load comes next: what that model may share (T5, CLIP, VAE) stays where it is until then.
    switching: bool = False


class Generate(Value):
    """Make the pictures of a request, or of several. Answer: any number of Step, then Generated, Stopped or Failed."""

    kind: Literal["generate"] = "generate"
    model: str
    request: GenerationRequest
    init_image: bytes | None = None
    #: With `init_image`: its white part is drawn anew, the black part stays.
    mask_image: bytes | None = None
    #: The files of `request.loras`.
    lora_files: tuple[str, ...] = ()
    #: Steps of each picture that are to come with a preview.
    previews: int = 0
    #: Whether all pictures are made in one call of the model; a Step is then one of each of them.
    together: bool = False
    #: Only together: further requests, which differ from `request` in words and seeds alone.
    companions: tuple[GenerationRequest, ...] = ()


class StopGenerating(Value):
    """End the running Generate between two steps. No answer of its own; late ones are ignored."""

    kind: Literal["stop"] = "stop"


class Measure(Value):
    """How is the device? Answer: Measured."""

    kind: Literal["measure"] = "measure"


Command = Annotated[Load | Unload | Generate | StopGenerating | Measure, Field(discriminator="kind")]


# -- answers -----------------------------------------------------------------------------------------------------------


#: Device memory that a process takes beside what torch's allocator holds: its CUDA context and the loaded kernels. An
#: estimate: nothing tells a process its own share, and it depends on the card and on what has run.
CONTEXT_BYTES = 512 * 2**20


class DeviceMemory(Value):
    """Measured by the engine's process. Bytes."""

    gpu_available: bool = False
    gpu_name: str | None = None
    allocated: int = 0
    #: Held by torch's allocator, in use or not.
    cached: int = 0
    #: Of this process's models, beside torch's allocator: what an engine of their own takes.
    outside: int = 0
    #: Of the whole device: what no process has taken.
    free: int = 0
    total: int = 0
    #: Why models run on the CPU although a card was asked for, or there are signs of one. None: they should, or do not.
    cuda_problem: str | None = None
    #: Resident host memory of the engine's process.
    host: int = 0
    #: Of the machine, as far as this process may use it.
    host_total: int = 0
    #: Of that, what can be taken without swapping.
    host_available: int = 0

    @property
    def held(self) -> int:
        """What models take: device memory, or host memory where there is no device."""
        return self.cached if self.gpu_available else self.host

    @property
    def foreign(self) -> int:
        """About what other processes hold of the device: what is neither free nor this process's own."""
        ours = self.cached + self.outside + CONTEXT_BYTES
        return max(0, self.total - self.free - ours) if self.gpu_available else 0

    def capacity(self, fraction: float) -> int:
        """What models may take: that share of the device's memory, or the machine's where there is none; 0: unknown."""
        return int(self.total * fraction) if self.gpu_available else self.host_total


#: A worker may send no larger preview.
MAX_PREVIEW_BYTES = 65_536


class Step(Value):
    kind: Literal["step"] = "step"
    step: int
    total: int
    #: JPEG: what the picture will be like. Empty: none was asked for.
    preview: bytes = Field(default=b"", max_length=MAX_PREVIEW_BYTES)


class Outcome(Value):
    """The end of something that takes memory."""

    #: The memory did not suffice at first: all warm models were dropped for a second attempt.
    made_room: bool = False


class Loaded(Outcome):
    kind: Literal["loaded"] = "loaded"
    seconds: float
    #: Whether it came from host memory.
    warm: bool = False
    #: Bytes of the model's parameters and buffers.
    weight_bytes: int
    #: Of those, the most that are in device memory at one time: fewer than all where they are offloaded.
    device_bytes: int = Field(default_factory=lambda told: told["weight_bytes"])
    #: Host memory that they take beside the device's.
    host_bytes: int = 0
    #: Of those, what had to be brought to the device; the rest was there.
    moved_bytes: int = 0
    #: Of `weight_bytes`, the parts that other models may share: a model with a part of the same name has the very same.
    shared: dict[str, int] = Field(default_factory=dict)
    memory: DeviceMemory


class Unloaded(Value):
    kind: Literal["unloaded"] = "unloaded"
    #: Whether it stays in host memory, as `keep_warm` asked; not every model can.
    warm: bool = False
    memory: DeviceMemory


class Generated(Outcome):
    kind: Literal["generated"] = "generated"
    #: Those of `request` first, then those of its companions.
    images: tuple[Pixels, ...]
    #: With the number of pictures in the call.
    provenance: Provenance
    #: Those of each request, in the order of `images`; empty: there are none.
    warnings: tuple[Warnings, ...] = ()
    memory: DeviceMemory
    #: Device memory that the call took at most beyond what was in use before it; 0: unknown.
    working_bytes: int = 0


class Stopped(Outcome):
    """Ended by StopGenerating."""

    kind: Literal["stopped"] = "stopped"


class Failed(Outcome):
    """What an exception becomes at the border: no frame and no tensor survives in it."""

    kind: Literal["failed"] = "failed"
    code: FailureCode
    #: May reach the caller: no path, no secret.
    message: str
    #: For the log.
    traceback: str = ""
    #: Out of memory: the bytes that it would have taken at least, as far as it got. 0: unknown.
    need_bytes: int = 0

    @property
    def worker_died(self) -> bool:
        """Whether everything that was resident is gone with its process."""
        return self.code in (FailureCode.WORKER_CRASHED, FailureCode.WORKER_HUNG)


class Measured(Value):
    kind: Literal["measured"] = "measured"
    memory: DeviceMemory


Answer = Annotated[
    Step | Loaded | Unloaded | Generated | Stopped | Failed | Measured,
    Field(discriminator="kind"),
]

_COMMANDS: TypeAdapter[Command] = TypeAdapter(Command)
_ANSWERS: TypeAdapter[Answer] = TypeAdapter(Answer)


def pack(value: Value) -> bytes:
    """One frame."""
    # A traceback may hold what no encoding takes: file names with bytes that are no text.
    frame = msgpack.packb(value.model_dump(), unicode_errors="replace")
    assert isinstance(frame, bytes)
    return frame


def unpack_command(frame: bytes) -> Command:
    return _COMMANDS.validate_python(msgpack.unpackb(frame))


def unpack_answer(frame: bytes) -> Answer:
    return _ANSWERS.validate_python(msgpack.unpackb(frame))
