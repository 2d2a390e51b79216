"""FLUX transformers in 4 bits, run by the Nunchaku engine, inside the pipeline of their base model."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from imagegen.catalog.catalog import HubFiles
from imagegen.catalog.fields import HubSource, SafetensorsFile
from imagegen.catalog.sources import Folders, cached_file, local
from imagegen.core.errors import EngineMissing, UnsupportedDevice, WeightsCorrupt, WeightsMissing
from imagegen.core.wording import Form
from imagegen.loaders.base import LoadedModel, ModelLoader, Placement, advice
from imagegen.loaders.diffusers_model import (
    DiffusersModel,
    check_pipeline,
    import_pipeline,
    load_model,
    pipeline_files,
    quiet_libraries,
    replaced_files,
    torch_dtype,
)
from imagegen.loaders.folder import check_file
from imagegen.loaders.gguf import QuantisedSpec

#: Stands for `int4` or `fp4` in a file's name.
PRECISION = "{precision}"
PRECISIONS = ("int4", "fp4")

#: CUDA compute capabilities that the engine has kernels for (its own documentation, November 2026); Hopper has none.
INT4 = frozenset({(7, 5), (8, 0), (8, 6), (8, 9)})
FP4 = frozenset({(12, 0), (12, 1)})

INSTALL = "install the wheel for your torch and Python from the releases of nunchaku-ai/nunchaku on GitHub"


class NunchakuSpec(QuantisedSpec):
    """A 4-bit transformer: `local_path` (the file, or its folder), or `weight_name` in the repository `hf_path`."""

    libraries: ClassVar[tuple[str, ...]] = ("nunchaku",)

    type: Literal["flux_nunchaku", "nunchaku"]
    pipeline_class: Literal["FluxPipeline", "FluxKontextPipeline"] = "FluxPipeline"
    weight_name: (
        Annotated[SafetensorsFile, Form(r"([^{}]|\{precision\})+", "may have braces only as {precision}")] | None
    ) = Field(
        default=None,
        description="The file in `hf_path` or `local_path`. `{precision}` becomes int4 or fp4, as the GPU needs.",
    )
    t5_weight_name: SafetensorsFile | None = Field(
        default=None,
        description="The file of a quantised T5 encoder, in `t5_hf_path` or beside the transformer.",
    )
    t5_hf_path: HubSource | None = Field(
        default=None, description="The repository of `t5_weight_name`; by default `hf_path`."
    )

    @model_validator(mode="after")
    def _one_file(self) -> Self:
        if self.local_path is None and not (self.hf_path and self.weight_name):
            raise ValueError("no file is named; give weight_name beside hf_path, or local_path")
        return self

    @model_validator(mode="after")
    def _one_t5(self) -> Self:
        if self.t5_weight_name and "text_encoder_2" in self.parts:
            raise ValueError("parts: text_encoder_2 is the file that t5_weight_name names")
        return self

    @model_validator(mode="after")
    def _no_options_of_diffusers(self) -> Self:
        if self.compile:
            raise ValueError("compile: the engine has its own kernels")
        if self.step_cache is not None:
            raise ValueError("step_cache: the engine runs all blocks at once")
        return self

    @property
    def elsewhere(self) -> tuple[str, ...]:
        return (*super().elsewhere, *(["text_encoder_2"] if self.t5_weight_name else []))

    def lacks(self, place: Callable[[str], Path]) -> str | None:
        """Like the base class's method, but the file of one precision is enough."""
        if self.local_path is None:
            return None
        for word in PRECISIONS:
            path = place(self.local_path.replace(PRECISION, word))
            name = (self.weight_name or "").replace(PRECISION, word)
            if path.is_file() or (name and (path / name).is_file()):
                return None
        return self.weight_name or self.local_path

    @property
    def stays_in_host_memory(self) -> bool:
        return False  # the engine loads its weights to the device itself, and torch cannot move its blocks

    @property
    def supports_lora(self) -> bool:
        return False  # the engine adds LoRAs by its own interface

    def check_batch(self) -> None:
        raise ValueError("max_batch: not tested with Nunchaku's engine; leave it out")

    def hub_files(self) -> tuple[HubFiles, ...]:
        own: tuple[HubFiles, ...] = ()
        if self.hf_path and self.weight_name:
            if PRECISION in self.weight_name:
                names = tuple((word, self.weight_name.replace(PRECISION, word)) for word in PRECISIONS)
                own = (HubFiles.of(self.hf_path, by_precision=names),)
            else:
                own = (HubFiles.of(self.hf_path, files=(self.weight_name,)),)
        t5_home = self.t5_hf_path or self.hf_path
        if t5_home and self.t5_weight_name:
            own += (HubFiles.of(t5_home, files=(self.t5_weight_name,)),)
        return own + self.base_files() + self.more_files()


