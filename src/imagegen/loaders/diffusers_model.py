"""DiffusersModel and DiffusersSpec, which all diffusers families share: fields, loading, calls, steps, sizes."""

import gc
import inspect
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from importlib import import_module
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from imagegen.catalog.catalog import CpuOffload, HubFiles, Section
from imagegen.catalog.fields import HubSource, HubSourceOrPath, PartName, Receipt, WeightsFile
from imagegen.catalog.hub_cache import lacks_in, paths_in
from imagegen.catalog.pipeline_files import needed, variant
from imagegen.catalog.sources import WEIGHTS, Folders, lora_files
from imagegen.core.errors import (
    EngineError,
    EngineMissing,
    LoraNotFound,
    LoraRefused,
    NotFinite,
    WeightsCorrupt,
    WeightsRefused,
)
from imagegen.core.provenance import Provenance
from imagegen.core.sizes import Size, render_size
from imagegen.core.stages import StageTime
from imagegen.core.task import GenerationRequest, Lora, Pixels, TokensRead
from imagegen.core.wording import THE_LOG
from imagegen.loaders.adapters import Adapters
from imagegen.loaders.base import Inputs, LoadedModel, OnStep, Placement
from imagegen.loaders.class_caches import clear_class_caches
from imagegen.loaders.decoding import Decoding
from imagegen.loaders.folder import TRUSTED_LIBRARIES, check_folder, header_bytes, read_index
from imagegen.loaders.host_copy import HostCopy, tensor_bytes
from imagegen.loaders.host_memory import room
from imagegen.loaders.offloading import DENOISERS, Turns, denoiser_of, layer_bytes, most_bytes, offloaded_parts
from imagegen.loaders.options import OptionsSpec, attention, compiling, move, quantization_config, step_cache, switch_on
from imagegen.loaders.parts import SHAREABLE, Part, Source
from imagegen.loaders.pictures import crop, fit_image, fit_mask, pad, paste
from imagegen.loaders.pipelines import PIPELINES, PipelineKind, longest_side
from imagegen.loaders.previews import PreviewMaker
from imagegen.loaders.prompts import PromptCache
from imagegen.loaders.provenance import provenance, with_loras
from imagegen.loaders.replacing import (
    absent,
    check_part,
    files_of,
    left_out,
    not_optional,
    nulls,
    on_hub,
    open_part,
    places_of,
)
from imagegen.loaders.stages import StageClock
from imagegen.loaders.tokens import TokenWatch, what_is_cut

#: Libraries that some pipelines need and imagegen does not install: torchvision must match the build of torch.
_OPTIONAL = ("torchvision", "ftfy", "protobuf")

#: Each tokenizer with the encoder that reads its tokens.
_TOKENIZERS = (
    ("tokenizer", "text_encoder"),
    ("tokenizer_2", "text_encoder_2"),
    ("tokenizer_3", "text_encoder_3"),
    ("tokenizer_4", "text_encoder_4"),
)

#: The least share of the encoder's vocabulary that its tokenizer must have. If the files of a tokenizer are missing,
#: transformers makes one with the special tokens only and raises no error.
_LEAST_VOCABULARY = 0.5


_OVERFLOW = (
    "The model computed numbers that are not finite, because they overflow in its dtype. Set torch_dtype "
    "to bfloat16 or float32 in its entry, or vae_dtype to float32 if only its VAE overflows."
)


class EntryLora(Section):
    """A LoRA that an entry adds to its weights at load."""

    path: WeightsFile = Field(description="A .safetensors file below the LoRA directory, or in `repo`.")
    repo: HubSource | None = Field(default=None, description="`org/name[@revision]` on the hub.")
    scale: float = Field(default=1, ge=-4, le=4, description="The strength of the LoRA.")


