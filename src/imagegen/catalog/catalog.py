"""The Catalog: the typed, frozen content of models.yaml. A change of the file makes a new Catalog."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from imagegen.builtin import BUILTIN, builtin_models, known_repositories
from imagegen.catalog.fields import (
    HubSource,
    Loads,
    Receipt,
    Request,
    Residency,
    Text,
    WeightsPath,
    is_number,
    is_relative_folder,
    marked,
    refuse_bare_text,
    refuse_word_for_number,
)
from imagegen.catalog.pipeline_files import Dtype
from imagegen.core.errors import ModelNotFound
from imagegen.core.limits import MaxQueue, RetentionDays, RetentionGb, RetentionOfPictures, RetentionTasks
from imagegen.core.sizes import SIDE_MULTIPLE, TABLE_BASE, Sizing
from imagegen.core.value import Value
from imagegen.core.wording import Form, nearest

if TYPE_CHECKING:
    from imagegen.settings import Settings

#: `/models/current` and `/models/unload` are routes.
RESERVED_IDS = frozenset({"current", "unload"})

ModelId = Annotated[
    str,
    Form(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        "must be a model id: letters, digits, '.', '_' and '-', at most 64, a letter or digit first",
    ),
]


#: The alias that stands for every other name.
ANY_NAME = "*"

#: The most aliases of a file.
MAX_ALIASES = 1000

#: A name of a model elsewhere, as clients send it: `gpt-image-1`, `org/name`, `org/name:tag`.
AliasName = Annotated[
    str,
    Form(
        r"\*|[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,99}",
        "must be '*', or letters, digits and '._:@+/-', at most 100, a letter or digit first",
    ),
]


class Section(Value):
    """A part of the file. It refuses unknown names and reads the older spellings of the original API."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    #: The names of the fields that are numbers.
    numbers: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        refuse_bare_text(cls)
        cls.numbers = frozenset(name for name, info in cls.model_fields.items() if is_number(info))

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name in cls.numbers:
            refuse_word_for_number(value)
        return value


#: The largest `max_batch`. Larger batches gain nothing.
MAX_BATCH = 64

CpuOffload = Literal["none", "model", "encoders", "sequential", "group"]


def _offload_word(value: object) -> object:
    return ("model" if value else "none") if isinstance(value, bool) else value


