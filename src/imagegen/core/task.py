"""A task: one accepted request, from `pending` to its end."""

from datetime import datetime
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from typing import Any, Self

from pydantic import Field, model_validator

from imagegen.core.errors import FailureCode
from imagegen.core.provenance import Provenance
from imagegen.core.sizes import Size
from imagegen.core.value import Value
from imagegen.core.webhooks import Webhook

#: A task makes pictures at most this often: once, and once more when the worker or the service died under it.
MAX_ATTEMPTS = 2

#: torch's generators take 64 bits; what every client can write as a JSON number is 32.
MAX_SEED = 2**32 - 1

#: More than any sampler gains from.
MAX_STEPS = 200


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
    """A low-rank adapter that is added to the model's weights for one request."""

    #: A safetensors file: below the LoRA directory, or in `repo`.
    path: str
    scale: float
    #: `org/name[@revision]` on the hub, already in its cache.
    repo: str | None = None


class InputPictures(Value):
    """The encoded pictures (PNG, JPEG, WebP) that a request starts from."""

    init_image: bytes | None = None
    #: Its white part is drawn anew, the black part stays.
    mask_image: bytes | None = None


class GenerationRequest(Value):
    """Everything that decides the pixels but the weights and the input image. No field is left open."""

    prompt: str
    #: None: the model takes none, or none was given.
    negative_prompt: str | None = None
    #: Pixels, exactly as delivered.
    width: int
    height: int
    #: Denoising steps.
    steps: int = Field(ge=1, le=MAX_STEPS)
    guidance_scale: float
    #: Of the first picture; picture i of a batch has seed + i.
    seed: int = Field(ge=0, le=MAX_SEED)
    batch_size: int = 1
    #: 0..1, image-to-image only: how much of the input image is replaced by noise.
    strength: float | None = None
    #: Added to the weights in this order, for this request only.
    loras: tuple[Lora, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _older_journals(cls, data: Any) -> Any:
        """Until 0.1 there was one `lora`."""
        if isinstance(data, dict) and "lora" in data:
            lora = data["lora"]
            return {key: value for key, value in data.items() if key != "lora"} | {"loras": [lora] if lora else []}
        return data

    @property
    def size(self) -> Size:
        return Size(self.width, self.height)

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each picture, wrapping at the largest seed."""
        return tuple((self.seed + i) % (MAX_SEED + 1) for i in range(self.batch_size))


class ImageFormat(StrEnum):
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    AVIF = "avif"


class Output(Value):
    """How the pictures of a task are written."""

    format: ImageFormat = ImageFormat.PNG
    #: 1 to 100, of formats that lose something; None: what is usual there.
    quality: int | None = None
    #: Whether each file holds its receipt.
    metadata: bool = True


class Pixels(Value):
    """One finished picture, not yet encoded."""

    width: int
    height: int
    seed: int
    #: height x width x 3 bytes: rows from the top, 8-bit RGB.
    rgb: bytes
    #: height x width bytes, 255 being opaque, of models that leave parts transparent.
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
        """Of the pixels themselves, whatever becomes of them: hexadecimal."""
        return sha256(self.rgb + (self.alpha or b"")).hexdigest()


class StoredImage(Value):
    """One finished picture in the image store."""

    #: `folder/file` below the image store.
    path: str
    width: int
    height: int
    seed: int
    #: Of the file; 0 in records of imagegen before 0.2.
    bytes: int = 0
    #: Of the file's bytes, in hex; empty in older records.
    sha256: str = ""
    #: Of its pixels, before they were encoded; empty in records of imagegen before 0.2.
    pixels_sha256: str = ""


class Replay(Value):
    """What a task is to make once more."""

    #: The id of the task that made it first.
    of: str
    #: Of its pictures, one after the other.
    pixels_sha256: tuple[str, ...]
    provenance: Provenance


class Failure(Value):
    """Why a task failed, in words that may reach its caller."""

    code: FailureCode
    message: str


class GenerationTask(Value):
    """The record of one accepted request. TaskManager is its only writer."""

    id: str
    #: Arrival order, over restarts; the journal gives it.
    sequence: int = 0
    type: TaskType
    model: str
    request: GenerationRequest
    #: Whose it is: the name of an API key; empty: nobody's in particular.
    owner: str = Field(default="", max_length=64)
    #: Lower runs first.
    priority: int = 0
    #: Seconds after its acceptance within which it must have begun to run.
    deadline_s: float | None = None
    #: Pictures of its progress that its listeners are to get, of each picture.
    previews: int = 0
    output: Output = Output()
    #: Who is told when it starts or ends.
    webhook: Webhook | None = None
    status: TaskStatus = TaskStatus.PENDING
    #: How often it was started.
    attempt: int = 0
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    images: tuple[StoredImage, ...] = ()
    #: Pictures that are made, and on their way from this machine's spool into the store. In a task that ended without
    #: pictures: what may have got there all the same, so that it is deleted with the task.
    storing: tuple[StoredImage, ...] = ()
    failure: Failure | None = None
    #: Of the input pictures, kept with it in the journal.
    input_bytes: int = 0
    #: Of the input pictures' files, hexadecimal.
    init_image_sha256: str | None = None
    mask_image_sha256: str | None = None
    #: Once its pictures are made: by what.
    provenance: Provenance | None = None
    #: None: it is no replay.
    replay: Replay | None = None