class DiffusersSpec(OptionsSpec):
    """An entry that runs a diffusers pipeline."""

    max_sequence_length: Annotated[int | None, Receipt] = Field(
        default=None,
        ge=16,
        le=4096,
        description="The number of tokens that prompts are padded or cut to, for pipelines with this argument.",
    )
    true_cfg_scale: Annotated[float, Receipt] = Field(
        default=1,
        ge=1,
        le=20,
        description="For FLUX and similar models: above 1, negative prompts work, and each step takes twice as long.",
    )
    parts: Annotated[Mapping[PartName, HubSourceOrPath | None], Receipt] = Field(
        default_factory=dict,
        max_length=16,
        description="Parts that come from elsewhere: a name such as `vae`, and a repository `org/name[@revision]` or a "
        "folder as in `local_path`, which holds the part or a pipeline with it; null leaves a part out that the "
        "pipeline can do without, such as `text_encoder_3` (T5) of Stable Diffusion 3.",
    )
    use_pe: Annotated[bool, Receipt] = Field(
        default=False,
        description="For ERNIE: whether its prompt enhancer, a language model, rewrites the prompt.",
    )
    loras: Annotated[tuple[EntryLora, ...], Receipt] = Field(
        default=(), max_length=8, description="LoRAs that are added to the weights at load."
    )

    def hub_files(self) -> tuple[HubFiles, ...]:
        own = (HubFiles.of(self.hf_path, **self._pipeline_files),) if self.hf_path else ()
        return own + self.more_files()

    def more_files(self) -> tuple[HubFiles, ...]:
        """The files to pull in addition to the pipeline: replaced parts and LoRAs."""
        parts = [(name, source) for name, source in self.parts.items() if source is not None and on_hub(source)]
        return tuple(files_of(name, source, self.torch_dtype) for name, source in parts) + self.lora_files()

    def lora_files(self) -> tuple[HubFiles, ...]:
        """The files to pull for the entry's own LoRAs."""
        return tuple(HubFiles.of(lora.repo, files=(lora.path,)) for lora in self.loras if lora.repo)

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """The parts that do not come from the pipeline's folder or repository."""
        return (*self.parts, *left_out(self.kind, self.parts))

    @property
    def _pipeline_files(self) -> dict[str, Any]:
        """The files that are needed from the pipeline's folder or repository, as fields of HubFiles."""
        return {"without": self.elsewhere, "dtype": self.torch_dtype}

    def lacks(self, place: Callable[[str], Path]) -> str | None:
        if self.local_path is None:
            return None
        return self._lacks_in(place(self.local_path))

    def lacks_beside(self, place: Callable[[str], Path]) -> str | None:
        for name, source in self.parts.items():
            if source is not None and not on_hub(source):
                lack = lacks_in(place(source), files_of(name, source, self.torch_dtype))
                if lack is not None:
                    return lack
        return None

    def _lacks_in(self, folder: Path) -> str | None:
        """A file that is missing in a pipeline's folder on this machine; None: nothing."""
        needed = self._pipeline_files
        needed["without"] += absent(self.kind, folder)
        return lacks_in(folder, HubFiles(repo="", **needed))

    @model_validator(mode="after")
    def _names_its_weights(self) -> Self:
        if self.local_path is None and self.hf_path is None:
            raise ValueError("no weights are named; give hf_path or local_path")
        return self

    @property
    def kind(self) -> PipelineKind:
        """The abilities of its pipeline class."""
        return PIPELINES[self.pipeline_class]

    @model_validator(mode="before")
    @classmethod
    def _default_capabilities(cls, data: Any) -> Any:
        """Take the capabilities that are left out from the pipeline class."""
        if not isinstance(data, dict):
            return data
        name = data.get("pipeline_class", cls.model_fields["pipeline_class"].default)
        kind = PIPELINES.get(name) if isinstance(name, str) else None
        return data if kind is None else _capabilities(kind) | data

    @field_validator("supports_text2img", "supports_img2img", "supports_inpaint")
    @classmethod
    def _only_capabilities_of_its_class(cls, wanted: bool, info: ValidationInfo) -> bool:
        name = info.data.get("pipeline_class")  # None: invalid, and reported already
        if wanted and name is not None and not _capabilities(PIPELINES[name])[str(info.field_name)]:
            raise ValueError(f"its class, {name}, cannot do that; leave it out")
        return wanted

    @model_validator(mode="after")
    def _parts_that_can_be_replaced(self) -> Self:
        for name in not_optional(self.kind, self.parts):
            optional = ", ".join(group[0] for group in self.kind.optional)
            raise ValueError(f"parts: {self.pipeline_class} needs '{name}'; it can do without {optional}")
        if self.quantize is not None and self.parts.keys() & set(DENOISERS):
            raise ValueError("parts and quantize contradict each other: a replaced transformer is not quantised")
        return self

    @model_validator(mode="after")
    def _loras_if_supported(self) -> Self:
        if self.loras and not self.supports_lora:
            raise ValueError(f"loras: {self.pipeline_class} of type {self.type} does not support LoRAs")
        return self

    @model_validator(mode="after")
    def _tokens_within_limit(self) -> Self:
        most = self.kind.max_tokens
        if most is not None and self.max_sequence_length is not None and self.max_sequence_length > most:
            raise ValueError(f"max_sequence_length: {self.pipeline_class} takes at most {most} tokens")
        return self

    @model_validator(mode="after")
    def _step_cache_if_supported(self) -> Self:
        if self.step_cache is not None and not self.kind.step_cache:
            raise ValueError(f"step_cache: {self.pipeline_class} cannot do that")
        if self.step_cache is not None and self.true_cfg_scale > 1:
            raise ValueError(
                "step_cache and true_cfg_scale contradict each other: a step has two runs, which would share one cache"
            )
        return self

    @property
    def side_multiple(self) -> int:
        return self.kind.multiple

    @property
    def supports_negative_prompt(self) -> bool:
        kind = self.kind
        by_true_cfg = self.pipeline_class.startswith("Flux")
        return kind.negative_prompt and (self.true_cfg_scale > 1 or not by_true_cfg)

    @property
    def supports_lora(self) -> bool:
        return self.kind.lora and self.quantize is None

    @property
    def supports_strength(self) -> bool:
        return self.supports_img2img and self.kind.strength

    @property
    def stays_in_host_memory(self) -> bool:
        """Whether its weights can move to host memory and back: torchao's tensors cannot be moved in place."""
        return self.quantize is None

    def check_batch(self) -> None:
        if not self.kind.batches or self.kind.text2image is None:
            raise ValueError(f"max_batch: {self.pipeline_class} makes one picture at a time; leave it out")
        if self.step_cache is not None:
            raise ValueError("max_batch: a step cache does not work for several pictures in a call; leave it out")


