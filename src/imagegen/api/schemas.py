"""The bodies of requests and answers."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from imagegen.catalog.catalog import ModelId
from imagegen.catalog.fields import HubSource
from imagegen.core.receipt import Receipt
from imagegen.core.sizes import AspectRatio
from imagegen.core.task import MAX_SEED, MAX_STEPS, ImageFormat, Lora, TaskStatus, TaskType
from imagegen.core.webhooks import DeliveryState, WebhookEvent
from imagegen.hub.puller import PullState
from imagegen.models.residency import ModelState


def _plain_text(text: str) -> str:
    if any(ord(c) < 32 and c not in "\n\t\r" for c in text):
        raise ValueError("control characters are not allowed")
    return text


Prompt = Annotated[str, Field(max_length=8192), AfterValidator(_plain_text)]
Side = Annotated[int, Field(strict=True, ge=16, le=8192)]


class Body(BaseModel):
    """A request body. Unknown keys are refused, and numbers must not be strings or booleans."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)


class LoraBody(Body):
    """A LoRA (low-rank adapter) for this request only."""

    path: str | None = Field(
        None, min_length=1, max_length=500, description="A .safetensors file below the service's LoRA directory."
    )
    repo: HubSource | None = Field(
        None, description="Instead of `path`: `org/name[@revision]`, already in the hub's cache."
    )
    weight_name: str | None = Field(
        None, min_length=1, max_length=300, pattern=r"^[\w][\w.\- /]*\.safetensors$", description="The file in `repo`."
    )
    scale: float = Field(1.0, strict=True, ge=-4, le=4, allow_inf_nan=False, description="Strength of the LoRA.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.repo is None):
            raise ValueError("give either path or repo")
        if (self.repo is None) != (self.weight_name is None):
            raise ValueError("give repo and weight_name together")
        return self

    def lora(self) -> Lora:
        """The LoRA as a value of core."""
        return Lora(path=self.path or self.weight_name or "", repo=self.repo, scale=self.scale)


class GenerationBody(Body):
    """The fields that text2image and image2image have in common."""

    prompt: Prompt = Field(min_length=1, description="What the picture shows.")
    negative_prompt: Prompt | None = Field(
        None, description="What the picture must not show. Only for models that take a negative prompt."
    )
    model: ModelId | None = Field(
        None,
        validation_alias=AliasChoices("model", "model_name"),
        description="The id of a model; default: `default_model`. Also read as `model_name`.",
    )
    batch_size: int = Field(
        1,
        strict=True,
        ge=1,
        le=64,
        validation_alias=AliasChoices("batch_size", "batchSize"),
        description="Number of pictures. Their seeds are seed, seed + 1, ... Also read as `batchSize`.",
    )
    aspect_ratio: AspectRatio = Field(
        "1:1",
        validation_alias=AliasChoices("aspect_ratio", "aspectRatio"),
        description="Shape of the picture. The model's `base_size` decides its pixels. Also read as `aspectRatio`.",
    )
    width: Side | None = Field(None, description="Pixels. Replaces `aspect_ratio`, together with `height`.")
    height: Side | None = Field(None, description="Pixels. Replaces `aspect_ratio`, together with `width`.")
    steps: int | None = Field(
        None, strict=True, ge=1, le=MAX_STEPS, description="Denoising steps; default: the model's."
    )
    guidance_scale: float | None = Field(
        None,
        strict=True,
        ge=0,
        le=50,
        allow_inf_nan=False,
        description="How closely to follow the prompt; default: the model's.",
    )
    seed: int | None = Field(
        None, strict=True, ge=0, le=MAX_SEED, description="The same seed gives the same pixels; default: random."
    )
    priority: int = Field(
        0,
        strict=True,
        ge=-1000,
        le=1000,
        description="Lower numbers run first. Each `ageing_minutes` of waiting counts as one step lower.",
    )
    deadline_s: float | None = Field(
        None,
        strict=True,
        gt=0,
        le=2_592_000,
        allow_inf_nan=False,
        description="Seconds within which the task must begin to run. Otherwise it fails with `deadline_exceeded`.",
    )
    previews: int = Field(
        0,
        strict=True,
        ge=0,
        le=8,
        description="Number of previews of each picture in the task's event stream.",
    )
    webhook_url: str | None = Field(
        None, min_length=1, max_length=2000, description="Receives the events below. Answers show only its host."
    )
    webhook_events: list[WebhookEvent] | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="The events to send to `webhook_url`; default: `completed`, `failed` and `cancelled`.",
    )
    cancel_on_disconnect: bool = Field(
        False,
        strict=True,
        description="Whether the task is cancelled if a caller that waits for it (`Prefer: wait=N`) disconnects.",
    )
    format: ImageFormat = Field(ImageFormat.PNG, description="Format of the files. JPEG has no transparency.")
    quality: int | None = Field(
        None, strict=True, ge=1, le=100, description="Quality of jpeg, webp and avif; default: 90, 90 and 75."
    )
    metadata: bool = Field(True, strict=True, description="Whether each file contains its receipt.")
    lora_weights_path: str | None = Field(
        None, min_length=1, max_length=500, description="A .safetensors file below the service's LoRA directory."
    )
    lora_scale: float = Field(0.7, strict=True, ge=-4, le=4, allow_inf_nan=False, description="Strength of that LoRA.")
    loras: list[LoraBody] = Field([], max_length=8, description="More LoRAs, in addition to `lora_weights_path`.")

    def all_loras(self) -> tuple[Lora, ...]:
        """All LoRAs of the request. `lora_weights_path`, the field of the original API, is the first."""
        path = self.lora_weights_path
        own = (Lora(path=path, scale=self.lora_scale),) if path else ()
        return own + tuple(body.lora() for body in self.loras)

    @model_validator(mode="after")
    def _quality_of_what_has_one(self) -> Self:
        if self.quality is not None and self.format is ImageFormat.PNG:
            raise ValueError("png is lossless and has no quality; leave quality out, or choose another format")
        return self

    @model_validator(mode="after")
    def _width_with_height(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("give width and height together")
        return self

    @model_validator(mode="after")
    def _events_with_url(self) -> Self:
        if self.webhook_events is not None and self.webhook_url is None:
            raise ValueError("webhook_events needs webhook_url")
        return self


class PlanBody(GenerationBody):
    """The body of text2image, or of image2image without its pictures."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "a red circle", "model": "tiny"}]})

    task_type: TaskType = Field(TaskType.TEXT2IMAGE, description="The route of the request.")
    strength: float | None = Field(
        None, strict=True, ge=0.01, le=1, allow_inf_nan=False, description="Only for image2image."
    )


class Text2ImageBody(GenerationBody):
    """The body of text2image."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a red circle on a blue background", "model": "tiny", "aspect_ratio": "1:1", "seed": 7}
            ]
        }
    )