class GlobalSettings(Section):
    """The section `global` (or `settings`): defaults for all models."""

    auto_unload_minutes: float = Field(
        default=30,
        ge=0,
        le=10_080,
        validation_alias=AliasChoices("auto_unload_minutes", "auto_unload_timeout"),
        description="Minutes without use after which a model leaves the device; 0 keeps it.",
    )
    default_model: Text | None = Field(
        default=None, description="The model of a request that names none; by default the first entry."
    )
    gpu_memory_fraction: Annotated[float, Loads] = Field(
        default=0.9, gt=0, le=1, description="Share of the device's memory that the service may take (CUDA only)."
    )
    max_resident: Annotated[int, Residency] = Field(
        default=1,
        ge=1,
        le=64,
        description="The most models that stay in device memory, if they fit together. The least recently used one "
        "leaves first.",
    )
    enable_attention_slicing: Annotated[bool, Loads, Receipt] = Field(
        default=False, description="Compute attention in slices: less memory, slower."
    )
    enable_vae_slicing: Annotated[bool, Loads, Receipt] = Field(
        default=False, description="Decode a batch picture by picture: less memory."
    )
    enable_vae_tiling: Annotated[bool, Loads, Receipt] = Field(
        default=False, description="Decode large pictures in tiles: less memory."
    )
    cpu_offload: Annotated[CpuOffload, Loads, BeforeValidator(_offload_word)] = Field(
        default="none",
        validation_alias=AliasChoices("cpu_offload", "enable_cpu_offload"),
        description="Keep weights in host memory and move to the device what runs (CUDA only): whole parts (`model`), "
        "only the text encoders (`encoders`; transformer and VAE stay on the device), single layers "
        "(`sequential`), or layers just before they run (`group`). `enable_cpu_offload: true` means "
        "`model`.",
    )
    host_cache_gb: Annotated[Annotated[float, Field(ge=0, le=100_000)] | Literal["auto"], Residency] = Field(
        default="auto",
        description="Host memory, in GiB, for models that left the device and stay warm; 0: none. `auto`: half of the "
        "available memory; without a GPU none.",
    )
    residual_limit_mb: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="Device memory, in MiB, that may stay taken while nothing is loaded. Above it the worker process is"
        " replaced.",
    )
    auto_download: bool = Field(
        default=False,
        description="Pull the weights of a model from the hub when a request names it and they are not here.",
    )
    patience_swaps: float = Field(
        default=50,
        ge=0,
        le=100_000,
        description="A waiting model is due once its oldest task has waited for this many times the model's load time. "
        "A due model may interrupt the resident models.",
    )
    quantum_swaps: float = Field(
        default=45,
        ge=0,
        le=100_000,
        description="The resident models are interrupted only after they have worked for this many times the due "
        "model's load time, counted from the latest load.",
    )
    ageing_minutes: float = Field(
        default=5,
        ge=0,
        le=100_000,
        description="Minutes of waiting that raise a task by one step of priority; 0: waiting raises none.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="The lowest level that is logged."
    )
    max_queue: MaxQueue | None = Field(
        default=None, description="Tasks that may wait; one more is refused. Default: IMAGEGEN_MAX_QUEUE."
    )
    max_task_seconds: float = Field(
        default=3600,
        ge=0,
        le=31_536_000,
        description="Seconds of the device that one task may take, by the measured times of its model; one that would "
        "take longer is refused. A picture of the model's own size and steps is always accepted. 0: no limit.",
    )
    retention_days: RetentionDays | None = Field(
        default=None,
        description="Days after which ended tasks and their files are deleted; 0 keeps them. Default: "
        "IMAGEGEN_RETENTION_DAYS.",
    )
    retention_tasks: RetentionTasks | None = Field(
        default=None,
        description="Ended tasks that are kept; the oldest are deleted first; 0 keeps all. Default: "
        "IMAGEGEN_RETENTION_TASKS.",
    )
    retention_gb: RetentionOfPictures | None = Field(
        default=None,
        description="GiB of pictures that are kept; the oldest are deleted first; 0 keeps all. `auto`: a quarter of "
        "the disk; all of those in a bucket. Default: IMAGEGEN_RETENTION_GB.",
    )
    retention_journal_gb: RetentionGb | None = Field(
        default=None,
        description="GiB of the journal for ended tasks. Beyond it the input pictures of the oldest are deleted, then "
        "the oldest tasks; 0: no limit. Default: IMAGEGEN_RETENTION_JOURNAL_GB.",
    )

    def over(self, settings: "Settings") -> "Settings":
        """The process's settings, overridden by the fields that this section sets."""
        common = type(self).model_fields.keys() & type(settings).model_fields.keys()
        own = {name: value for name in common if (value := getattr(self, name)) is not None}
        return settings.model_copy(update=own) if own else settings


class HubFiles(Value):
    """The files that an entry needs from one repository on the hub."""

    repo: str
    #: A branch, tag or commit; None is the repository's default branch.
    revision: str | None = None
    #: The files. Empty: a diffusers pipeline, that is model_index.json and the folders that it names.
    files: tuple[str, ...] = ()
    #: Precision (`int4`, `fp4`) -> a file that is needed on cards of this precision, and on no others.
    by_precision: tuple[tuple[str, str], ...] = ()
    #: Parts of the pipeline that are not needed, because they come from elsewhere.
    without: tuple[str, ...] = ()
    #: One part instead of a pipeline: the folder of this name, or the repository itself where it holds just one model.
    part: str | None = None
    #: Which copy of the weights is needed where there are several.
    dtype: Dtype = "auto"

    def on_card(self, precision: str | None) -> Self:
        """The files that a card of this precision needs. None: unknown, and `by_precision` stays."""
        file = dict(self.by_precision).get(precision or "")
        return self if file is None else self.evolve(files=(*self.files, file), by_precision=())

    @classmethod
    def of(cls, source: str, **what: Any) -> Self:
        """Make it from `org/name[@revision]` and the other fields."""
        repo, _, revision = source.partition("@")
        return cls(repo=repo, revision=revision or None, **what)