def _capabilities(kind: PipelineKind) -> dict[str, bool]:
    return {
        "supports_text2img": kind.text2image is not None,
        "supports_img2img": kind.image2image is not None,
        "supports_inpaint": kind.inpaint is not None,
    }


def quiet_libraries() -> None:
    """Turn off the libraries' progress bars and warnings, but not errors. Call it before their classes are imported."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (transformers_logging, diffusers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def import_pipeline(spec: DiffusersSpec, folder: Path, placement: Placement) -> None:
    """Import the classes of the entry's pipeline, before the model uses any memory."""
    parts = [part for part in read_index(folder, spec.pipeline_class).values() if part[0] in TRUSTED_LIBRARIES]
    with placement.importing():
        quiet_libraries()
        for library, name in (*parts, ["diffusers", spec.pipeline_class]):
            with suppress(ImportError):  # open_pipeline reports what is missing
                getattr(import_module(library), name, None)


def torch_dtype(word: str, device: str) -> Any:
    """The torch dtype for a word of models.yaml; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    import torch

    if word == "auto":
        word = "float32" if device == "cpu" else "bfloat16"
    return getattr(torch, word)


def load_model(
    spec: DiffusersSpec,
    folder: Path,
    placement: Placement,
    parts: Mapping[str, Any] = MappingProxyType({}),
    *,
    beside: Sequence[Path] = (),
    quantization: str | None = None,
    model: Callable[..., "DiffusersModel"] | None = None,
) -> LoadedModel:
    """Check a pipeline's folder, open it on the device and add the entry's LoRAs.

    `parts` are arguments of the pipeline that replace parts of the folder. `beside` are the files that they were read
    from; a loader that reads any calls `import_pipeline` before. `quantization` is the name of their quantisation for
    the provenance, if it cannot be read from them. `model` is called instead of DiffusersModel. Raises EngineError.
    """
    check_pipeline(spec, folder, placement.folders)
    if not beside:
        import_pipeline(spec, folder, placement)
    gone = absent(spec.kind, folder)
    parts = dict.fromkeys(gone) | _other_parts(spec, folder, placement) | dict(parts)
    sources = _sources(spec, folder, placement, without={*parts, *spec.elsewhere})
    with ExitStack() as undo:
        shared = {name: part for name, source in sources.items() if (part := placement.parts.find(source))}
        moved = 0
        for part in shared.values():
            moved += part.enter()
            undo.callback(part.leave)
        placement.parts.let_go()
        pipeline = open_pipeline(spec, folder, placement, parts, shared)
        check_tokenizers(pipeline)
        if spec.vae_dtype is not None:
            # Otherwise XL's pipeline casts it to float32, and then back to torch_dtype.
            pipeline.vae.register_to_config(force_upcast=False)
        switch_on(pipeline, spec, placement.settings)
        offload, turns = _offload(spec, placement), None
        if offload in ("model", "encoders"):
            turns = Turns(_modules(pipeline), offload, placement.device)
        else:
            move(pipeline, spec, placement)
        own = _own_parts(spec, pipeline, placement, sources, [*shared, *(turns.names if turns else ())])
        for part in own:
            part.enter()
            moved += part.bytes
        adapters = _entry_adapters(spec, pipeline, placement)
        part_folders = [places_of(*part, spec.torch_dtype, placement.folders.models)[0] for part in _replaced(spec)]
        made_by = provenance(spec, pipeline, placement, [*beside, *part_folders, folder], quantization)
        undo.pop_all()
    own_parts = [*shared.values(), *own]
    first = {group[0] for group in spec.kind.optional}
    notes = [f"The model's folder has no '{name}': the pictures are made without it." for name in gone if name in first]
    return (model or DiffusersModel)(spec, pipeline, adapters, own_parts, moved, made_by, offload, turns, notes)


def _replaced(spec: DiffusersSpec) -> list[tuple[str, str]]:
    """The parts that come from elsewhere, each with its source."""
    return [(name, source) for name, source in spec.parts.items() if source is not None]


def _other_parts(spec: DiffusersSpec, folder: Path, placement: Placement) -> dict[str, Any]:
    """The parts that replace parts of the folder, read from elsewhere; None for a part that is left out.

    Raises EngineError.
    """
    index = read_index(folder, spec.pipeline_class)
    dtype = torch_dtype(spec.torch_dtype, placement.device)
    made: dict[str, Any] = dict.fromkeys(name for name in nulls(spec.kind, index) if name not in spec.parts)
    made |= dict.fromkeys(name for name in left_out(spec.kind, spec.parts) if name in index)
    for name, source in _replaced(spec):
        home, files = places_of(name, source, spec.torch_dtype, placement.folders.models)
        kind = index.get(name, [None, None])
        if name not in index:
            raise WeightsRefused(f"{spec.pipeline_class} has no part '{name}'.")
        copy = next((word for word in ("fp16", "bf16") if any(f".{word}" in it.name for it in files)), None)
        made[name] = open_part(name, home, kind, copy, dtype)
    return made


def check_pipeline(spec: DiffusersSpec, folder: Path, folders: Folders) -> None:
    """Check that the pipeline of a folder and the replaced parts can be loaded. Raises EngineError if not."""
    check_folder(folder, spec.pipeline_class, {*spec.elsewhere, *absent(spec.kind, folder)}, spec.torch_dtype)
    for name, source in _replaced(spec):
        check_part(name, source, spec.torch_dtype, folders.models)


def least_bytes(
    spec: DiffusersSpec, folder: Path, placement: Placement, beside: Mapping[str, int] = MappingProxyType({})
) -> int | None:
    """Like `ModelLoader.least_bytes`, for a pipeline's folder. `beside`: the bytes of the parts from elsewhere."""
    offload = _offload(spec, placement)
    if spec.layerwise_casting or spec.quantize or offload in ("sequential", "group"):
        return None
    word = spec.torch_dtype
    width = 4 if word == "float32" or (word == "auto" and placement.device == "cpu") else 2
    sizes = Counter(beside)
    for file in pipeline_files(spec, folder):
        if file.suffix == WEIGHTS:
            part = file.parent.name
            sizes[part] += header_bytes(file, 4 if part == "vae" and spec.vae_dtype else width)
    for name, source in _replaced(spec):
        files = places_of(name, source, spec.torch_dtype, placement.folders.models)[1]
        sizes[name] += sum(header_bytes(file, width) for file in files if file.suffix == WEIGHTS)
    return most_bytes(sizes, offloaded_parts(sizes, offload))


