"""A model family: a spec (its fields in models.yaml) and a ModelLoader. Nothing here imports torch."""

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from imagegen.catalog.catalog import GlobalSettings, ModelSpec
from imagegen.catalog.pipeline_files import INDEX
from imagegen.catalog.sources import Folders, cached_snapshot, lacks_locally, local_folder
from imagegen.core.errors import WeightsMissing, WeightsRefused
from imagegen.core.provenance import Provenance
from imagegen.core.stages import StageTime
from imagegen.core.task import GenerationRequest, Pixels, TokensRead
from imagegen.loaders.parts import Part, Parts

SpecT = TypeVar("SpecT", bound=ModelSpec)


class OnStep(Protocol):
    """Called after each denoising step."""

    def __call__(self, step: int, total: int, preview: bytes = b"", /) -> None:
        """Steps done, steps in total, and a small JPEG if a preview was requested. Raises Stop to end the call."""


class StopFlag(Protocol):
    """Whether the call should end before its next step: a `threading.Event`, or several combined."""

    def is_set(self) -> bool: ...


class Stop(Exception):
    """Raised by OnStep to end a pipeline's run between two steps."""


class Placement(NamedTuple):
    """Where and how a model is loaded."""

    #: `cpu`, `cuda`, `cuda:1`.
    device: str
    settings: GlobalSettings
    folders: Folders
    #: The parts in memory. A loader may share them, and must then call `let_go()` to release the others.
    parts: Parts
    #: The context for importing libraries. A loader enters it before the model uses any memory. At its end the engine
    #: excludes all objects from garbage collection (`gc.freeze`). After an exception in it, this process cannot load
    #: models any more.
    importing: Callable[[], AbstractContextManager[None]] = nullcontext


class Inputs(NamedTuple):
    """The files and options of a request that are not in GenerationRequest."""

    #: An encoded picture, for image-to-image.
    init_image: bytes | None = None
    #: An encoded mask: its white part is repainted, its black part is kept.
    mask_image: bytes | None = None
    #: The files of `request.loras`.
    lora_files: Sequence[Path] = ()
    #: The steps of each picture after which a preview is made, if the model can make one.
    previews: int = 0


class LoadedModel(ABC):
    """A model in device memory."""

    @abstractmethod
    def generate(self, request: GenerationRequest, inputs: Inputs, on_step: OnStep) -> list[Pixels]:
        """Make one picture for each of `request.seeds`, exactly `request.size`.

        `on_step` may raise Stop, which is not caught. Each picture is the same as that of a request with its seed
        alone. A request leaves no state behind that changes the next one.
        """

    def generate_together(self, requests: Sequence[GenerationRequest], on_step: OnStep) -> list[Pixels]:
        """Make the pictures of requests that differ only in prompts and seeds, in one call and in the requests' order.

        They differ from the pictures of `generate` by rounding. A step of the call is one step of every picture.
        Called only for models whose entry has a `max_batch` above 1.
        """
        raise TypeError(f"{type(self).__name__} makes one picture at a time")

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """The bytes of all parameters and buffers."""

    @abstractmethod
    def provenance(self, inputs: Inputs) -> Provenance:
        """The provenance of pictures that are made with these inputs."""

    def warnings(self, request: GenerationRequest) -> Sequence[str]:
        """Warnings for the caller about parts of this request that the pictures of the latest call ignore.

        Called once for each request of a call, after the call. A warning contains no path.
        """
        return ()

    def tokens(self, request: GenerationRequest) -> Sequence[TokensRead]:
        """How many tokens of the prompt each text encoder read; empty: unknown. Called when `warnings` is called."""
        return ()

    @property
    def stages(self) -> Sequence[StageTime]:
        """The stages of the pictures of the latest call; empty: it does not measure them."""
        return ()

    @property
    def device_bytes(self) -> int:
        """The most bytes of its weights that are in device memory at one time."""
        return self.weight_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that its weights take while it is on a GPU: 0 unless they are offloaded or were warm."""
        return 0

    @property
    def parts(self) -> Sequence[Part]:
        """The parts that another model may share."""
        return ()

    @property
    def outside_bytes(self) -> int:
        """Bytes of device memory that it takes outside torch's allocator; the engine measures only the allocator."""
        return 0

    @property
    def moved_bytes(self) -> int:
        """The bytes of its weights that its load copied to the device; the others were there already."""
        return self.weight_bytes

    def to_host(self) -> bool:
        """Move the weights from the device to host memory. The model cannot generate until `to_device` is called.

        Returns False if the model cannot do this; it must then be closed.
        """
        return True

    def to_device(self) -> int:
        """Move the weights back after `to_host`, all or none. Returns the bytes that were copied."""
        return 0

    def trim(self) -> None:
        """Free the caches that exist only for speed. Called when the device is full."""
        return

    def close(self) -> None:
        """Free everything that garbage collection would not free."""
        return


