"""The figures of scripts/card_table.py, compared with the classes of the models."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from scripts.card_table import (
    CLIP_G,
    CLIP_L,
    KL_DECODE,
    KL_VAE,
    MODELS,
    QWEN3_4B,
    QWEN_DECODE,
    QWEN_TILE,
    QWEN_VL,
    T5,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imagegen.loaders.diffusers_model import quiet_libraries

quiet_libraries()

import diffusers  # noqa: E402
import transformers  # noqa: E402

Make = Callable[[], Any]
EMPTY = torch.empty

#: By the transformer's entry in the table: its configuration on the hub, and the arguments of a step at 1024x1024.
TRANSFORMERS: dict[str, tuple[Make, Callable[[], dict[str, Any]]]] = {
    "FLUX.1 dev, schnell, Kontext, Fill": (
        lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True),
        lambda: {
            "hidden_states": EMPTY(1, 8192, 64),
            "encoder_hidden_states": EMPTY(1, 512, 4096),
            "pooled_projections": EMPTY(1, 768),
            "timestep": EMPTY(1),
            "guidance": EMPTY(1),
            "img_ids": EMPTY(8192, 3),
            "txt_ids": EMPTY(512, 3),
        },
    ),
    "FLUX.2 klein 4B": (
        lambda: diffusers.Flux2Transformer2DModel(
            num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
        ),
        lambda: {
            "hidden_states": EMPTY(1, 4096, 128),
            "encoder_hidden_states": EMPTY(1, 512, 7680),
            "timestep": EMPTY(1),
            "img_ids": EMPTY(1, 4096, 4),
            "txt_ids": EMPTY(1, 512, 4),
            "guidance": None,
        },
    ),
    "Stable Diffusion 3.5 Large": (lambda: sd3(38, 38, 192), lambda: sd3_step()),
    "Stable Diffusion 3.5 Medium": (
        lambda: sd3(24, 24, 384, dual_attention_layers=tuple(range(13))),
        lambda: sd3_step(),
    ),
    "Stable Diffusion XL": (
        lambda: diffusers.UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        ),
        lambda: {
            "sample": EMPTY(2, 4, 128, 128),
            "timestep": EMPTY(2),
            "encoder_hidden_states": EMPTY(2, 77, 2048),
            "added_cond_kwargs": {"text_embeds": EMPTY(2, 1280), "time_ids": EMPTY(2, 6)},
        },
    ),
    "Qwen-Image, Qwen-Image-Edit": (
        diffusers.QwenImageTransformer2DModel,
        lambda: {
            "hidden_states": EMPTY(1, 8192, 64),
            "encoder_hidden_states": EMPTY(1, 512, 3584),
            "encoder_hidden_states_mask": torch.ones(1, 512, dtype=torch.bool),
            "timestep": EMPTY(1),
            "img_shapes": [[(1, 64, 64), (1, 64, 64)]],
        },
    ),
    "Z-Image Turbo": (
        diffusers.ZImageTransformer2DModel,
        lambda: {"x": [EMPTY(16, 1, 128, 128)], "t": EMPTY(1), "cap_feats": [EMPTY(512, 2560)]},
    ),
}


def sd3(layers: int, heads: int, positions: int, **more: Any) -> Any:
    return diffusers.SD3Transformer2DModel(
        sample_size=128,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=heads,
        caption_projection_dim=64 * heads,
        pos_embed_max_size=positions,
        qk_norm="rms_norm",
        **more,
    )


def sd3_step() -> dict[str, Any]:
    return {
        "hidden_states": EMPTY(2, 16, 128, 128),
        "encoder_hidden_states": EMPTY(2, 333, 4096),
        "pooled_projections": EMPTY(2, 2048),
        "timestep": EMPTY(2),
    }


def clip(width: int, layers: int, heads: int) -> Any:
    return transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
        )
    )


ENCODERS: dict[str, tuple[float, Make]] = {
    "CLIP-L": (CLIP_L, lambda: clip(768, 12, 12)),
    "CLIP-G": (CLIP_G, lambda: clip(1280, 32, 20)),
    "T5-XXL": (
        T5,
        lambda: transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=32128,
                d_model=4096,
                d_kv=64,
                d_ff=10240,
                num_layers=24,
                num_heads=64,
                feed_forward_proj="gated-gelu",
            )
        ),
    ),
    "Qwen3-4B": (
        QWEN3_4B,
        lambda: transformers.Qwen3Model(
            transformers.Qwen3Config(
                vocab_size=151936,
                hidden_size=2560,
                intermediate_size=9728,
                num_hidden_layers=36,
                num_attention_heads=32,
                num_key_value_heads=8,
                head_dim=128,
            )
        ),
    ),
    "Qwen2.5-VL-7B": (
        QWEN_VL,
        lambda: transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(
                text_config={
                    "vocab_size": 152064,
                    "hidden_size": 3584,
                    "intermediate_size": 18944,
                    "num_hidden_layers": 28,
                    "num_attention_heads": 28,
                    "num_key_value_heads": 4,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
                },
                vision_config={
                    "depth": 32,
                    "hidden_size": 1280,
                    "out_hidden_size": 3584,
                    "intermediate_size": 3420,
                    "num_heads": 16,
                },
            )
        ),
    ),
}

BY_NAME = {model.name: model for model in MODELS}
TOLERANCE = 0.01

pytestmark = pytest.mark.filterwarnings("ignore")  # of classes that are not made for this


@pytest.fixture(autouse=True)
def on_no_device() -> Iterator[None]:
    """Modules and tensors have shapes and no memory; floats are bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)