def pipeline_files(spec: DiffusersSpec, folder: Path) -> list[Path]:
    """Like `ModelLoader.files`, for a pipeline's folder. Parts that are `elsewhere` have no weights among them."""
    index = read_index(folder, spec.pipeline_class)
    without = {*spec.elsewhere, *absent(spec.kind, folder)}
    return [folder / name for name in needed(paths_in(folder), index, without, spec.torch_dtype)]


def replaced_files(spec: DiffusersSpec, folders: Folders) -> list[Path]:
    """The files of the parts that come from elsewhere. Raises WeightsMissing."""
    places = [places_of(name, source, spec.torch_dtype, folders.models) for name, source in _replaced(spec)]
    return [file for _, files in places for file in files]


def _offload(spec: DiffusersSpec, placement: Placement) -> CpuOffload:
    """The entry's `cpu_offload`, or that of `global`; always `none` on a CPU."""
    word: CpuOffload = "none" if placement.device == "cpu" else spec.chosen("cpu_offload", placement.settings)
    return word


def device_map(spec: DiffusersSpec, placement: Placement) -> str | None:
    """The device that diffusers reads weights to directly, where `quantize` rounds them tensor by tensor.

    None: the weights are read to host memory first, because they are offloaded or cast there.
    """
    through_host = _offload(spec, placement) != "none" or spec.layerwise_casting is not None
    return "cuda" if placement.device == "cuda" and not through_host else None


def _sources(spec: DiffusersSpec, folder: Path, placement: Placement, without: Collection[str]) -> dict[str, Source]:
    """The sources of the parts that other models may share; empty if the entry changes its weights."""
    if spec.loras or _offload(spec, placement) != "none":
        return {}
    options = [spec.chosen(name, placement.settings) for name in ("enable_vae_slicing", "enable_vae_tiling")]
    treatment = (spec.torch_dtype, placement.device, *options)
    index = read_index(folder, spec.pipeline_class)
    copy = variant(paths_in(folder), index, without, spec.torch_dtype)
    return {
        name: Source.of(folder, name, kind, (*treatment, spec.vae_dtype) if name == "vae" else treatment, copy)
        for name, kind in index.items()
        if name.startswith(SHAREABLE) and name not in without and kind != [None, None]
    }


