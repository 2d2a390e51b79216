"""Memory and speed: what an entry says, else what `global` says, switched on in a pipeline."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from imagegen.catalog.catalog import CpuOffload, GlobalSettings, ModelSpec
from imagegen.core.errors import EngineMissing
from imagegen.loaders.base import Placement

#: Those of diffusers' attention backends that need no download: the others fetch kernels from the hub.
AttentionBackend = Literal[
    "native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "flash", "flex", "sage", "xformers"
]

#: Of these options one is enough, and two do not work together.
_CONTRADICTIONS = (
    ("enable_attention_slicing", "attention_backend", "slicing brings its own attention"),
    ("layerwise_casting", "cpu_offload", "an offloaded layer cannot be cast as well"),
)


class OptionsSpec(ModelSpec):
    """The options of an entry; None is what `global` says, or off."""

    enable_attention_slicing: bool | None = None
    enable_vae_slicing: bool | None = None
    enable_vae_tiling: bool | None = None
    cpu_offload: CpuOffload | None = None
    #: Keeps the transformer's weights in 8 bits and widens each layer as it runs: half the memory of bfloat16.
    layerwise_casting: Literal["float8_e4m3fn", "float8_e5m2"] | None = None
    attention_backend: AttentionBackend | None = None
    #: First-block cache: a step whose first block changes by less than this share takes the rest from the step before.
    step_cache: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        for one, other, why in _CONTRADICTIONS:
            if getattr(self, one) and getattr(self, other) not in (None, "none"):
                raise ValueError(f"{one} and {other} contradict each other: {why}")
        return self

    def chosen(self, name: str, settings: GlobalSettings) -> Any:
        """An option that both sections have: the entry's word counts."""
        own = getattr(self, name)
        return getattr(settings, name) if own is None else own


def switch_on(pipeline: Any, spec: OptionsSpec, settings: GlobalSettings) -> None:
    """What the entry asks for, as far as the pipeline has it."""
    if spec.chosen("enable_attention_slicing", settings) and hasattr(pipeline, "enable_attention_slicing"):
        pipeline.enable_attention_slicing()
    for word in ("slicing", "tiling"):
        if spec.chosen(f"enable_vae_{word}", settings) and hasattr(pipeline.vae, f"enable_{word}"):
            getattr(pipeline.vae, f"enable_{word}")()
    _quicken(pipeline, spec)
    pipeline.set_progress_bar_config(disable=True)


def _quicken(pipeline: Any, spec: OptionsSpec) -> None:
    import torch

    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    if spec.layerwise_casting is not None:
        storage = getattr(torch, spec.layerwise_casting)
        denoiser.enable_layerwise_casting(storage_dtype=storage, compute_dtype=denoiser.dtype)
    if spec.step_cache is not None:
        from diffusers import FirstBlockCacheConfig

        denoiser.enable_cache(FirstBlockCacheConfig(threshold=spec.step_cache))


def move(pipeline: Any, spec: OptionsSpec, placement: Placement) -> None:
    """To the device, or to where offloading brings it there from."""
    import torch

    offload, device = spec.chosen("cpu_offload", placement.settings), placement.device
    if device == "cpu" or offload == "none":
        pipeline.to(device)
    elif offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(torch.device(device), offload_type="leaf_level", use_stream=True)


def step_cache(spec: OptionsSpec, pipeline: Any) -> AbstractContextManager[None]:
    """What the step cache keeps its state under; not every pipeline opens one of its own."""
    if spec.step_cache is None:
        return nullcontext()
    context: AbstractContextManager[None] = pipeline.transformer.cache_context("picture")
    return context


@contextmanager
def attention(spec: OptionsSpec) -> Iterator[None]:
    """The entry's attention while the context lasts: diffusers keeps the choice for the whole process.

    Raises EngineMissing where its library is not installed.
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