#: A 2x2 PNG, so that the documentation's example works.
EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQV"
    "R4XmO8o6HBwMDAqBt1nYGBAQAVEwKNPKhyxwAAAABJRU5ErkJggg=="
)


class Image2ImageBody(GenerationBody):
    """The body of image2image."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "a yellow star on a blue background", "image": EXAMPLE_IMAGE, "strength": 0.8}]
        }
    )

    image: str = Field(
        min_length=1,
        validation_alias=AliasChoices("image", "base64_image"),
        description="The input picture: PNG, JPEG or WebP in base64, with or without a `data:` prefix. "
        "Also read as `base64_image`.",
    )
    strength: float = Field(
        0.8,
        strict=True,
        ge=0.01,
        le=1,
        allow_inf_nan=False,
        description="How much of the input picture is replaced: near 0 keeps it, 1 keeps nothing.",
    )
    mask: str | None = Field(
        None,
        min_length=1,
        validation_alias=AliasChoices("mask", "mask_image"),
        description="Only for models that can inpaint: a picture in base64. The white part of it is repainted. "
        "Also read as `mask_image`.",
    )


class TaskLinks(BaseModel):
    """The URLs of a task."""

    self: str = Field(examples=["/task/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11"])
    events: str = Field(examples=["/task/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11/events"])
    cancel: str = Field(examples=["/task/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11/cancel"])
    replay: str = Field(examples=["/task/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11/replay"])
    bundle: str = Field(examples=["/task/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11/bundle"])


class TaskAccepted(BaseModel):
    """The task is on disk and will run."""

    task_id: str = Field(examples=["0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11"])
    status: TaskStatus = Field(examples=["pending"])
    message: str = Field(examples=["The task is queued."])
    links: TaskLinks


class ImageView(BaseModel):
    """One finished picture."""

    url: str = Field(examples=["/images/20261123/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11-0.png"])
    width: int = Field(examples=[128])
    height: int = Field(examples=[128])
    seed: int = Field(description="The seed of this picture. A request with it makes this picture alone.", examples=[7])
    pixels_sha256: str = Field(
        "", description="SHA-256 of the pixels before they were encoded, hexadecimal; empty in older tasks."
    )


class LoraView(BaseModel):
    """A LoRA of a task."""

    path: str
    scale: float


class PullView(BaseModel):
    """The latest pull of a model's weights."""

    state: PullState
    bytes_done: int = Field(description="Bytes on disk, of the files that the model needs.")
    bytes_total: int | None = Field(description="Bytes of the files that the model needs; null until the hub answered.")
    error_code: str | None = Field(None, description="If it failed: a stable code.")
    error_message: str | None = Field(None, description="If it failed: the reason.")
    retry_after: int | None = Field(None, description="Seconds after which a retry makes sense.")

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the keys of errors that have no value."""
        kept = ("state", "bytes_done", "bytes_total")
        return {key: value for key, value in handler(self).items() if value is not None or key in kept}


class ReplayView(BaseModel):
    """A replay, compared with the original task."""

    of: str = Field(description="The original task.", examples=["0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11"])
    identical: bool | None = Field(default=None, description="Once completed: whether every pixel is the same.")
    differences: list[str] | None = Field(
        default=None,
        description="Once completed: what has changed since the original task. Empty: the pixels must be the same.",
        examples=[["versions.torch: 2.13.0, was 2.12.1"]],
    )


class WebhookView(BaseModel):
    """The receiver of a task's webhooks. The URL may contain a secret, so only its host is shown."""

    host: str = Field(examples=["example.com"])
    events: list[WebhookEvent]


