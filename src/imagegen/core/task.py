"""A task: one accepted request, from `pending` to its end."""

from datetime import datetime
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from imagegen.core.errors import FailureCode
from imagegen.core.provenance import Provenance
from imagegen.core.sizes import Size
from imagegen.core.value import Value
from imagegen.core.webhooks import Webhook

#: Attempts of a task: one, and a second one if the worker or the service died during the first.
MAX_ATTEMPTS = 2

#: torch's generators take 64 bits. The CPU generator, which makes the noise, uses the lower 32 of them.
MAX_SEED = 2**64 - 1

#: The largest seed that imagegen chooses. Seeds up to it give different noise, and all JSON parsers read them exactly.
MAX_RANDOM_SEED = 2**32 - 1

#: No sampler gains from more steps.
MAX_STEPS = 200

#: The most warnings of one task, and the most characters of one warning. Anything beyond them is cut off.
MAX_WARNINGS = 16
MAX_WARNING_LENGTH = 500


def _bounded(warnings: Any) -> Any:
    if not isinstance(warnings, list | tuple):
        return warnings
    return tuple(it[:MAX_WARNING_LENGTH] if isinstance(it, str) else it for it in warnings[:MAX_WARNINGS])


#: Sentences about the pictures of a task for its caller. They contain no path and no secret.
Warnings = Annotated[tuple[str, ...], BeforeValidator(_bounded)]


class TokensRead(Value):
    """How many tokens of a prompt a text encoder read. Special tokens and those of templates count."""

    #: The part of the pipeline: `text_encoder`, `text_encoder_2` ...
    encoder: str = Field(max_length=64)
    read: int
    #: The tokens of the whole prompt.
    of: int


class TaskStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        return self in (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)


class TaskType(StrEnum):
    TEXT2IMAGE = "text2image"
    IMAGE2IMAGE = "image2image"


class Lora(Value):
    """A LoRA (low-rank adapter) that is added to the model's weights for one request."""

    path: str = Field(
        description="A .safetensors file: below the service's LoRA directory, or in `repo`.",
        json_schema_extra={"maxLength": 500},
    )
    scale: float = Field(default=1.0, ge=-4, le=4, description="Strength of the LoRA.")
    repo: Annotated[str, Field(json_schema_extra={"maxLength": 320})] | None = Field(
        default=None, description="`org/name[@revision]` on the hub, already in its cache."
    )


class InputPictures(Value):
    """The encoded input pictures of a request."""

    init_image: bytes | None = None
    #: The model repaints its white part; the black part stays.
    mask_image: bytes | None = None