class ModelSpec(Section):
    """One entry of `models`: the fields of every family. A family adds fields in a subclass."""

    #: Packages that read or run its weights, beside diffusers: receipts name their versions.
    libraries: ClassVar[tuple[str, ...]] = ()

    name: Annotated[Text, Request] = Field(min_length=1, max_length=200, description="The name shown to people.")
    type: Text = Field(description="The family, which decides the loader.")
    pipeline_class: Text = Field(description="The pipeline class of diffusers, as in the model's model_index.json.")
    hf_path: HubSource | None = Field(
        default=None,
        validation_alias=AliasChoices("hf_path", "huggingface_path"),
        description="`org/name[@revision]` on the hub. A relative path that does not have two segments counts as "
        "`local_path`, for older files.",
    )
    local_path: WeightsPath | None = Field(
        default=None,
        description="A folder, absolute or below the models directory; `builtin:NAME` is a model that ships with "
        "imagegen.",
    )
    torch_dtype: Dtype = Field(default="auto", description="`auto` is bfloat16 on a GPU, float32 on a CPU.")
    memory_usage: Annotated[Literal["low", "medium", "high"], Request] = Field(
        default="medium", description="Shown to people."
    )
    supports_text2img: Annotated[bool, Request] = Field(
        default=True, description="Whether text-to-image may use it; by default, whether the pipeline class can."
    )
    supports_img2img: Annotated[bool, Request] = Field(
        default=True, description="Whether image-to-image may use it; by default, whether the pipeline class can."
    )
    supports_inpaint: Annotated[bool, Request] = Field(
        default=False,
        description="Whether image-to-image with a mask may use it; by default, whether the pipeline class can.",
    )
    description: Annotated[Text, Request] = Field(default="", max_length=2000, description="Shown to people.")
    base_size: Annotated[int, Request] = Field(
        default=TABLE_BASE,
        ge=64,
        le=2048,
        description="Pixels: the short side of the model's pictures, or with `sizing: area` the side of a square of "
        "their area. It scales the table of aspect ratios.",
    )
    sizing: Annotated[Sizing, Request] = Field(
        default="short_side",
        description="How `base_size` sets the size of pictures that are not square. `area`: 21:9 at 1024 is 1568x672. "
        "`short_side`, the table of the original API: 21:9 at 1024 is 2389x1024, twice the pixels.",
    )
    steps: Annotated[int, Request] = Field(
        default=28,
        ge=1,
        le=200,
        description="Denoising steps of a request without `steps`. If the shipped models.yaml has the repository, this "
        "field, `guidance_scale` and `base_size` have the defaults given there.",
    )
    guidance_scale: Annotated[float, Request] = Field(
        default=3.5, ge=0, le=50, description="Guidance of a request without `guidance_scale`."
    )
    auto_unload_minutes: Annotated[float | None, Request] = Field(
        default=None, ge=0, le=10_080, description="Overrides the value of `global`."
    )
    gpu_memory_fraction: float | None = Field(default=None, gt=0, le=1, description="Overrides the value of `global`.")
    max_task_seconds: Annotated[float | None, Request] = Field(
        default=None, ge=0, le=31_536_000, description="Overrides the value of `global`."
    )
    max_batch: Annotated[int, Request] = Field(
        default=1,
        ge=1,
        le=MAX_BATCH,
        description="The most pictures in one call of the model. Waiting tasks that are alike share a call if "
        "measurements show that this is faster; their pictures then differ by rounding from pictures made "
        "alone. 1: each picture has its own call.",
    )

    @model_validator(mode="before")
    @classmethod
    def _older_files_and_defaults(cls, data: Any) -> Any:
        """Read a relative `hf_path` that does not have two segments as a folder; fill in the shipped defaults."""
        if not isinstance(data, dict):
            return data
        for key in ("hf_path", "huggingface_path"):
            if "local_path" not in data and is_relative_folder(data.get(key)):
                data = {name: value for name, value in data.items() if name != key} | {"local_path": data[key]}
        sources = [data.get(key) for key in ("hf_path", "huggingface_path", "base_model")]
        repositories = [source.partition("@")[0] for source in sources if isinstance(source, str)]
        known = next((known_repositories()[name] for name in repositories if name in known_repositories()), {})
        return dict(known) | data

    @model_validator(mode="after")
    def _batches_if_supported(self) -> Self:
        if self.max_batch > 1:
            self.check_batch()
        return self

    @field_validator("local_path")
    @classmethod
    def _known_builtin(cls, local_path: str | None) -> str | None:
        known = [BUILTIN + name for name in builtin_models()]
        if local_path is not None and local_path.startswith(BUILTIN) and local_path not in known:
            raise ValueError(f"no such embedded model; known: {', '.join(known)}")
        return local_path

    def hub_files(self) -> tuple[HubFiles, ...]:
        """The files to pull where `local_path` does not exist; empty if the entry names no repository."""
        return (HubFiles.of(self.hf_path, dtype=self.torch_dtype),) if self.hf_path else ()

    def lacks(self, place: Callable[[str], Path]) -> str | None:
        """What is missing of the files that `local_path` names; None: nothing, or the entry has no `local_path`.

        `place` gives the path on this machine for a path of models.yaml. May raise OSError.
        """
        return None if self.local_path is None or place(self.local_path).exists() else self.local_path

    def lacks_beside(self, place: Callable[[str], Path]) -> str | None:
        """What is missing of the entry's other local files, which are in no repository; None: nothing."""
        return None

    @property
    def side_multiple(self) -> int:
        """Both sides of a rendered picture are multiples of this many pixels."""
        return SIDE_MULTIPLE

    @property
    def supports_negative_prompt(self) -> bool:
        """Whether a negative prompt changes the picture."""
        return False

    @property
    def supports_lora(self) -> bool:
        return False

    @property
    def supports_strength(self) -> bool:
        """Whether image-to-image without a mask heeds `strength`."""
        return False

    def check_batch(self) -> None:
        """Raises ValueError if a call of this model cannot make several pictures."""
        raise ValueError(f"max_batch: models of type {self.type} make one picture at a time; leave it out")