def _own_parts(
    spec: DiffusersSpec,
    pipeline: Any,
    placement: Placement,
    sources: Mapping[str, Source],
    shared: Collection[str],
) -> list[Part]:
    """The parts that this load has made. Other models can find them from now on."""
    made = []
    for name, module in _modules(pipeline).items():
        if name not in shared:
            home = HostCopy([module], placement.device) if _can_leave(name, spec, placement) else None
            part = Part(module, sources.get(name), home)
            if part.source is not None:
                placement.parts.add(part)
            made.append(part)
    return made


def _can_leave(name: str, spec: DiffusersSpec, placement: Placement) -> bool:
    """Whether a part can move to host memory and back."""
    stays = name in DENOISERS and not spec.stays_in_host_memory
    return placement.device != "cpu" and _offload(spec, placement) not in ("sequential", "group") and not stays


def _modules(pipeline: Any) -> dict[str, Any]:
    return {name: part for name, part in pipeline.components.items() if hasattr(part, "parameters")}


def open_pipeline(
    spec: DiffusersSpec, folder: Path, placement: Placement, parts: Mapping[str, Any], shared: Mapping[str, Part]
) -> Any:
    """Read all parts except the given ones. Raises WeightsCorrupt if they do not fit together."""
    import diffusers
    from safetensors import SafetensorError

    index = read_index(folder, spec.pipeline_class)
    given = {**parts, **{name: part.module for name, part in shared.items()}}
    dtype = torch_dtype(spec.torch_dtype, placement.device)
    denoiser = next(name for name in DENOISERS if name in index)
    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    dtypes = {"default": dtype, "vae": torch_dtype(spec.vae_dtype, placement.device)} if spec.vae_dtype else dtype
    paths, elsewhere = paths_in(folder), [*parts, *spec.elsewhere]
    quantization, device = quantization_config(spec, denoiser, placement.device, dtype), device_map(spec, placement)
    try:
        for library, name in index.values():
            if library in TRUSTED_LIBRARIES:
                # If the library of a class is missing, transformers has a substitute that names it when it is used.
                getattr(getattr(import_module(library), name, None), "from_pretrained", None)
        if quantization is not None and device is None and placement.device == "cuda":
            # The encoders stay in host memory, but the denoiser is rounded on the device.
            given[denoiser] = getattr(diffusers, index[denoiser][1]).from_pretrained(
                folder / denoiser,
                variant=variant(paths, {denoiser: index[denoiser]}, dtype=spec.torch_dtype),
                quantization_config=quantization.quant_mapping[denoiser],
                device_map=placement.device,
                **options,
            )
            quantization, elsewhere = None, [*elsewhere, denoiser]
        return getattr(diffusers, spec.pipeline_class).from_pretrained(
            folder,
            variant=variant(paths, index, elsewhere, spec.torch_dtype),
            quantization_config=quantization,
            device_map=device,
            **options | {"dtype": dtypes},
            **given,
        )
    except ImportError as error:
        raise EngineMissing(f"{spec.pipeline_class} needs {_library(error)}.") from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WeightsCorrupt(f"The model's files do not fit together; {THE_LOG} says which.") from error
    except RuntimeError as error:
        if "size mismatch" not in str(error) and "mismatched" not in str(error):
            raise
        raise WeightsCorrupt("The model's weights do not have the shapes that its configuration says.") from error


def _library(error: ImportError) -> str:
    """The name of the missing module, and how to install it."""
    name = error.name or next(
        (word for word in _OPTIONAL if word in str(error).lower()), f"a library that {THE_LOG} names"
    )
    if name == "torchvision":
        return "torchvision, which is not installed: `make vision` installs the build that matches torch"
    return f"{name}: install it beside imagegen"


def check_tokenizers(pipeline: Any) -> None:
    """Raises WeightsCorrupt for a tokenizer that does not belong to its encoder."""
    for tokenizer_name, encoder_name in _TOKENIZERS:
        tokenizer, encoder = getattr(pipeline, tokenizer_name, None), getattr(pipeline, encoder_name, None)
        known = _vocabulary(encoder)
        if tokenizer is None or known is None:
            continue
        if not hasattr(tokenizer, "__len__"):
            tokenizer = tokenizer.tokenizer  # FLUX.2 has a processor in this place
        if not _LEAST_VOCABULARY * known <= len(tokenizer) <= known:
            raise WeightsCorrupt(f"{tokenizer_name} knows {len(tokenizer)} tokens and {encoder_name} {known}.")


def _vocabulary(encoder: Any) -> int | None:
    """The number of tokens that an encoder knows: the rows of its embedding table; None: unknown."""
    table = encoder.get_input_embeddings() if hasattr(encoder, "get_input_embeddings") else None
    return getattr(table, "num_embeddings", None)