class GenerationRequest(Value):
    """Everything that decides the pixels, except weights and input pictures. Admission has chosen every open value."""

    prompt: str
    #: None: the caller gave none, or the model takes none.
    negative_prompt: str | None = None
    #: Pixels of the delivered picture.
    width: int
    height: int
    #: Denoising steps.
    steps: int = Field(ge=1, le=MAX_STEPS)
    guidance_scale: float
    #: Seed of the first picture; picture i of a batch has seed + i.
    seed: int = Field(ge=0, le=MAX_SEED)
    batch_size: int = 1
    #: Image-to-image only, 0 to 1: the share of the input picture that noise replaces.
    strength: float | None = None
    #: LoRAs, which are added to the weights in this order and for this request only.
    loras: tuple[Lora, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _older_journals(cls, data: Any) -> Any:
        """Records of older journals have one `lora`."""
        if isinstance(data, dict) and "lora" in data:
            lora = data["lora"]
            return {key: value for key, value in data.items() if key != "lora"} | {"loras": [lora] if lora else []}
        return data

    @property
    def size(self) -> Size:
        return Size(self.width, self.height)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each picture. They wrap at the largest seed."""
        return tuple((self.seed + i) % (MAX_SEED + 1) for i in range(self.batch_size))


class ImageFormat(StrEnum):
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    AVIF = "avif"


class Output(Value):
    """How the pictures of a task are written."""

    format: ImageFormat = ImageFormat.PNG
    #: 1 to 100, for lossy formats; None: the format's default.
    quality: int | None = None
    #: Whether each file holds its receipt.
    metadata: bool = True


class Pixels(Value):
    """One finished picture, not yet encoded."""

    width: int
    height: int
    seed: int
    #: Shape (height, width, 3): 8-bit RGB, rows from the top.
    rgb: bytes
    #: Shape (height, width), 255 is opaque; None: the model makes no transparency.
    alpha: bytes | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.rgb) != self.width * self.height * 3:
            raise ValueError("rgb is not height x width x 3 bytes")
        if self.alpha is not None and len(self.alpha) != self.width * self.height:
            raise ValueError("alpha is not height x width bytes")
        return self

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the pixels before they are encoded, hexadecimal."""
        return sha256(self.rgb + (self.alpha or b"")).hexdigest()


class StoredImage(Value):
    """One finished picture in the image store."""

    #: `folder/file` below the image store.
    path: str
    width: int
    height: int
    seed: int
    #: Size of the file; 0 in older records.
    bytes: int = 0
    #: SHA-256 of the file, hexadecimal; empty in older records.
    sha256: str = ""
    #: SHA-256 of the pixels before they were encoded, hexadecimal; empty in older records.
    pixels_sha256: str = ""


class Replay(Value):
    """The pictures that a task makes a second time."""

    #: The id of the task that made them first.
    of: str
    #: SHA-256 of the pixels of its pictures, in order.
    pixels_sha256: tuple[str, ...]
    provenance: Provenance


class Failure(Value):
    """Why a task failed, in words that may reach its caller."""

    code: FailureCode
    message: str


class GenerationTask(Value):
    """The record of one accepted request. While the task has not ended, only its LiveTask makes new versions of it."""

    id: str
    #: Order of arrival, also over restarts. The journal assigns it.
    sequence: int = 0
    type: TaskType
    model: str
    request: GenerationRequest
    #: The name of the API key that submitted it; empty: submitted without a key.
    owner: str = Field(default="", max_length=64)
    #: The id of the request that submitted it; empty in older records and without HTTP.
    request_id: str = Field(default="", max_length=128)
    #: The W3C traceparent of the request that submitted it; empty: its trace is not recorded.
    traceparent: str = Field(default="", max_length=55)
    #: Lower runs first.
    priority: int = 0
    #: Seconds after its acceptance within which it must have begun to run.
    deadline_s: float | None = None
    #: Number of previews of each picture in the task's event stream.
    previews: int = 0
    output: Output = Output()
    #: The receiver of its webhooks.
    webhook: Webhook | None = None
    status: TaskStatus = TaskStatus.PENDING
    #: Attempts so far.
    attempt: int = 0
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    images: tuple[StoredImage, ...] = ()
    #: Finished pictures in the spool, before they are uploaded to the store. If the task ended without pictures: files
    #: that may be in the store nevertheless; they are deleted with the task.
    storing: tuple[StoredImage, ...] = ()
    failure: Failure | None = None
    #: Bytes of the input pictures in the journal.
    input_bytes: int = 0
    #: SHA-256 of the input pictures' files, hexadecimal.
    init_image_sha256: str | None = None
    mask_image_sha256: str | None = None
    #: What made its pictures; None until they are made.
    provenance: Provenance | None = None
    #: Seconds of the device that its attempts took; None: not measured. The time of a shared call is divided among its
    #: tasks by their numbers of pictures.
    device_s: float | None = None
    #: Warnings about its pictures, such as parts of the request that they ignore; empty until they are made.
    warnings: Warnings = ()
    #: How much of the prompt each text encoder read; empty until its pictures are made, or if that is not known.
    tokens: tuple[TokensRead, ...] = ()
    #: None: not a replay.
    replay: Replay | None = None

    @property
    def ids(self) -> dict[str, str]:
        """The ids that each log line about the task contains."""
        ids = {"task_id": self.id, "request_id": self.request_id, "model": self.model}
        return ids | ({"trace_id": self.traceparent.split("-")[1]} if self.traceparent else {})
