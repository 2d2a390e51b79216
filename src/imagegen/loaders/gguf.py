"""Quantised transformers in GGUF files, inside the pipeline of their base model."""

from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, Field, StringConstraints, model_validator

from imagegen.catalog.catalog import HubFiles
from imagegen.catalog.fields import HubSourceOrPath, WeightsFile
from imagegen.catalog.sources import Folders, cached_file, cached_snapshot, local
from imagegen.core.errors import WeightsCorrupt, WeightsMissing, WeightsRefused
from imagegen.core.wording import Form
from imagegen.loaders.base import LoadedModel, ModelLoader, Placement, advice
from imagegen.loaders.diffusers_model import (
    DiffusersSpec,
    check_pipeline,
    import_pipeline,
    least_bytes,
    load_model,
    pipeline_files,
    replaced_files,
    torch_dtype,
)
from imagegen.loaders.folder import check_file, read_index
from imagegen.loaders.replacing import on_hub

#: Transformer classes that diffusers reads from GGUF files.
TRANSFORMERS = frozenset(
    {
        "FluxTransformer2DModel",
        "Flux2Transformer2DModel",
        "SD3Transformer2DModel",
        "ChromaTransformer2DModel",
        "QwenImageTransformer2DModel",
        "ZImageTransformer2DModel",
        "Lumina2Transformer2DModel",
        "AuraFlowTransformer2DModel",
    }
)


class QuantisedSpec(DiffusersSpec):
    """A quantised transformer; everything else comes from `base_model`."""

    base_model: HubSourceOrPath = Field(
        description="`org/name[@revision]` on the hub, or a folder as in `local_path`. A folder that exists needs no "
        "network."
    )

    @property
    def elsewhere(self) -> tuple[str, ...]:
        return (*super().elsewhere, "transformer")

    def base_folder(self, folders: Folders) -> Path:
        """The folder of the base model, which has the other parts. Raises WeightsMissing."""
        folder = local(self.base_model, folders.models)
        cached = cached_snapshot(self.base_model) if self.base_on_hub else None
        if folder.is_dir() and (cached is None or self._lacks_in(folder) is None):
            return folder
        if cached is None:
            raise WeightsMissing(f"The base model of '{self.name}' is not on this machine.")
        return cached

    def lacks_beside(self, place: Callable[[str], Path]) -> str | None:
        base = None if self.base_on_hub else self._lacks_in(place(self.base_model))
        return super().lacks_beside(place) if base is None else base

    @model_validator(mode="after")
    def _own_transformer(self) -> Self:
        if "transformer" in self.parts:
            raise ValueError("parts: the transformer is the file that the entry names")
        return self

    @model_validator(mode="after")
    def _names_its_weights(self) -> Self:
        return self  # each family checks which file it needs

    @model_validator(mode="after")
    def _quantised_once(self) -> Self:
        for word in ("layerwise_casting", "quantize"):
            if getattr(self, word) is not None:
                raise ValueError(f"{word}: the transformer is quantised already")
        return self

    @property
    def base_on_hub(self) -> bool:
        """Whether `base_model` can be a repository."""
        return on_hub(self.base_model)

    def base_files(self) -> tuple[HubFiles, ...]:
        """The files to pull from `base_model`."""
        return (HubFiles.of(self.base_model, **self._pipeline_files),) if self.base_on_hub else ()


class GGUFSpec(QuantisedSpec):
    """A GGUF file: `local_path` (the file, or its folder), or `gguf_file` in the repository `hf_path`."""

    libraries: ClassVar[tuple[str, ...]] = ("gguf",)

    type: Literal["gguf"]
    pipeline_class: Literal[
        "FluxPipeline",
        "FluxKontextPipeline",
        "FluxFillPipeline",
        "Flux2Pipeline",
        "Flux2KleinPipeline",
        "StableDiffusion3Pipeline",
        "AuraFlowPipeline",
        "ChromaPipeline",
        "Lumina2Pipeline",
        "QwenImagePipeline",
        "QwenImageEditPipeline",
        "QwenImageEditPlusPipeline",
        "ZImagePipeline",
    ] = "FluxPipeline"
    gguf_file: (
        Annotated[WeightsFile, StringConstraints(max_length=300), Form(r".+\.gguf", "must end with .gguf")] | None
    ) = Field(
        default=None,
        validation_alias=AliasChoices("gguf_file", "filename", "weight_name"),
        description="The file's name in `hf_path`, or in the folder `local_path`.",
    )

    @model_validator(mode="after")
    def _one_file(self) -> Self:
        if self.local_path is None and not (self.hf_path and self.gguf_file):
            raise ValueError("no file is named; give gguf_file beside hf_path, or local_path")
        return self

    def lacks(self, place: Callable[[str], Path]) -> str | None:
        if self.local_path is None:
            return None
        path = place(self.local_path)
        names = [path, *([path / self.gguf_file] if self.gguf_file else [])]
        return None if any(it.is_file() for it in names) else self.gguf_file or self.local_path

    def hub_files(self) -> tuple[HubFiles, ...]:
        own = (HubFiles.of(self.hf_path, files=(self.gguf_file,)),) if self.hf_path and self.gguf_file else ()
        return own + self.base_files() + self.more_files()


