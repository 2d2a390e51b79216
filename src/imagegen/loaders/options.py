"""Options for memory and speed: reads them from an entry or from `global`, and switches them on in a pipeline."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from imagegen.catalog.catalog import CpuOffload, GlobalSettings, ModelSpec
from imagegen.catalog.fields import Receipt
from imagegen.core.errors import EngineMissing
from imagegen.loaders.base import Placement
from imagegen.loaders.offloading import denoiser_of

#: The attention backends of diffusers that need no download: the others fetch kernels from the hub.
AttentionBackend = Literal[
    "native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "flash", "flex", "sage", "xformers"
]

#: Pairs of options that do not work together, each with the reason.
_CONTRADICTIONS = (
    ("enable_attention_slicing", "attention_backend", "slicing has its own attention"),
    ("layerwise_casting", "cpu_offload", "an offloaded layer cannot be cast as well"),
    ("quantize", "cpu_offload", "a quantised layer cannot be moved"),
    ("quantize", "layerwise_casting", "both make the weights smaller; one is enough"),
    ("compile", "cpu_offload", "a compiled layer must stay on the device"),
    ("compile", "layerwise_casting", "a layer that is cast when it runs cannot be compiled"),
)

#: The number of shapes and models that one process may compile a block for. torch's default, 8, is enough for one
#: model in one size.
_RECOMPILATIONS = 64


class OptionsSpec(ModelSpec):
    """The options of an entry. None takes the value of `global`, or is off."""

    enable_attention_slicing: bool | None = Field(default=None, description="Overrides the value of `global`.")
    enable_vae_slicing: bool | None = Field(default=None, description="Overrides the value of `global`.")
    enable_vae_tiling: bool | None = Field(default=None, description="Overrides the value of `global`.")
    cpu_offload: CpuOffload | None = Field(default=None, description="Overrides the value of `global`.")
    layerwise_casting: Literal["float8_e4m3fn", "float8_e5m2"] | None = Field(
        default=None,
        description="Stores the transformer's weights in 8 bits and casts each layer when it runs: half the memory of "
        "bfloat16.",
    )
    attention_backend: Annotated[AttentionBackend | None, Receipt] = Field(
        default=None,
        description="An attention backend of diffusers that needs no download; by default torch chooses one for the "
        "card (docs/models.md).",
    )
    quantize: Literal["int8", "float8"] | None = Field(
        default=None,
        description="Rounds the transformer's weights to 8 bits at load; needs torchao. With `float8`, cards of compute"
        " capability 8.9 and later also multiply in 8 bits.",
    )
    compile: Annotated[bool, Receipt] = Field(
        default=False,
        description="Compiles the transformer's repeated blocks at the first picture. Other models and later loads use "
        "the same code.",
    )
    vae_dtype: Annotated[Literal["float32"] | None, Receipt] = Field(
        default=None,
        description="`float32`: the VAE is loaded and computes in float32, whatever `torch_dtype` says. For VAEs that "
        "overflow in float16, whose tasks fail with `not_finite`.",
    )
    step_cache: Annotated[Annotated[float, Field(gt=0, le=1)] | Literal["taylorseer"] | None, Receipt] = Field(
        default=None,
        description="First-block cache: if the first block changes by less than this share, a step reuses the rest of "
        "the step before. `taylorseer`: four steps of five are extrapolated.",
    )

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        for one, other, why in _CONTRADICTIONS:
            # The transformer is not moved while encoders are offloaded.
            if getattr(self, one) and getattr(self, other) not in (None, "none", "encoders"):
                raise ValueError(f"{one} and {other} contradict each other: {why}")
        return self

    def chosen(self, name: str, settings: GlobalSettings) -> Any:
        """The value of an option that both sections have: the entry's value overrides that of `global`."""
        own = getattr(self, name)
        return getattr(settings, name) if own is None else own


def switch_on(pipeline: Any, spec: OptionsSpec, settings: GlobalSettings) -> None:
    """Switch on the entry's options, as far as the pipeline has them."""
    if spec.chosen("enable_attention_slicing", settings) and hasattr(pipeline, "enable_attention_slicing"):
        pipeline.enable_attention_slicing()
    for word in ("slicing", "tiling"):
        if spec.chosen(f"enable_vae_{word}", settings) and hasattr(pipeline.vae, f"enable_{word}"):
            getattr(pipeline.vae, f"enable_{word}")()
    _switch_on_in_denoiser(denoiser_of(pipeline), spec)
    pipeline.set_progress_bar_config(disable=True)


