"""What a model family is: a spec (its fields in models.yaml) and a ModelLoader. Nothing here imports torch."""

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
from imagegen.core.task import GenerationRequest, Pixels, TokensRead
from imagegen.loaders.parts import Part, Parts

SpecT = TypeVar("SpecT", bound=ModelSpec)


class OnStep(Protocol):
    """Called after each denoising step."""

    def __call__(self, step: int, total: int, preview: bytes = b"", /) -> None:
        """Steps done, steps in all, and a small JPEG if a preview was requested. Raises Stop to end the call."""


class StopFlag(Protocol):
    """Whether the call should end between two steps: a `threading.Event`, or several as one."""

    def is_set(self) -> bool: ...


class Stop(Exception):
    """Raised by OnStep through a pipeline, to end it between two steps."""


class Placement(NamedTuple):
    """Where and how a model is loaded."""

    #: `cpu`, `cuda`, `cuda:1`.
    device: str
    settings: GlobalSettings
    folders: Folders
    #: What other models have in memory; a loader may use some of it and must then tell it to let go of the rest.
    parts: Parts
    #: A context in which libraries are imported, before anything of the model is in memory. At its end the engine has
    #: the garbage collector leave alone what is there; an exception in it means that this process cannot go on.
    importing: Callable[[], AbstractContextManager[None]] = nullcontext


class Inputs(NamedTuple):
    """What a request brings along beside its numbers and words."""

    #: An encoded picture, for image-to-image.
    init_image: bytes | None = None
    #: Another one: its white part is repainted, the black part stays.
    mask_image: bytes | None = None
    #: The files of `request.loras`.
    lora_files: Sequence[Path] = ()
    #: Steps of each picture after which to say what it will be like, where the model can.
    previews: int = 0


class LoadedModel(ABC):
    """A model in device memory."""

    @abstractmethod
    def generate(self, request: GenerationRequest, inputs: Inputs, on_step: OnStep) -> list[Pixels]:
        """One picture for each of `request.seeds`, exactly `request.size`.

        `on_step` may raise Stop, which passes through. Picture i is the same as that of a request with its seed alone,
        and nothing of a request stays behind for the next one.
        """

    def generate_together(self, requests: Sequence[GenerationRequest], on_step: OnStep) -> list[Pixels]:
        """The pictures of requests that are alike but for words and seeds, in one call and in the order of asking.

        They differ from those of `generate` by rounding. Steps are those of the call: each is one of every picture.
        Asked only of models whose entry has a `max_batch`.
        """
        raise TypeError(f"{type(self).__name__} makes one picture at a time")

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of all parameters and buffers."""

    @abstractmethod
    def provenance(self, inputs: Inputs) -> Provenance:
        """What makes the pictures of a request with these inputs."""

    def warnings(self, request: GenerationRequest) -> Sequence[str]:
        """What the pictures of the latest call ignore of this request, in sentences for its caller.

        Asked once for each request of the call, after it. A sentence holds no path.
        """
        return ()

    def tokens(self, request: GenerationRequest) -> Sequence[TokensRead]:
        """What each text encoder read of the prompt of this request, as `warnings`; empty: not known."""
        return ()

    @property
    def device_bytes(self) -> int:
        """Of `weight_bytes`, the most that are in device memory at one time."""
        return self.weight_bytes

    @property
    def host_bytes(self) -> int:
        """Host memory that its weights take while it is on another device: 0 unless they are offloaded or came back."""
        return 0

    @property
    def parts(self) -> Sequence[Part]:
        """Its components, as far as another model may share them."""
        return ()

    @property
    def outside_bytes(self) -> int:
        """Bytes of device memory that it takes beside torch's allocator, which alone is measured."""
        return 0

    @property
    def moved_bytes(self) -> int:
        """Of `weight_bytes`, what its load brought to the device: the rest was there."""
        return self.weight_bytes

    def to_host(self) -> bool:
        """Leave the device and stay in host memory, where the device is another one; it cannot generate then.

        False: it cannot do that, and is to be closed.
        """
        return True

    def to_device(self) -> int:
        """Come back after `to_host`; the bytes that moved."""
        return 0

    def trim(self) -> None:
        """Give up what is only kept for speed: the device is full."""
        return

    def close(self) -> None:
        """Let go of everything that references alone do not."""
        return


class ModelLoader(ABC, Generic[SpecT]):
    """Turns an entry of models.yaml into a LoadedModel. Has no state of its own."""

    @abstractmethod
    def load(self, spec: SpecT, placement: Placement) -> LoadedModel:
        """Load from where the entry says, or from the hub's cache. Raises EngineError for what it knows to be wrong."""

    def check(self, spec: SpecT, folders: Folders) -> None:
        """Raises EngineError for weights that cannot be loaded, as far as their files say so without being read whole.

        Asked in a process without torch.
        """
        return

    def least_bytes(self, spec: SpecT, placement: Placement) -> int | None:
        """What its weights take on the device at least, by what the files say of themselves; None: nobody knows.

        Asked before anything is loaded, in a process without torch. May raise EngineError.
        """
        return None

    def longest_side(self, spec: SpecT, folders: Folders) -> int:
        """Pixels of a picture's side, at most; 0: any number. Asked in a process without torch, before any load.

        May raise EngineError, OSError, or what broken JSON raises: ValueError, TypeError, LookupError, AttributeError.
        """
        return 0

    def prompt_warnings(self, spec: SpecT, folders: Folders, prompt: str) -> Sequence[str]:
        """What pictures of this prompt would ignore of it, in sentences. Asked in a process without torch.

        May raise as `longest_side`.
        """
        return ()

    def files(self, spec: SpecT, folders: Folders) -> Sequence[Path]:
        """The files that a load reads. Asked in a process without torch. May raise EngineError or OSError."""
        return ()


class Family(NamedTuple):
    """One line of the table in `imagegen.loaders`."""

    spec: type[ModelSpec]
    loader: ModelLoader[Any]


def families_named(name: str) -> Mapping[str, Family]:
    """The table of families that `module:attribute` names; the module is imported.

    A name and no table is what the worker process is told: only plain values reach it. Raises ImportError,
    AttributeError or TypeError if there is no such table.
    """
    table = pkgutil.resolve_name(name)
    if not (isinstance(table, Mapping) and all(isinstance(family, Family) for family in table.values())):
        raise TypeError(f"{name} is no table of model families")
    return table


def specs_of(families: Mapping[str, Family]) -> Mapping[str, type[ModelSpec]]:
    """Type word -> spec class, as the catalog reads them."""
    return MappingProxyType({word: family.spec for word, family in families.items()})


def find_weights(spec: ModelSpec, folders: Folders) -> Path:
    """The folder of the weights: `local_path` where it is complete, else the snapshot in the hub's cache.

    Without a snapshot an incomplete `local_path` is taken, too: the load says what it lacks. Raises WeightsMissing.
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
    """A sentence about a file that an entry names in the place of a folder."""
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
    """What the operator can do about missing weights."""
    places = []
    if spec.local_path:
        # The path of an entry that names an absolute one is the operator's business.
        absolute = Path(spec.local_path).expanduser().is_absolute()
        where = (
            "the folder that its local_path names" if absolute else f"'{spec.local_path}' below the models directory"
        )
        places.append(f"put them into {where}")
    if spec.hf_path:
        places.append(f"fetch them from '{spec.hf_path}' on the hub")
    return " or ".join(places) or "the entry names neither local_path nor hf_path"
