"""Bodies on the wire: what a request may say and what an answer says."""

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
    """A request body: unknown keys are refused; numbers are numbers, not texts or booleans."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)


class LoraBody(Body):
    """A low-rank adapter for this request only."""

    path: str | None = Field(
        None, min_length=1, max_length=500, description="A .safetensors file below the service's LoRA directory."
    )
    repo: HubSource | None = Field(None, description="Instead: `org/name[@revision]`, already in the hub's cache.")
    weight_name: str | None = Field(
        None, min_length=1, max_length=300, pattern=r"^[\w][\w.\- /]*\.safetensors$", description="The file in `repo`."
    )
    scale: float = Field(1.0, strict=True, ge=-4, le=4, allow_inf_nan=False, description="How strongly it counts.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.repo is None):
            raise ValueError("give either path or repo")
        if (self.repo is None) != (self.weight_name is None):
            raise ValueError("repo and weight_name go together")
        return self

    def lora(self) -> Lora:
        """As the tasks know it."""
        return Lora(path=self.path or self.weight_name or "", repo=self.repo, scale=self.scale)


class GenerationBody(Body):
    """What both kinds of generation take."""

    prompt: Prompt = Field(min_length=1, description="What to draw.")
    negative_prompt: Prompt | None = Field(None, description="What to avoid, for models that take it.")
    model: ModelId | None = Field(
        None,
        validation_alias=AliasChoices("model", "model_name"),
        description="A model's id; the default model if left out. Also read as `model_name`.",
    )
    batch_size: int = Field(
        1,
        strict=True,
        ge=1,
        le=64,
        validation_alias=AliasChoices("batch_size", "batchSize"),
        description="Pictures to make, with seeds seed, seed+1, ... Also read as `batchSize`.",
    )
    aspect_ratio: AspectRatio = Field(
        "1:1",
        validation_alias=AliasChoices("aspect_ratio", "aspectRatio"),
        description="Shape of the picture; its size follows from the model's base size. Also read as `aspectRatio`.",
    )
    width: Side | None = Field(None, description="Pixels; with `height`, instead of `aspect_ratio`.")
    height: Side | None = Field(None, description="Pixels; with `width`, instead of `aspect_ratio`.")
    steps: int | None = Field(
        None, strict=True, ge=1, le=MAX_STEPS, description="Denoising steps; default: the model's."
    )
    guidance_scale: float | None = Field(
        None, strict=True, ge=0, le=50, allow_inf_nan=False, description="How closely to follow the prompt."
    )
    seed: int | None = Field(
        None, strict=True, ge=0, le=MAX_SEED, description="Same seed, same pixels. Random if left out."
    )
    priority: int = Field(
        0, strict=True, ge=-1000, le=1000, description="Lower runs first; waiting makes up for it in time."
    )
    deadline_s: float | None = Field(
        None,
        strict=True,
        gt=0,
        le=2_592_000,
        allow_inf_nan=False,
        description="Seconds within which it must begin to run; otherwise it fails with `deadline_exceeded`.",
    )
    previews: int = Field(
        0,
        strict=True,
        ge=0,
        le=8,
        description="So many times while each picture is made, its event stream shows what it will be like.",
    )
    webhook_url: str | None = Field(
        None, min_length=1, max_length=2000, description="Is told of the events below. Never shown again but its host."
    )
    webhook_events: list[WebhookEvent] | None = Field(
        None, min_length=1, max_length=8, description="What `webhook_url` is told; default: the end, whichever it is."
    )
    cancel_on_disconnect: bool = Field(
        False,
        strict=True,
        description="Whether a caller that waits (`Prefer: wait=N`) and goes away takes the task along.",
    )
    format: ImageFormat = Field(ImageFormat.PNG, description="Of the files. JPEG knows no transparency.")
    quality: int | None = Field(
        None, strict=True, ge=1, le=100, description="Of jpeg, webp and avif; left out: 90, 90 and 75."
    )
    metadata: bool = Field(True, strict=True, description="Whether each file holds its receipt.")
    lora_weights_path: str | None = Field(
        None, min_length=1, max_length=500, description="A .safetensors file below the service's LoRA directory."
    )
    lora_scale: float = Field(
        0.7, strict=True, ge=-4, le=4, allow_inf_nan=False, description="How strongly the LoRA counts."
    )
    loras: list[LoraBody] = Field([], max_length=8, description="Several at once, beside `lora_weights_path`.")

    def all_loras(self) -> tuple[Lora, ...]:
        """The brief's one first."""
        path = self.lora_weights_path
        own = (Lora(path=path, scale=self.lora_scale),) if path else ()
        return own + tuple(body.lora() for body in self.loras)

    @model_validator(mode="after")
    def _quality_of_what_has_one(self) -> Self:
        if self.quality is not None and self.format is ImageFormat.PNG:
            raise ValueError("png loses nothing and has no quality; leave it out, or ask for another format")
        return self

    @model_validator(mode="after")
    def _width_with_height(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together")
        return self

    @model_validator(mode="after")
    def _events_with_url(self) -> Self:
        if self.webhook_events is not None and self.webhook_url is None:
            raise ValueError("webhook_events needs webhook_url")
        return self


class PlanBody(GenerationBody):
    """A request that is not made; of image2image without its pictures."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "a red circle", "model": "tiny"}]})

    task_type: TaskType = Field(TaskType.TEXT2IMAGE, description="Which of the two it would be.")
    strength: float | None = Field(None, strict=True, ge=0.01, le=1, allow_inf_nan=False, description="image2image.")


class Text2ImageBody(GenerationBody):
    """A picture from words."""

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
    """A picture from words and another picture."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "a yellow star on a blue background", "image": EXAMPLE_IMAGE, "strength": 0.8}]
        }
    )

    image: str = Field(
        min_length=1,
        validation_alias=AliasChoices("image", "base64_image"),
        description="PNG, JPEG or WebP in base64, with or without a `data:` prefix. Also read as `base64_image`.",
    )
    strength: float = Field(
        0.8,
        strict=True,
        ge=0.01,
        le=1,
        allow_inf_nan=False,
        description="How much of the picture is replaced: near 0 keeps it, 1 keeps nothing.",
    )
    mask: str | None = Field(
        None,
        min_length=1,
        validation_alias=AliasChoices("mask", "mask_image"),
        description="For models that can inpaint: a picture in base64; its white part is drawn anew. "
        "Also read as `mask_image`.",
    )