def weights(module: Any) -> int:
    """Bytes; floats count as bfloat16, which they become at load, unless they are narrower."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(it.numel() * min(it.element_size(), 2 if it.is_floating_point() else 8) for it in tensors)


def largest_layer(module: Any) -> int:
    return max(sum(it.numel() * 2 for it in layer.parameters(recurse=False)) for layer in module.modules())


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_transformers_have_the_sizes_of_the_table(name: str) -> None:
    made, model = TRANSFORMERS[name][0](), BY_NAME[name]
    assert weights(made) == pytest.approx(model.transformer, rel=TOLERANCE)
    assert largest_layer(made) <= model.layer * 1.001
    if model.rounded:
        linear = sum(it.weight.numel() for it in made.modules() if isinstance(it, torch.nn.Linear))
        assert weights(made) - linear == pytest.approx(model.rounded, rel=TOLERANCE)
    if model.cast:
        made.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        assert weights(made) == pytest.approx(model.cast, rel=TOLERANCE)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_encoders_have_the_sizes_of_the_table(name: str) -> None:
    size, make = ENCODERS[name]
    made = make()
    assert weights(made) == pytest.approx(size, rel=TOLERANCE)
    using = [model for model in MODELS if size in model.encoders]
    assert using
    for model in using:
        assert not model.layer or largest_layer(made) <= model.layer * 1.001


def test_the_vaes_have_the_sizes_of_the_table() -> None:
    for made in (kl_vae(4), kl_vae(16), diffusers.AutoencoderKLFlux2()):
        assert weights(made) == pytest.approx(KL_VAE, rel=TOLERANCE)
    assert weights(diffusers.AutoencoderKLQwenImage()) == pytest.approx(
        BY_NAME["Qwen-Image, Qwen-Image-Edit"].vae, rel=TOLERANCE
    )


def kl_vae(channels: int) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
    )


class Alive(TorchDispatchMode):
    """Counts the most bytes of live tensors, without the module's weights."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self._weights = {it.untyped_storage()._cdata for it in (*module.parameters(), *module.buffers())}
        self._sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._weights | self._sizes.keys():
                    self._sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._sizes.pop, storage._cdata, None)
        self.most = max(self.most, sum(self._sizes.values()))
        return results


@pytest.fixture
def fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as on a card, which makes no matrix of all tokens with all tokens."""
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda query, *_, **__: torch.empty_like(query)
    )


@pytest.mark.usefixtures("fused_attention")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_step_uses_as_much_memory_as_the_table_has(name: str) -> None:
    make, arguments = TRANSFORMERS[name]
    made = make().eval()
    with Alive(made) as alive:
        made(**arguments())
    assert alive.most == pytest.approx(BY_NAME[name].step, rel=0.05)


@pytest.mark.usefixtures("fused_attention")
@pytest.mark.parametrize(
    ("make", "latents", "expected"),
    [
        (lambda: kl_vae(16), (1, 16, 128, 128), KL_DECODE),
        (lambda: kl_vae(4), (1, 4, 128, 128), KL_DECODE),
        (diffusers.AutoencoderKLFlux2, (1, 32, 128, 128), KL_DECODE),
        (diffusers.AutoencoderKLQwenImage, (1, 16, 1, 128, 128), QWEN_DECODE),
        (diffusers.AutoencoderKLQwenImage, (1, 16, 1, 32, 32), QWEN_TILE),
    ],
)
def test_decoding_uses_as_much_memory_as_the_table_has(make: Make, latents: tuple[int, ...], expected: float) -> None:
    made = make().eval()
    with Alive(made) as alive:
        made.decode(EMPTY(*latents))
    assert alive.most == pytest.approx(expected, rel=0.1)
