"""All messages that cross the GPU border, in both directions. Over a pipe each is one msgpack frame."""

from typing import Annotated, Any, Literal, Self

import msgpack
from pydantic import Field, TypeAdapter

from imagegen.catalog.catalog import Catalog, GlobalSettings
from imagegen.catalog.fields import Loads, marked
from imagegen.catalog.sources import Folders
from imagegen.core.errors import FailureCode
from imagegen.core.provenance import Provenance
from imagegen.core.stages import StageTime
from imagegen.core.task import GenerationRequest, Pixels, TokensRead, Warnings
from imagegen.core.value import Value
from imagegen.loaders import PRODUCT


class EngineOptions(Value):
    """The options of an engine, set at its start."""

    #: `auto`, `cpu`, `cuda`, `cuda:1`; a UUID (`GPU-...`, `MIG-...`) for a worker process only.
    device: str = "auto"
    #: The folder for compiled code, which later processes reuse; empty: torch's default.
    compiled_dir: str = ""
    #: The folder for temporary files of a worker process, unless the operator has set TMPDIR. It is emptied when a
    #: worker starts. Empty text: Python's default.
    temporary_dir: str = ""
    #: The table of model families, as `module:attribute`; the engine's process imports it. No setting changes it.
    families: str = Field(default=PRODUCT, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


# -- commands ----------------------------------------------------------------------------------------------------------


class Traced(Value):
    """A command that passes on the ids of the service's log context."""

    #: Ids that the worker adds to its lines of the log: `task_id`, `request_id`, `model`.
    log_context: dict[str, str] = Field(default_factory=dict)


class Load(Traced):
    """Bring a model into device memory. Answer: Loaded or Failed."""

    kind: Literal["load"] = "load"
    model: str
    #: The entry of models.yaml, as its spec class dumps it.
    spec: dict[str, Any]
    #: The fields of the section `global` that a load depends on.
    settings: dict[str, Any]
    models_dir: str
    loras_dir: str
    #: Share of the device's memory that the process may take (CUDA only).
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


class Unload(Traced):
    """Unload a model and free its memory. Answer: Unloaded or Failed."""

    kind: Literal["unload"] = "unload"
    model: str
    #: Keep it in host memory: the next Load of the same entry copies it back.
    keep_warm: bool = False
    #: A Load of another model follows: parts that it may share (T5, CLIP, VAE) stay on the device until then.
    switching: bool = False


class Generate(Traced):
    """Make the pictures of a request, or of several. Answer: any number of Step, then Generated, Stopped or Failed."""

    kind: Literal["generate"] = "generate"
    model: str
    request: GenerationRequest
    init_image: bytes | None = None
    #: With `init_image`: white is repainted, black is kept.
    mask_image: bytes | None = None
    #: The files of `request.loras`.
    lora_files: tuple[str, ...] = ()
    #: The steps of each picture that include a preview.
    previews: int = 0
    #: Whether all pictures are made in one call of the model. A Step is then one step of each picture.
    together: bool = False
    #: Only with `together`: further requests, which differ from `request` in prompts and seeds only.
    companions: tuple[GenerationRequest, ...] = ()


class StopGenerating(Value):
    """Stop the running Generate between two steps. It has no answer; if it is late, it is ignored."""

    kind: Literal["stop"] = "stop"


class Measure(Value):
    """Measure the device's memory. Answer: Measured."""

    kind: Literal["measure"] = "measure"


Command = Annotated[Load | Unload | Generate | StopGenerating | Measure, Field(discriminator="kind")]


# -- answers -----------------------------------------------------------------------------------------------------------


#: Device memory of a process beside torch's allocator: its CUDA context and loaded kernels. An estimate, because a
#: process cannot read its own share; the real value depends on the card and on the kernels that have run.
CONTEXT_BYTES = 512 * 2**20


class DeviceMemory(Value):
    """Memory in bytes, measured by the engine's process."""

    gpu_available: bool = False
    gpu_name: str | None = None
    #: What the driver calls the card, as `nvidia-smi -L` shows it without `GPU-`.
    gpu_uuid: str | None = None
    #: CUDA compute capability.
    capability: tuple[int, int] | None = None
    allocated: int = 0
    #: Held by torch's allocator, in use or not.
    cached: int = 0
    #: Held by this process's models outside torch's allocator, as Nunchaku's engine does.
    outside: int = 0
    #: Free on the whole device.
    free: int = 0
    total: int = 0
    #: Why models run on the CPU although a card was asked for or seems to be there; None: no such problem.
    cuda_problem: str | None = None
    #: Resident host memory of the engine's process.
    host: int = 0
    #: Host memory of the machine, or the limit of this process's cgroup.
    host_total: int = 0
    #: Host memory that can be allocated without swapping.
    host_available: int = 0

    @property
    def held(self) -> int:
        """Memory held by models: device memory, or host memory if there is no device."""
        return self.cached if self.gpu_available else self.host

    @property
    def ours(self) -> int:
        """Device memory held by this process, about: its models, its allocator's cache, and CUDA itself."""
        return self.cached + self.outside + CONTEXT_BYTES if self.gpu_available else 0

    @property
    def foreign(self) -> int:
        """Device memory held by other processes, about: the total less what is free and this process's own."""
        return max(0, self.total - self.free - self.ours) if self.gpu_available else 0

    def capacity(self, fraction: float) -> int:
        """Memory for models: that share of the device's, or the machine's if there is no device; 0: unknown."""
        return int(self.total * fraction) if self.gpu_available else self.host_total


#: The largest preview that a worker may send, in bytes.
MAX_PREVIEW_BYTES = 65_536


class Step(Value):
    kind: Literal["step"] = "step"
    step: int
    total: int
    #: A JPEG of the unfinished picture; empty: none was requested for this step.
    preview: bytes = Field(default=b"", max_length=MAX_PREVIEW_BYTES)


class Outcome(Value):
    """The answer to a command that takes memory."""

    #: Whether the first attempt ran out of memory, so that all warm models were dropped for a second one.
    made_room: bool = False


class Loaded(Outcome):
    kind: Literal["loaded"] = "loaded"
    seconds: float
    #: Whether it was warm.
    warm: bool = False
    #: Bytes of the model's parameters and buffers.
    weight_bytes: int
    #: The most of these that are in device memory at one time: fewer than all if parts are offloaded.
    device_bytes: int = Field(default_factory=lambda data: data["weight_bytes"])
    #: Host memory that they take in addition.
    host_bytes: int = 0
    #: The bytes that were copied to the device; the rest was there already, in shared parts.
    moved_bytes: int = 0
    #: Bytes of the parts that other models can share, by name. Two models with a part of the same name share it.
    shared: dict[str, int] = Field(default_factory=dict)
    memory: DeviceMemory


class Unloaded(Value):
    kind: Literal["unloaded"] = "unloaded"
    #: Whether it stays in host memory. Not every model can.
    warm: bool = False
    memory: DeviceMemory


class Generated(Outcome):
    kind: Literal["generated"] = "generated"
    #: The pictures of `request` first, then those of its companions.
    images: tuple[Pixels, ...]
    #: What the pixels depend on, with the number of pictures in the call.
    provenance: Provenance
    #: The warnings of each request, in the order of `images`; empty: no request has any.
    warnings: tuple[Warnings, ...] = ()
    #: The tokens of each request's prompt that the text encoders read, in the same order.
    tokens: tuple[tuple[TokensRead, ...], ...] = ()
    memory: DeviceMemory
    #: The peak of device memory during the call, less what was in use before it; 0: unknown.
    working_bytes: int = 0
    #: The stages of each picture or, if all are made at once, of the call; empty: the model does not tell them.
    stages: tuple[StageTime, ...] = ()


class Stopped(Outcome):
    """The Generate was stopped."""

    kind: Literal["stopped"] = "stopped"


class Failed(Outcome):
    """An exception, as a plain value: it keeps no frame and no tensor alive."""

    kind: Literal["failed"] = "failed"
    code: FailureCode
    #: For the caller: it contains no path and no secret.
    message: str
    #: For the log.
    traceback: str = ""
    #: After an out of memory: the least bytes that the work needs; 0: unknown.
    need_bytes: int = 0
    #: Whether an import failed half-way. Every later import in the same process may fail, too.
    spoiled: bool = False
    #: Whether the worker process was replaced because it was spoiled, so that no model is resident any more.
    worker_replaced: bool = False

    @property
    def worker_died(self) -> bool:
        """Whether the worker died, so that no model is resident any more."""
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
    # A traceback may contain file names whose bytes are not valid text.
    frame = msgpack.packb(value.model_dump(), unicode_errors="replace")
    assert isinstance(frame, bytes)
    return frame


def unpack_command(frame: bytes) -> Command:
    return _COMMANDS.validate_python(msgpack.unpackb(frame))


def unpack_answer(frame: bytes) -> Answer:
    return _ANSWERS.validate_python(msgpack.unpackb(frame))