class TaskLinks(BaseModel):
    """Where to go from here; nobody needs to build URLs."""

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
    seed: int = Field(description="The seed that makes this picture alone.", examples=[7])
    pixels_sha256: str = Field(
        "", description="Of its pixels before they were encoded; empty in tasks of imagegen before 0.2."
    )


class LoraView(BaseModel):
    """The LoRA of a task."""

    path: str
    scale: float


class PullView(BaseModel):
    """The latest download of a model's weights."""

    state: PullState
    bytes_done: int = Field(description="Of all that the model needs, what is on disk.")
    bytes_total: int | None = Field(description="Null until the hub has said.")
    error_code: str | None = Field(None, description="Once failed: a stable word for why.")
    error_message: str | None = Field(None, description="Once failed: why.")
    retry_after: int | None = Field(None, description="Seconds after which another attempt makes sense.")

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a value the keys of errors are absent."""
        kept = ("state", "bytes_done", "bytes_total")
        return {key: value for key, value in handler(self).items() if value is not None or key in kept}


class ReplayView(BaseModel):
    """How a replay compares with what it repeats."""

    of: str = Field(description="The task that it repeats.", examples=["0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11"])
    identical: bool | None = Field(default=None, description="Once completed: whether every pixel is the same.")
    differences: list[str] | None = Field(
        default=None,
        description="Once completed: what is not as it was then. Empty: the pixels must be the same.",
        examples=[["versions.torch: 2.13.0, was 2.12.1"]],
    )


class WebhookView(BaseModel):
    """Who is told of a task. The URL may hold a secret, so it is not shown."""

    host: str = Field(examples=["example.com"])
    events: list[WebhookEvent]


class TaskView(BaseModel):
    """A task as it stands."""

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
    loras: list[LoraView] | None = Field(None, description="If any were asked for.")
    priority: int
    attempt: int = Field(description="How often it was started; 2 after a worker died under it.")
    position: int | None = Field(None, description="While pending: tasks that are to run before it.")
    estimated_start_at: datetime | None = Field(
        None, description="While pending: when it will run, if nothing else comes; null until that was measured."
    )
    estimated_finish_at: datetime | None = Field(None, description="While it has not ended: the same for its end.")
    deadline_s: float | None = Field(None, description="Seconds within which it was to begin.")
    expires_at: datetime | None = Field(
        None, description="Once ended: it is not deleted for its age before that. Time without service does not count."
    )
    webhook: WebhookView | None = Field(None, description="If one was given.")
    download: PullView | None = Field(None, description="While pending: the download of weights that it waits for.")
    storing: bool | None = Field(
        None, description="While processing: its pictures are made and wait for the bucket, which cannot be reached."
    )
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    result_files: list[str] | None = Field(None, description="Once completed: `folder/file` of each picture.")
    images: list[ImageView]
    receipt: Receipt | None = Field(
        None, description="Once its pictures are made, here and not in lists: what they follow from."
    )
    replay: ReplayView | None = Field(None, description="If it repeats another one.")
    error_code: str | None = Field(None, description="Once failed: a stable word for why.")
    error_message: str | None = Field(None, description="Once failed: why.")
    links: TaskLinks

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a value these keys are absent, as the brief's clients expect; the times are always there."""
        always = ["started_at", "completed_at"]
        if self.status is TaskStatus.PENDING:
            always += ["estimated_start_at", "estimated_finish_at"]
        return {key: value for key, value in handler(self).items() if value is not None or key in always}