def _entry_adapters(spec: DiffusersSpec, pipeline: Any, placement: Placement) -> Adapters:
    loras = [Lora(path=lora.path, repo=lora.repo, scale=lora.scale) for lora in spec.loras]
    # Only for `sequential`: the library switches it off to add a LoRA.
    offload = partial(move, pipeline, spec, placement) if _offload(spec, placement) == "sequential" else None
    try:
        return Adapters(pipeline, loras, lora_files(loras, placement.folders.loras), offload)
    except LoraNotFound as error:
        raise LoraRefused(f"A LoRA of the model's entry: {error.detail}") from error


class _Siblings(NamedTuple):
    """The pipelines on one set of weights."""

    text2image: Any
    image2image: Any
    inpaint: Any

    @classmethod
    def on(cls, pipeline: Any, kind: PipelineKind) -> "_Siblings":
        import diffusers

        def sibling(name: str | None) -> Any:
            if name is None or name == type(pipeline).__name__:
                return pipeline if name else None
            sibling_class = getattr(diffusers, name)
            # Not from_pipe(): it recasts the shared weights to float32 in place.
            made = sibling_class(**pipeline.components, **_settings_for(sibling_class, pipeline))
            made.set_progress_bar_config(disable=True)
            return made

        return cls(sibling(kind.text2image), sibling(kind.image2image), sibling(kind.inpaint))


def _settings_for(sibling_class: Any, pipeline: Any) -> dict[str, Any]:
    """The pipeline's settings that the sibling accepts, without the parts."""
    takes = inspect.signature(sibling_class.__init__).parameters
    settings = {name: value for name, value in pipeline.config.items() if name in takes}
    return {name: value for name, value in settings.items() if name not in pipeline.components}