class GGUFModelLoader(ModelLoader[GGUFSpec]):
    """Loads the transformer of a GGUF file into the pipeline of its base model. Needs no network."""

    def load(self, spec: GGUFSpec, placement: Placement) -> LoadedModel:
        file = find_gguf(spec, placement.folders)
        check_file(file, file.name)
        base = spec.base_folder(placement.folders)
        import_pipeline(spec, base, placement)
        transformer = open_transformer(spec, file, base, torch_dtype(spec.torch_dtype, placement.device))
        return load_model(spec, base, placement, {"transformer": transformer}, beside=[file])

    def check(self, spec: GGUFSpec, folders: Folders) -> None:
        file = find_gguf(spec, folders)
        check_file(file, file.name)
        check_pipeline(spec, spec.base_folder(folders), folders)

    def least_bytes(self, spec: GGUFSpec, placement: Placement) -> int | None:
        file = find_gguf(spec, placement.folders)
        return least_bytes(spec, spec.base_folder(placement.folders), placement, {"transformer": file.stat().st_size})

    def files(self, spec: GGUFSpec, folders: Folders) -> Sequence[Path]:
        base = pipeline_files(spec, spec.base_folder(folders))
        return [find_gguf(spec, folders), *base, *replaced_files(spec, folders)]


def find_gguf(spec: GGUFSpec, folders: Folders) -> Path:
    """The GGUF file. Raises WeightsMissing."""
    places = []
    if spec.local_path is not None:
        path = local(spec.local_path, folders.models)
        places = [path, *([path / spec.gguf_file] if spec.gguf_file else [])]
    cached = cached_file(spec.hf_path, spec.gguf_file) if spec.hf_path and spec.gguf_file else None
    for place in (*places, cached):
        if place is not None and place.is_file():
            return place
    raise WeightsMissing(f"The GGUF file of '{spec.name}' is not on this machine: {advice(spec)}")


def open_transformer(spec: GGUFSpec, file: Path, base: Path, dtype: Any) -> Any:
    """Read the transformer; it stays quantised and computes in `dtype`. Raises WeightsCorrupt or WeightsRefused."""
    import diffusers

    library, name = read_index(base, spec.pipeline_class).get("transformer", ["", ""])
    if library != "diffusers" or name not in TRANSFORMERS:
        raise WeightsCorrupt(f"The base model's transformer is a {name}, which no GGUF file can replace.")
    check_types(file)
    try:
        return getattr(diffusers, name).from_single_file(
            str(file),
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
            config=str(base),
            subfolder="transformer",
            dtype=dtype,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise WeightsCorrupt(f"{file.name} is undamaged, but does not fit the {name} of the base model.") from error


def check_types(file: Path) -> None:
    """Check the types of a GGUF file's tensors, and that the file is complete.

    Raises WeightsRefused for a type that diffusers does not read; its message names a type to use instead. Raises
    WeightsCorrupt for a damaged file.
    """
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader

    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise WeightsCorrupt(f"{file.name} is not a GGUF file.")
    try:
        counts = Counter(tensor.tensor_type for tensor in GGUFReader(file).tensors)
    except (OSError, ValueError, KeyError, IndexError, TypeError, UnicodeDecodeError) as error:
        if GGMLQuantizationType.__name__ in str(error):
            raise WeightsRefused(
                f"{file.name} has weights of a type that gguf {version('gguf')} does not know."
            ) from None
        raise WeightsCorrupt(f"{file.name} is cut off or damaged; fetch it again.") from error
    known = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, *SUPPORTED_GGUF_QUANT_TYPES}
    unsupported = [kind for kind, _ in counts.most_common() if kind not in known]
    if not unsupported:
        return

    def bits(kind: GGMLQuantizationType) -> float:
        values, size = GGML_QUANT_SIZES[kind]
        return 8 * size / values

    common = [kind for kind in SUPPORTED_GGUF_QUANT_TYPES if kind.name.endswith("_K") or kind.name == "Q8_0"]
    instead = min(
        (kind for kind in common if bits(kind) >= bits(unsupported[0])), key=bits, default=GGMLQuantizationType.Q8_0
    )
    names = ", ".join(kind.name for kind in unsupported)
    raise WeightsRefused(
        f"{file.name} has weights of type {names}, which diffusers does not read. The file is undamaged: "
        f"pulling it again does not help. Use the file with {instead.name} in its name."
    )