class ModelLoader(ABC, Generic[SpecT]):
    """Turns an entry of models.yaml into a LoadedModel. Has no state of its own."""

    @abstractmethod
    def load(self, spec: SpecT, placement: Placement) -> LoadedModel:
        """Load from the entry's `local_path` or from the hub's cache. Raises EngineError for a recognised fault."""

    def check(self, spec: SpecT, folders: Folders) -> None:
        """Check the weights' files without reading them whole. Raises EngineError if they cannot be loaded.

        Called in a process without torch.
        """
        return

    def least_bytes(self, spec: SpecT, placement: Placement) -> int | None:
        """The least bytes that its weights take on the device, from the headers of their files; None: unknown.

        Called before any load, in a process without torch. May raise EngineError.
        """
        return None

    def longest_side(self, spec: SpecT, folders: Folders) -> int:
        """The most pixels of a picture's side; 0: no limit. Called before any load, in a process without torch.

        May raise EngineError, OSError, or for broken JSON: ValueError, TypeError, LookupError, AttributeError.
        """
        return 0

    def prompt_warnings(self, spec: SpecT, folders: Folders, prompt: str) -> Sequence[str]:
        """Warnings about parts of this prompt that its pictures would ignore. Called in a process without torch.

        May raise the same errors as `longest_side`.
        """
        return ()

    def files(self, spec: SpecT, folders: Folders) -> Sequence[Path]:
        """The files that a load reads. Called in a process without torch. May raise EngineError or OSError."""
        return ()


class Family(NamedTuple):
    """One line of the table in `imagegen.loaders`."""

    spec: type[ModelSpec]
    loader: ModelLoader[Any]


def families_named(name: str) -> Mapping[str, Family]:
    """Import the module of `module:attribute` and return the table of families that it names.

    The worker process gets this name instead of the table, because only plain values cross the border. Raises
    ImportError, AttributeError or TypeError if there is no such table.
    """
    table = pkgutil.resolve_name(name)
    if not (isinstance(table, Mapping) and all(isinstance(family, Family) for family in table.values())):
        raise TypeError(f"{name} is not a table of model families")
    return table


def specs_of(families: Mapping[str, Family]) -> Mapping[str, type[ModelSpec]]:
    """Type word -> spec class, as the catalog reads them."""
    return MappingProxyType({word: family.spec for word, family in families.items()})


def find_weights(spec: ModelSpec, folders: Folders) -> Path:
    """The folder of the weights: `local_path` if it is complete, else the snapshot in the hub's cache.

    Without a snapshot it is `local_path` even if that is incomplete: the load then reports the missing files.

    Raises WeightsMissing, or WeightsRefused if `local_path` is a file.
    """
    folder = local_folder(spec, folders.models)
    cached = cached_snapshot(spec.hf_path) if spec.hf_path else None
    if folder is not None and folder.is_dir() and (cached is None or lacks_locally(spec, folders.models) is None):
        return folder
    if cached is None and folder is not None and folder.is_file():
        raise WeightsRefused(f"{_what_it_is(folder)} This entry needs a folder with a {INDEX}.")
    if cached is None:
        raise WeightsMissing(f"The weights of '{spec.name}' are not on this machine: {advice(spec)}")
    return cached


def _what_it_is(file: Path) -> str:
    """A sentence about a file that an entry names instead of a folder."""
    match file.suffix.lower():
        case ".safetensors":
            what = "a single file of weights, a checkpoint or one part of a model"
        case ".gguf":
            what = "a GGUF file, for an entry of type gguf"
        case ".ckpt" | ".pt" | ".pth" | ".bin":
            what = "a file of pickled weights, which can execute code and is never opened"
        case _:
            what = "a file"
    return f"local_path names {what}: {file.name}."


def advice(spec: ModelSpec) -> str:
    """Advice to the operator about missing weights."""
    places = []
    if spec.local_path:
        # Messages never contain an absolute path.
        absolute = Path(spec.local_path).expanduser().is_absolute()
        where = (
            "the folder that its local_path names" if absolute else f"'{spec.local_path}' below the models directory"
        )
        places.append(f"put them into {where}")
    if spec.hf_path:
        places.append(f"fetch them from '{spec.hf_path}' on the hub")
    return " or ".join(places) or "the entry names neither local_path nor hf_path"