class PlanView(BaseModel):
    """What would become of a request if it came now. Nothing was accepted."""

    fits: Literal[True] = Field(True, description="As far as is known; what never could is refused with the reason.")
    model: str = Field(examples=["tiny"])
    width: int = Field(examples=[128])
    height: int = Field(examples=[128])
    steps: int = Field(examples=[4])
    batch_size: int = Field(examples=[1])
    evicts: list[str] = Field(description="Models that leave the device for it, as it stands now.")
    load_seconds: float | None = Field(description="To bring its model there; 0: it is there; null: never measured.")
    position: int = Field(description="Tasks that would run before it.")
    estimated_start_at: datetime | None = Field(description="Null until the times that it depends on were measured.")
    estimated_finish_at: datetime | None


class TaskPage(BaseModel):
    """The newest tasks."""

    tasks: list[TaskView]
    total: int = Field(description="Tasks in the history.")
    filtered: int = Field(description="Those of them that match the filter, on this page or not.")


class DeliveryView(BaseModel):
    """One event on its way to a receiver."""

    id: str = Field(description="The `webhook-id` of each attempt.", examples=["msg_0b9c6c5e3f0a4b1e9a552f4c6f0f8d11"])
    task_id: str
    event: WebhookEvent
    host: str = Field(description="The receiver's; the rest of its URL may be secret.", examples=["example.com"])
    state: DeliveryState
    attempts: int = Field(description="Those that count; one that a restart brought forward does not if it fails.")
    error: str | None = Field(
        description="Why the latest attempt failed: `timeout`, `refused`, `tls_failed`, `broken_off`, "
        "`url_not_allowed`, `status 500`; `gone` (410), or `outbox_full`: it was never tried."
    )
    created_at: datetime
    attempted_at: datetime | None = Field(description="The latest attempt.")
    next_attempt_at: datetime | None = Field(description="While it waits for one.")


class DeliveryDetails(DeliveryView):
    """One delivery, with what it says."""

    payload: dict[str, Any] = Field(description="The body, as it was when the event happened.")