class NunchakuModelLoader(ModelLoader[NunchakuSpec]):
    """Loads a 4-bit transformer, and a quantised T5 if there is one, into the pipeline of its base model."""

    def load(self, spec: NunchakuSpec, placement: Placement) -> LoadedModel:
        with placement.importing():
            quiet_libraries()
            import torch
        engine = find_engine()
        precision = choose_precision(placement.device)
        engine._C.utils.trim_memory()  # memory of a failed load
        made = partial(NunchakuModel, engine, placement.device, outside_torch(placement.device))
        base = spec.base_folder(placement.folders)
        files = _own_files(spec, precision, placement.folders)
        import_pipeline(spec, base, placement)
        torch.cuda.empty_cache()  # the engine cannot use memory that torch has cached
        parts = {"transformer": open_transformer(engine, spec, files[0], placement)}
        if spec.t5_weight_name:
            parts["text_encoder_2"] = open_t5(engine, spec, files[1], placement)
        return load_model(spec, base, placement, parts, beside=files, quantization=precision, model=made)

    def check(self, spec: NunchakuSpec, folders: Folders) -> None:
        for file in _any_files(spec, folders):
            check_file(file, file.name)
        check_pipeline(spec, spec.base_folder(folders), folders)

    def files(self, spec: NunchakuSpec, folders: Folders) -> Sequence[Path]:
        return [
            *_any_files(spec, folders),
            *pipeline_files(spec, spec.base_folder(folders)),
            *replaced_files(spec, folders),
        ]


class NunchakuModel(DiffusersModel):
    """A model whose transformer blocks are in device memory of the engine, which torch neither measures nor frees."""

    def __init__(self, engine: Any, device: str, before: int, *made: Any) -> None:
        """`before`: the value of `outside_torch` when the load began."""
        super().__init__(*made)
        self._engine = engine
        self._block_bytes = max(0, outside_torch(device) - before)

    @property
    def weight_bytes(self) -> int:
        return super().weight_bytes + self._block_bytes

    @property
    def device_bytes(self) -> int:
        return super().device_bytes + self._block_bytes

    @property
    def outside_bytes(self) -> int:
        return self._block_bytes

    @property
    def moved_bytes(self) -> int:
        return super().moved_bytes + self._block_bytes

    def trim(self) -> None:
        super().trim()
        self._engine._C.utils.trim_memory()

    def close(self) -> None:
        super().close()
        # The engine configures CUDA to keep freed memory.
        self._engine._C.utils.trim_memory()


def outside_torch(device: str) -> int:
    """Bytes of device memory that are in use outside torch's allocator; 0 on a CPU."""
    if device == "cpu":
        return 0
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return int(total - free - torch.cuda.memory_reserved(device))


def _own_files(spec: NunchakuSpec, precision: str, folders: Folders) -> list[Path]:
    """The transformer's file, and the T5 encoder's if the entry names one. Raises WeightsMissing."""
    files = [find_file(spec, spec.weight_name, spec.hf_path, precision, folders)]
    if spec.t5_weight_name:
        files.append(find_file(spec, spec.t5_weight_name, spec.t5_hf_path or spec.hf_path, precision, folders))
    return files