T = TypeVar("T")


def _freeze(mapping: Mapping[str, T]) -> Mapping[str, T]:
    return MappingProxyType(dict(mapping))


class Catalog(Value):
    """All models, the settings they share, and other names of models."""

    settings: GlobalSettings
    models: Annotated[Mapping[str, ModelSpec], AfterValidator(_freeze)]
    #: Names that clients of other APIs send, and the ids of the models that they mean.
    aliases: Annotated[Mapping[str, str], AfterValidator(_freeze)] = Field(default_factory=lambda: MappingProxyType({}))

    @property
    def default_model(self) -> str:
        """The model of a request that names none."""
        return self.settings.default_model or next(iter(self.models))

    def model(self, model_id: str) -> ModelSpec:
        """The entry with this id, or ModelNotFound."""
        if model_id not in self.models:
            raise ModelNotFound(
                f"There is no model with this id{nearest(model_id, self.models)}; GET /models lists them."
            )
        return self.models[model_id]

    def id_of(self, name: str | None) -> str:
        """The id of the model that a client of another API means; None: it names none. Raises ModelNotFound."""
        if name is None:
            return self.default_model
        model_id = self.named(name) or self.aliases.get(ANY_NAME)
        if model_id is None:
            known = ", ".join([*self.models, *self.aliases])
            hint = nearest(name, [*self.models, *self.aliases])
            raise ModelNotFound(f"There is no such model, and no alias of this name{hint}; known: {known}.")
        return model_id

    def named(self, name: str) -> str | None:
        """The model that a name means without the alias `*`; None: there is none.

        The name is an id, an alias, the repository of an entry, or any owner with an id: `owner/id`.
        """
        if name in self.models or name in self.aliases:
            return name if name in self.models else self.aliases[name]
        for model_id, spec in self.models.items():
            if spec.hf_path is not None and spec.hf_path.partition("@")[0] == name:
                return model_id
        last = name.rpartition("/")[2]
        return last if last in self.models else None

    def loaded_as(self, model_id: str) -> dict[str, Any]:
        """Everything that a load of this model depends on. If it differs in two catalogs, the model is reloaded."""
        model = self.model(model_id)
        entry = model.model_dump(exclude=set(marked(type(model), Request)))
        for name in marked(GlobalSettings, Loads) & entry.keys():
            entry[name] = getattr(self.settings, name) if entry[name] is None else entry[name]
        return entry

    def memory_fraction(self, model_id: str) -> float:
        """The share of the device's memory that this model may take (CUDA only)."""
        return self.model(model_id).gpu_memory_fraction or self.settings.gpu_memory_fraction

    def task_seconds(self, model_id: str) -> float:
        """Seconds of the device that one task of this model may take; 0: any number."""
        own = self.model(model_id).max_task_seconds
        return self.settings.max_task_seconds if own is None else own

    def idle_minutes(self, model_id: str) -> float:
        """Minutes without use after which this model is idle; 0: never."""
        own = self.model(model_id).auto_unload_minutes
        return self.settings.auto_unload_minutes if own is None else own