class DeliveryPage(BaseModel):
    """The newest deliveries."""

    deliveries: list[DeliveryView]


class QueueCleared(BaseModel):
    """What clearing the queue did."""

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
    state: ModelState = Field(description="Where it is now.")
    error_code: str | None = Field(description="In state `error`: a stable word for why.")
    error_message: str | None = Field(description="In state `error`: why.")
    last_used: datetime | None
    unloads_at: datetime | None = Field(description="When it leaves device memory unless it is used before.")
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
    """How far a load is."""

    bytes_done: int = Field(
        description="Bytes read so far. What is in memory already is not read: a load may end before all are."
    )
    bytes_total: int | None = Field(description="Bytes of the model's files. Null: unknown.")


class ModelDetails(ModelView):
    """A configured model with its configuration."""

    weights_here: bool = Field(description="Whether it can be loaded without a download.")
    load_progress: LoadProgressView | None = Field(description="While it is loaded from disk: how far that is.")
    pull: PullView | None = Field(description="The latest download since the service started.")
    config: dict[str, Any] = Field(description="The entry of models.yaml, defaults filled in.")


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
    """What was done to a model's entry."""

    message: str = Field(examples=["'my-flux' was added."])
    model_id: str = Field(examples=["my-flux"])


class RollbackBody(Body):
    version: int = Field(ge=1, strict=True, description="As `GET /config/versions` lists them.")


class ConfigWritten(BaseModel):
    """What was done to the configuration."""

    message: str = Field(examples=["Version 3 is in force."])
    etag: str


class ConfigStatusView(BaseModel):
    """How the configuration stands."""

    file: str = Field(description="The file's name.", examples=["models.yaml"])
    read_only: str | None = Field(description="Why it cannot be edited over HTTP; null: it can.")
    etag: str | None = Field(description="Names the text in force.")
    source: str = Field(
        description="Where the configuration in force came from: `start`, `file`, `signal`, `rest`, `rollback`."
    )
    loaded_at: datetime = Field(description="Since when it is in force.")
    ok: bool = Field(description="False: the file is broken, and an older configuration is in force.")
    checked_at: datetime = Field(description="When the file was last looked at.")
    errors: list[str] = Field(description="`file:line:column: what, and the fix`.")
    waiting: bool = Field(description="Whether a newer configuration waits for the running task to end.")


class VersionView(BaseModel):
    """One configuration that was in force."""

    version: int
    etag: str
    source: str = Field(description="`start`, `file`, `signal`, `rest`, `rollback`; `broken`: never in force.")
    created_at: datetime


class ConfigVersions(BaseModel):
    versions: list[VersionView]
    total: int


class VersionDiff(BaseModel):
    """What differs between two versions."""

    version: int
    against: int | None = Field(description="Null: nothing is kept from before it.")
    diff: str = Field(description="A unified diff; empty where nothing differs.")


class GpuMemory(BaseModel):
    """GiB, as last measured by the worker."""

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
    """What unloading did, measured afterwards: device memory, or host memory where there is no device."""

    message: str = Field(examples=["'tiny' was unloaded."])
    freed_bytes: int
    left_bytes: int


class GpuInfo(BaseModel):
    """The device, as last measured by the worker; memory in GiB."""

    gpu_available: bool
    gpu_name: str | None
    gpu_memory_allocated: float
    gpu_memory_cached: float = Field(description="What torch's allocator of this service holds, in use or not.")
    gpu_memory_free: float = Field(description="Of the whole device: what no process has taken.")
    gpu_memory_foreign: float = Field(
        description="About what other processes hold: what is neither free nor held, less 0.5 GiB for CUDA's own needs."
    )
    gpu_memory_total: float
    cuda_problem: str | None = Field(
        description="Why models run on the CPU although a GPU was asked for, or there are signs of one."
    )
    host_memory: float = Field(description="Resident host memory of the process that holds the models.")


class Health(BaseModel):
    """The state of the service."""

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