class DiffusersModel(LoadedModel):
    """A pipeline and its siblings on the same weights."""

    def __init__(
        self,
        spec: DiffusersSpec,
        pipeline: Any,
        adapters: Adapters,
        parts: Sequence[Part],
        moved_bytes: int,
        made_by: Provenance,
        offload: CpuOffload,
        turns: Turns | None,
        notes: Sequence[str] = (),
    ) -> None:
        """`parts` have been entered. `turns` has the offloaded parts. `notes` are warnings about every picture."""
        self._spec = spec
        self._pipeline = pipeline
        self._siblings = _Siblings.on(pipeline, spec.kind)
        self._adapters = adapters
        self._parts = parts
        self._moved_bytes = moved_bytes
        self._made_by = made_by
        self._offload = offload
        self._turns = turns
        self._notes = notes
        self._on_device = True
        #: Whether a picture of the latest call was decoded in tiles.
        self._tiled = False
        self._watch = TokenWatch(pipeline)
        self._stages = StageClock(_wait_for_device)
        self._prompts = PromptCache(watch=self._watch, on_encoded=self._stages.encoded)
        for member in {id(sibling): sibling for sibling in self._siblings if sibling is not None}.values():
            self._prompts.attach(member)

    def provenance(self, inputs: Inputs) -> Provenance:
        made_by = with_loras(self._made_by, inputs.lora_files)
        return made_by.evolve(decoded="tiled") if self._tiled else made_by

    def warnings(self, request: GenerationRequest) -> Sequence[str]:
        cut = list(what_is_cut("prompt", self.tokens(request)))
        if request.negative_prompt:
            read = self._watch.of(request.negative_prompt, self._most_embeddings)
            cut += what_is_cut("negative_prompt", read)
        return [*self._notes, *self._adapters.warnings(request.loras), *cut]

    def tokens(self, request: GenerationRequest) -> Sequence[TokensRead]:
        return self._watch.of(request.prompt, self._most_embeddings)

    @property
    def stages(self) -> Sequence[StageTime]:
        return self._stages.stages

    @property
    def _most_embeddings(self) -> int | None:
        """The most embeddings that count: Qwen-Image reads all tokens, then drops those past `max_sequence_length`."""
        if self._spec.pipeline_class != "QwenImagePipeline":
            return None
        default = inspect.signature(self._pipeline.__call__).parameters["max_sequence_length"].default
        return self._spec.max_sequence_length or int(default)

    @property
    def weight_bytes(self) -> int:
        return tensor_bytes(_modules(self._pipeline).values())

    @property
    def device_bytes(self) -> int:
        modules = _modules(self._pipeline)
        if self._offload in ("sequential", "group"):
            # With `group`, the next layer is copied while one runs.
            return layer_bytes(modules.values(), 2 if self._offload == "group" else 1)
        sizes = {name: tensor_bytes([module]) for name, module in modules.items()}
        return most_bytes(sizes, self._turns.names if self._turns else ())

    @property
    def host_bytes(self) -> int:
        if self._offload in ("sequential", "group"):
            return self.weight_bytes
        return sum(part.host_bytes for part in self._parts) + (self._turns.host_bytes if self._turns else 0)

    @property
    def moved_bytes(self) -> int:
        return self._moved_bytes

    @property
    def parts(self) -> Sequence[Part]:
        return self._parts

    def generate(self, request: GenerationRequest, inputs: Inputs, on_step: OnStep) -> list[Pixels]:
        size = self._rendered(request.size)
        pipeline, fitted = self._choose(inputs, request.size)
        steps = _BatchSteps(request.batch_size, on_step, inputs.previews, size)
        call = self._call(request, size, steps) | {name: pad(it, size) for name, it in fitted.items()}
        loras = self._adapters.added(request.loras, inputs.lora_files)
        cache: AbstractContextManager[None] = self._prompts.paused() if request.loras else nullcontext()
        self._tiled = False
        self._stages.begin()
        self._watch.readings.clear()
        with compiling(self._spec), attention(self._spec), loras, cache:
            return [self._picture(pipeline, call, request.size, fitted, seed, steps) for seed in request.seeds]

    def generate_together(self, requests: Sequence[GenerationRequest], on_step: OnStep) -> list[Pixels]:
        first, seeds = requests[0], [seed for request in requests for seed in request.seeds]
        size = self._rendered(first.size)
        call = self._call(first, size, _BatchSteps(1, on_step, 0, size)) | self._all_prompts(requests)
        self._tiled = False
        self._stages.begin()
        self._watch.readings.clear()
        with compiling(self._spec), attention(self._spec):
            pipeline = self._siblings.text2image
            with global_seed(seeds[0], pipeline):
                pictures = self._run(pipeline, call, [_noise(seed) for seed in seeds])
        return [crop(picture, first.size, seed) for picture, seed in zip(pictures, seeds, strict=True)]

    def _rendered(self, asked: Size) -> Size:
        size = render_size(asked, self._spec.side_multiple)
        longest = longest_side(self._spec.pipeline_class, denoiser_of(self._pipeline).config)
        if 0 < longest < max(size):  # admission checks it only if the weights are on this machine
            raise EngineError(f"The model makes pictures of at most {longest} pixels a side.")
        return size

    def _all_prompts(self, requests: Sequence[GenerationRequest]) -> dict[str, list[str]]:
        """The prompt arguments of a call for several requests: lists with one prompt for each picture."""
        prompts = [self._prompts_of(request) for request in requests for _ in request.seeds]
        return {name: [each[name] for each in prompts] for name in prompts[0]}

    def _choose(self, inputs: Inputs, size: Size) -> tuple[Any, dict[str, Any]]:
        """The pipeline for these inputs, and its picture arguments, in the requested size."""
        if inputs.init_image is None:
            return self._siblings.text2image, {}
        image = fit_image(inputs.init_image, size)
        if inputs.mask_image is None:
            return self._siblings.image2image, {"image": image}
        return self._siblings.inpaint, {"image": image, "mask_image": fit_mask(inputs.mask_image, size)}

    def _call(self, request: GenerationRequest, size: Size, steps: "_BatchSteps") -> dict[str, Any]:
        """All arguments for this request that any pipeline takes."""
        spec = self._spec
        call: dict[str, Any] = {
            "width": size.width,
            "height": size.height,
            # Kontext and Sana otherwise choose another size.
            "max_area": size.pixels,
            "_auto_resize": False,
            "use_resolution_binning": False,
            "use_pe": spec.use_pe,
            "num_inference_steps": request.steps,
            "strength": request.strength,
            "true_cfg_scale": spec.true_cfg_scale,
            "max_sequence_length": spec.max_sequence_length,
            "output_type": "pt",  # stays on the device until it is 8-bit pixels
            "callback_on_step_end": steps.on_step_end,
            spec.kind.guidance: request.guidance_scale,
        }
        return {name: value for name, value in call.items() if value is not None} | self._prompts_of(request)

    def _prompts_of(self, request: GenerationRequest) -> dict[str, str]:
        negative = request.negative_prompt
        if negative is None and self._spec.kind.guidance == "true_cfg_scale":
            negative = " "  # without a negative prompt, these pipelines skip guidance
        return {"prompt": request.prompt} | ({} if negative is None else {"negative_prompt": negative})

    def _picture(
        self,
        pipeline: Any,
        call: Mapping[str, Any],
        size: Size,
        fitted: Mapping[str, Any],
        seed: int,
        steps: "_BatchSteps",
    ) -> Pixels:
        with global_seed(seed, pipeline):
            picture = self._run(pipeline, call, _noise(seed))[0]
        steps.picture_done()
        if "mask_image" in fitted:
            picture = paste(picture, fitted["image"], fitted["mask_image"])
        return crop(picture, size, seed)

    def _run(self, pipeline: Any, call: Mapping[str, Any], generator: Any) -> Any:
        """Run one call. Returns its pictures on the device, each height x width x channels, float32 from 0 to 1."""
        takes = inspect.signature(pipeline.__call__).parameters
        arguments = {name: value for name, value in call.items() if name in takes}
        if "strength" in arguments:
            most = pipeline.scheduler.config.get("original_inference_steps")
            arguments |= _enough_steps(call["num_inference_steps"], call["strength"], most)
        if "intermediate_timesteps" in takes and arguments["num_inference_steps"] != 2:
            arguments["intermediate_timesteps"] = None  # the default of Sana Sprint is for two steps
        arguments["generator"] = generator
        self._stages.picture()
        try:
            widened = self._spec.vae_dtype is not None
            with (
                step_cache(self._spec, pipeline),
                Decoding(pipeline.vae, denoiser_of(pipeline).dtype if widened else None, self._stages) as decoding,
            ):
                images = pipeline(**arguments).images
            if not decoding.finite:  # waits for the device
                raise NotFinite(_OVERFLOW)
            self._stages.finish()
            self._tiled = self._tiled or decoding.tiled
            return _in_size(images.float(), call["height"], call["width"]).permute(0, 2, 3, 1)
        finally:
            # Also resets step caches, which an interrupted call leaves in the middle of their sequence.
            self._pipeline.maybe_free_model_hooks()
            if self._turns:
                self._turns.end()

    def to_host(self) -> bool:
        if not self._spec.stays_in_host_memory or sum(part.missing_bytes for part in self._parts) > room():
            return False
        with ExitStack() as stack:
            stack.callback(self._leave)
            for part in self._parts:
                part.keep()
        self._prompts.clear()  # embeddings are on the device
        clear_class_caches(denoiser_of(self._pipeline))
        return True

    def to_device(self) -> int:
        moved = 0
        with ExitStack() as undo:
            for part in self._parts:
                moved += part.enter()
                undo.callback(part.leave)
            undo.pop_all()
        self._on_device, self._moved_bytes = True, moved
        return moved

    def _leave(self) -> None:
        if self._on_device:
            self._on_device = False
            for part in self._parts:
                part.leave()

    def trim(self) -> None:
        self._prompts.clear()

    def close(self) -> None:
        self._leave()
        self._pipeline.remove_all_hooks()
        clear_class_caches(denoiser_of(self._pipeline))
        del self._pipeline, self._siblings, self._adapters, self._prompts, self._parts, self._turns
        gc.collect()