def _switch_on_in_denoiser(denoiser: Any, spec: OptionsSpec) -> None:
    import torch

    if spec.layerwise_casting is not None:
        storage = getattr(torch, spec.layerwise_casting)
        computing = denoiser.dtype
        denoiser.enable_layerwise_casting(storage_dtype=storage, compute_dtype=computing)
        for layer in denoiser.modules():
            if getattr(layer, "weight", None) is not None and layer.weight.dtype == storage:
                # peft makes a LoRA in this dtype. By default it would have 8 bits, which cannot be multiplied.
                layer.compute_dtype = computing
    if spec.step_cache is not None:
        denoiser.enable_cache(_cache(spec.step_cache))
    if spec.compile:
        torch._dynamo.config.recompile_limit = _RECOMPILATIONS
        whole = not getattr(denoiser, "_repeated_blocks", None)
        denoiser.compile() if whole else denoiser.compile_repeated_blocks()


def _cache(step_cache: float | str) -> Any:
    from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

    if isinstance(step_cache, float):
        return FirstBlockCacheConfig(threshold=step_cache)
    return TaylorSeerCacheConfig(cache_interval=5, disable_cache_before_step=3, max_order=1, use_lite_mode=True)


#: The least CUDA compute capability with matrix products of float8: Ada, Hopper and later.
_FLOAT8_PRODUCTS = (8, 9)


def rounding(spec: OptionsSpec, device: str) -> str | None:
    """The rounding that `quantize` means on this device; None: none.

    `int8`, `float8`, or `float8_dynamic`, which also multiplies in float8.
    """
    if spec.quantize != "float8" or device == "cpu":
        return spec.quantize
    import torch

    return "float8_dynamic" if torch.cuda.get_device_capability(device) >= _FLOAT8_PRODUCTS else "float8"


def quantization_config(spec: OptionsSpec, denoiser: str, device: str, dtype: Any) -> Any:
    """The argument that makes `from_pretrained` round the weights of `denoiser`. Raises EngineMissing without torchao.

    `float8_dynamic` also rounds the input of each layer when it runs. The scale is per row for weights in bfloat16;
    for other dtypes torchao supports only one scale for the whole tensor.
    """
    if spec.quantize is None:
        return None
    try:
        from torchao.quantization import (  # pyright: ignore[reportMissingImports]
            Float8DynamicActivationFloat8WeightConfig,
            Float8WeightOnlyConfig,
            Int8WeightOnlyConfig,
            PerRow,
            PerTensor,
        )
    except ImportError as error:
        raise EngineMissing("quantize needs torchao: install it beside imagegen.") from error
    from diffusers import PipelineQuantizationConfig, TorchAoConfig

    kind: Any
    match rounding(spec, device):
        case "int8":
            kind = Int8WeightOnlyConfig()
        case "float8":
            kind = Float8WeightOnlyConfig()
        case _:
            by_row = str(dtype) == "torch.bfloat16"
            kind = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow() if by_row else PerTensor())
    return PipelineQuantizationConfig(quant_mapping={denoiser: TorchAoConfig(kind)})


def move(pipeline: Any, spec: OptionsSpec, placement: Placement) -> None:
    """Move the pipeline to the device, or set up the offloading of its layers."""
    import torch

    offload, device = spec.chosen("cpu_offload", placement.settings), placement.device
    if device == "cpu" or offload not in ("sequential", "group"):
        pipeline.to(device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(torch.device(device), offload_type="leaf_level", use_stream=True)


def step_cache(spec: OptionsSpec, pipeline: Any) -> AbstractContextManager[None]:
    """The context that holds the state of the step cache, for pipelines that do not open one themselves."""
    if spec.step_cache is None:
        return nullcontext()
    context: AbstractContextManager[None] = pipeline.transformer.cache_context("picture")
    return context


@contextmanager
def compiling(spec: OptionsSpec) -> Iterator[None]:
    """The context of calls that may compile. Raises EngineMissing if this machine has no compiler."""
    if not spec.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        raise EngineMissing("compile does not work on this machine: it needs a C++ compiler, or Triton.") from error


@contextmanager
def attention(spec: OptionsSpec) -> Iterator[None]:
    """Use the entry's attention backend while the context lasts, because diffusers has one for the whole process.

    Raises EngineMissing if its library is not installed.
    """
    if spec.attention_backend is None:
        yield
        return
    from diffusers.models.attention_dispatch import attention_backend

    with ExitStack() as stack:
        try:
            stack.enter_context(attention_backend(spec.attention_backend))
        except (ValueError, RuntimeError, ImportError) as error:
            raise EngineMissing(f"attention_backend {spec.attention_backend} does not work on this machine.") from error
        yield