class TaskView(BaseModel):
    """A task."""

    task_id: str = Field(examples=["0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11"])
    status: TaskStatus
    task_type: TaskType
    model: str = Field(examples=["tiny"])
    prompt: str
    negative_prompt: str | None = None
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    batch_size: int
    format: ImageFormat
    strength: float | None = None
    loras: list[LoraView] | None = Field(None, description="The LoRAs of the request, if there are any.")
    priority: int
    attempt: int = Field(
        description="Attempts so far. A second one follows if the worker or the service died during the first one."
    )
    position: int | None = Field(None, description="While pending: the number of tasks that run before it.")
    estimated_start_at: datetime | None = Field(
        None,
        description="While pending: when it is expected to begin if no other task arrives. Null until the times that "
        "this depends on were measured.",
    )
    estimated_finish_at: datetime | None = Field(None, description="Until it has ended: when it is expected to end.")
    deadline_s: float | None = Field(None, description="Seconds within which it must begin to run.")
    expires_at: datetime | None = Field(
        None,
        description="Once ended: the earliest time at which it is deleted because of its age. Time during which the "
        "service does not run does not count.",
    )
    webhook: WebhookView | None = Field(None, description="The receiver of its webhooks, if there is one.")
    download: PullView | None = Field(None, description="While pending: the pull that it waits for.")
    storing: bool | None = Field(
        None, description="While processing: true if its pictures wait for the bucket, which cannot be reached."
    )
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    result_files: list[str] | None = Field(None, description="Once completed: `folder/file` of each picture.")
    images: list[ImageView]
    receipt: Receipt | None = Field(
        None, description="Once its pictures are made: everything that their pixels depend on. Absent in lists."
    )
    warnings: list[str] | None = Field(
        None, description="What its pictures ignore of the request, such as a part of a LoRA, in sentences."
    )
    replay: ReplayView | None = Field(None, description="If it is a replay: the comparison with the original task.")
    error_code: str | None = Field(None, description="If it failed: a stable code.")
    error_message: str | None = Field(None, description="If it failed: the reason.")
    links: TaskLinks

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys without a value, as clients of the original API expect. The times are always present."""
        always = ["started_at", "completed_at"]
        if self.status is TaskStatus.PENDING:
            always += ["estimated_start_at", "estimated_finish_at"]
        return {key: value for key, value in handler(self).items() if value is not None or key in always}


class PlanView(BaseModel):
    """What would happen to a request if it were made now."""

    fits: Literal[True] = Field(True, description="A request that is known not to fit is refused with the reason.")
    model: str = Field(examples=["tiny"])
    width: int = Field(examples=[128])
    height: int = Field(examples=[128])
    steps: int = Field(examples=[4])
    batch_size: int = Field(examples=[1])
    evicts: list[str] = Field(description="The models that would be evicted.")
    load_seconds: float | None = Field(
        description="Seconds to load its model; 0 if the model is resident; null until a load was measured."
    )
    position: int = Field(description="The number of tasks that would run before it.")
    estimated_start_at: datetime | None = Field(description="Null until the times that this depends on were measured.")
    estimated_finish_at: datetime | None


class TaskPage(BaseModel):
    """A page of tasks, newest first."""

    tasks: list[TaskView]
    total: int = Field(description="Tasks in the history, ended or not.")
    filtered: int = Field(description="Those of them that match the filter, also on other pages.")


class DeliveryView(BaseModel):
    """A delivery: one event that is sent to one receiver."""

    id: str = Field(description="The `webhook-id` of each attempt.", examples=["msg_0b9c6c5e3f0a4b1e9a552f4c6f0f8d11"])
    task_id: str
    event: WebhookEvent
    host: str = Field(description="Host of the receiver. The rest of its URL may be secret.", examples=["example.com"])
    state: DeliveryState
    attempts: int = Field(
        description="Attempts so far. One that a restart of the service moved forward does not count if it fails."
    )
    error: str | None = Field(
        description="Why the latest attempt failed: `timeout`, `refused`, `tls_failed`, `broken_off`, "
        "`url_not_allowed`, `status 500`; `gone` (410), or `outbox_full`: there was no attempt."
    )
    created_at: datetime
    attempted_at: datetime | None = Field(description="When the latest attempt was made.")
    next_attempt_at: datetime | None = Field(description="When the next attempt is made; null: none is planned.")


class DeliveryDetails(DeliveryView):
    """A delivery with its payload."""

    payload: dict[str, Any] = Field(description="The body that is sent. It was made when the event happened.")


class DeliveryPage(BaseModel):
    """A page of deliveries, newest first."""

    deliveries: list[DeliveryView]


class QueueCleared(BaseModel):
    """The result of clearing the queue."""

    message: str = Field(examples=["3 waiting tasks were cancelled."])
    cancelled: int
    remaining_tasks: int = Field(description="Tasks that still wait.")


class ModelView(BaseModel):
    """A configured model."""

    id: str = Field(examples=["tiny"])
    name: str = Field(examples=["Tiny FLUX"])
    type: str = Field(examples=["flux"])
    pipeline_class: str = Field(examples=["FluxPipeline"])
    memory_usage: str = Field(examples=["low"])
    is_loaded: bool = Field(description="Whether it is in device memory now.")
    state: ModelState = Field(description="Where the model is, or what is done with it.")
    error_code: str | None = Field(description="In state `error`: a stable code.")
    error_message: str | None = Field(description="In state `error`: the reason.")
    last_used: datetime | None
    unloads_at: datetime | None = Field(description="When it will be unloaded, unless it is used before.")
    load_seconds: float | None = Field(description="How long its latest load from disk took.")
    warm_load_seconds: float | None = Field(description="How long its latest return from host memory took.")
    device_bytes: int | None = Field(
        description="While it is loaded: bytes of its weights that are in device memory at most; with `cpu_offload` "
        "these are not all."
    )
    host_bytes: int | None = Field(
        description="Bytes of its weights in host memory: while it is warm, while it is offloaded, and after it came "
        "back from there."
    )
    supports_text2img: bool
    supports_img2img: bool
    supports_inpaint: bool = Field(description="image2image with a mask.")
    description: str


class LoadProgressView(BaseModel):
    """The progress of a load."""

    bytes_done: int = Field(
        description="Bytes read so far. Parts that are in memory already are not read, so it may stay below the total."
    )
    bytes_total: int | None = Field(description="Bytes of the model's files; null: unknown.")


class ModelDetails(ModelView):
    """A configured model with its configuration."""

    weights_here: bool = Field(description="Whether it can be loaded without a pull.")
    load_progress: LoadProgressView | None = Field(description="During a load from disk: its progress.")
    pull: PullView | None = Field(description="The latest pull since the service started.")
    config: dict[str, Any] = Field(description="The entry of models.yaml, with defaults.")


class ModelList(BaseModel):
    models: list[ModelView]
    total: int


class NewModelBody(BaseModel):
    """A new entry of models.yaml: its id, and the fields of its family."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "model_id": "my-flux",
                    "name": "My FLUX",
                    "type": "flux",
                    "pipeline_class": "FluxPipeline",
                    "local_path": "my-flux",
                    "steps": 28,
                }
            ]
        },
    )

    model_id: str = Field(description="Letters, digits, `.`, `_`, `-`; at most 64.", max_length=100)