def _wait_for_device() -> None:
    """Return once the device has done all that it was given."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.current_stream().synchronize()


def _noise(seed: int) -> Any:
    """A generator on the CPU: the same noise on every device."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)


@contextmanager
def global_seed(seed: int, pipeline: Any) -> Iterator[None]:
    """Seed the process's generators while the context lasts, and restore their states at its end.

    Some schedulers (FlowMatchLCMScheduler in SD3) and language models draw from them.
    """
    import numpy as np
    import torch

    device = pipeline._execution_device
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _enough_steps(steps: int, strength: float, most: int | None) -> dict[str, Any]:
    """Steps and strength of image-to-image with which at least one step runs: it runs int(steps * strength) steps.

    `most`: the steps that the scheduler was distilled from (LCM, TCD), which is the most that it can run.
    """
    steps = max(steps, ceil(1 / strength))
    if most is None or steps <= most:
        return {"num_inference_steps": steps, "strength": strength}
    return {"num_inference_steps": most, "strength": max(strength, 1 / most)}


def _in_size(images: Any, height: int, width: int) -> Any:
    """Scale pictures, batch x channels x height x width, if the pipeline chose another size (Qwen-Image-Edit)."""
    import torch

    if images.shape[-2:] == (height, width):
        return images
    scaled = torch.nn.functional.interpolate(images, (height, width), mode="bicubic", antialias=True)
    return scaled.clamp(0, 1)


class _BatchSteps:
    """Counts steps over a batch. The steps of a picture are known after its first step."""

    def __init__(self, pictures: int, on_step: OnStep, previews: int, size: Size) -> None:
        self._pictures = pictures
        self._on_step = on_step
        self._previews = PreviewMaker(previews, size) if previews else None
        self._done = 0
        self._in_picture = 0

    def on_step_end(self, pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        self._in_picture = step + 1
        # The real number of steps: image-to-image runs int(steps * strength). Ernie has no `num_timesteps`.
        total = getattr(pipeline, "num_timesteps", None) or len(pipeline.scheduler.timesteps)
        preview = self._previews.after_step(pipeline, step + 1, total, kwargs["latents"]) if self._previews else None
        self._on_step(self._done + self._in_picture, total * self._pictures, preview or b"")
        return kwargs

    def picture_done(self) -> None:
        self._done += self._in_picture