def _any_files(spec: NunchakuSpec, folders: Folders) -> list[Path]:
    """The entry's files of one precision, whichever is on this machine. Raises WeightsMissing.

    The device decides which precision is read. The files of both are about equally large.
    """
    try:
        return _own_files(spec, "int4", folders)
    except WeightsMissing:
        return _own_files(spec, "fp4", folders)


def open_transformer(engine: Any, spec: NunchakuSpec, file: Path, placement: Placement) -> Any:
    """Read the transformer in 4 bits. Raises WeightsCorrupt."""
    return open_file(
        engine.NunchakuFluxTransformer2dModel.from_pretrained,
        file,
        device=placement.device,
        # The engine offloads only the transformer's blocks.
        offload=spec.chosen("cpu_offload", placement.settings) not in ("none", "encoders"),
        torch_dtype=torch_dtype(spec.torch_dtype, placement.device),
    )


def open_t5(engine: Any, spec: NunchakuSpec, file: Path, placement: Placement) -> Any:
    """Read the T5 encoder in 4 bits. Raises WeightsCorrupt."""
    return open_file(
        engine.NunchakuT5EncoderModel.from_pretrained,
        file,
        # By default it is loaded to the first GPU.
        device=placement.device if spec.chosen("cpu_offload", placement.settings) == "none" else "cpu",
        torch_dtype=torch_dtype(spec.torch_dtype, placement.device),
    )


def open_file(opener: Callable[..., Any], file: Path, **how: Any) -> Any:
    """Call `opener`, a function of the engine, on a file. Raises WeightsCorrupt if it cannot read the file."""
    check_file(file, file.name)
    try:
        return opener(str(file), **how)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsCorrupt(f"{file.name} is not a file that the Nunchaku engine reads.") from error


def find_engine() -> Any:
    """Import the engine's module. Raises EngineMissing with advice."""
    try:
        import nunchaku  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise EngineMissing(f"The Nunchaku engine is not installed: {INSTALL}.") from error
    if not hasattr(nunchaku, "NunchakuFluxTransformer2dModel"):
        raise EngineMissing(
            "The installed package 'nunchaku' is not the engine, but an unrelated package of that name on PyPI: "
            f"run `pip uninstall nunchaku`, then {INSTALL}."
        )
    return nunchaku


def precision_of(capability: tuple[int, ...] | None) -> str | None:
    """`int4` or `fp4`, the one that the engine has kernels for on a card; None: neither, or the card is unknown."""
    return "int4" if capability in INT4 else "fp4" if capability in FP4 else None


def choose_precision(device: str) -> str:
    """`int4` or `fp4`, the one that the engine has kernels for on this GPU. Raises UnsupportedDevice."""
    if device == "cpu":
        raise UnsupportedDevice("Nunchaku models need an NVIDIA GPU; this service runs on a CPU.")
    import torch

    capability = torch.cuda.get_device_capability(device)
    if (precision := precision_of(capability)) is not None:
        return precision
    raise UnsupportedDevice(
        f"Nunchaku has no kernels for this GPU (compute capability {'.'.join(map(str, capability))}); "
        "it runs on Turing, Ampere, Ada and Blackwell. Use the GGUF or the plain model instead."
    )


def find_file(spec: NunchakuSpec, name: str | None, home: str | None, precision: str, folders: Folders) -> Path:
    """The path of a file of the entry, for this precision. Raises WeightsMissing."""
    name = name.replace(PRECISION, precision) if name else None
    places: list[Path | None] = []
    if spec.local_path is not None:
        path = local(spec.local_path.replace(PRECISION, precision), folders.models)
        if path.is_dir() and name:
            places = [path / name]
        else:  # the T5 encoder is beside the transformer, whose file may have any name on this machine
            places = [path.parent / name if name and name == spec.t5_weight_name else path]
    places.append(cached_file(home, name) if home and name else None)
    for place in places:
        if place is not None and place.is_file():
            return place
    raise WeightsMissing(f"The 4-bit weights of '{spec.name}' are not on this machine: {advice(spec)}")