class ModelWritten(BaseModel):
    """The result of a change of a model's entry."""

    message: str = Field(examples=["'my-flux' was added."])
    model_id: str = Field(examples=["my-flux"])


class RollbackBody(Body):
    version: int = Field(ge=1, strict=True, description="A version that `GET /config/versions` lists.")


class ConfigWritten(BaseModel):
    """The result of a change of the configuration."""

    message: str = Field(examples=["Version 3 is in force."])
    etag: str


class ConfigStatusView(BaseModel):
    """The status of the configuration."""

    file: str = Field(description="The file's name.", examples=["models.yaml"])
    read_only: str | None = Field(description="Why it cannot be edited over HTTP; null: it can.")
    etag: str | None = Field(description="The ETag of the configuration in force.")
    source: str = Field(
        description="The source of the configuration in force: `start`, `file`, `signal`, `rest`, `rollback`."
    )
    loaded_at: datetime = Field(description="When the configuration in force was loaded.")
    ok: bool = Field(description="False: the file is broken, and an older configuration is in force.")
    checked_at: datetime = Field(description="When the file was last read.")
    errors: list[str] = Field(description="The problems of the file: `file:line:column: problem, and the fix`.")
    waiting: bool = Field(description="Whether a newer configuration waits for the running task.")


class VersionView(BaseModel):
    """A version of the configuration."""

    version: int
    etag: str
    source: str = Field(description="`start`, `file`, `signal`, `rest`, `rollback`; `broken`: never in force.")
    created_at: datetime


class ConfigVersions(BaseModel):
    versions: list[VersionView]
    total: int


class VersionDiff(BaseModel):
    """The difference of two versions."""

    version: int
    against: int | None = Field(description="The other version; null: the empty file, if no older version is kept.")
    diff: str = Field(description="A unified diff; empty if nothing differs.")


class GpuMemory(BaseModel):
    """Device memory in GiB, as last measured by the worker."""

    allocated: float
    cached: float
    total: float


class ResidentModel(BaseModel):
    """A model in device memory."""

    model: str = Field(examples=["tiny"])
    name: str = Field(examples=["Tiny FLUX"])
    device_bytes: int = Field(description="Bytes of its weights; what two models share is in memory once.")
    last_used: datetime
    unloads_at: datetime | None = Field(description="When it leaves unless it is used before.")


class CurrentModel(BaseModel):
    """What is in device memory."""

    current_model: str | None = Field(description="The most recently used model.", examples=["tiny"])
    model_name: str | None = Field(examples=["Tiny FLUX"])
    is_loaded: bool
    last_used: datetime | None
    gpu_memory: GpuMemory
    models: list[ResidentModel] = Field(description="All that are in device memory, the most recently used first.")


class Unloaded(BaseModel):
    """The result of an unload, measured afterwards in bytes of device memory; without a GPU, of host memory."""

    message: str = Field(examples=["'tiny' was unloaded."])
    freed_bytes: int
    left_bytes: int


class UnloadAccepted(BaseModel):
    """The models are unloaded later."""

    message: str = Field(examples=["All models are unloaded once the running task has ended."])


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


class Health(BaseModel):
    """The state of the service, its device and its store."""

    status: Literal["healthy", "draining", "unhealthy"]
    timestamp: datetime
    version: str
    queue_size: int = Field(description="Tasks that wait.")
    total_tasks: int = Field(description="Tasks in the history, ended or not.")
    current_model: str | None = Field(description="The most recently used model in device memory.")
    store: Literal["ok", "unreachable"] = Field(description="Whether the files of pictures can be reached.")
    gpu_info: GpuInfo


class Probe(BaseModel):
    status: Literal["ok"] = "ok"
