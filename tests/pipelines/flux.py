"""FLUX.1 and FLUX.2."""

from typing import Any

from tests.pipelines.pictures import autoencoder, flow_by_size, flux2_autoencoder
from tests.pipelines.words import (
    CHAT_OF_PARTS,
    byte_tokenizer,
    clip,
    clip_tokenizer,
    loud,
    qwen3,
    qwen_tokenizer,
    small,
    t5,
    t5_tokenizer,
)


def _transformer(*, guided: bool, in_channels: int, wide: bool) -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=128 if wide else 16,
        num_attention_heads=2,
        joint_attention_dim=256 if wide else 32,
        pooled_projection_dim=256 if wide else 32,
        guidance_embeds=guided,
        axes_dims_rope=(16, 56, 56) if wide else (4, 6, 6),
    )


def flux(kind: str, *, guided: bool = True, in_channels: int = 64, wide: bool = False) -> Any:
    import diffusers

    first, second = clip_tokenizer(), t5_tokenizer()
    width = 256 if wide else 32
    return getattr(diffusers, kind)(
        scheduler=flow_by_size(),
        vae=autoencoder(16),
        text_encoder=clip(first, width=width),
        tokenizer=first,
        text_encoder_2=t5(second, width=width),
        tokenizer_2=second,
        transformer=_transformer(guided=guided, in_channels=in_channels, wide=wide),
    )


def _flux2_parts(words: int) -> dict[str, Any]:
    """`words`: the width of the text encoder's output for a token."""
    from diffusers import Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=words,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return {"vae": flux2_autoencoder(), "transformer": transformer, "scheduler": flow_by_size()}


def flux2() -> Any:
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    tokenizer = byte_tokenizer()
    # The real one has a processor of words and pictures here, which takes torchvision; only its words are used.
    tokenizer.chat_template = CHAT_OF_PARTS
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = Mistral3Config(
        # Layers 10, 20 and 30 are read.
        text_config=small(30, width=16) | {"model_type": "mistral", "vocab_size": len(tokenizer)},
        vision_config=vision | {"num_attention_heads": 2, "image_size": 32, "patch_size": 16},
    )
    encoder = loud(Mistral3ForConditionalGeneration(config))
    return Flux2Pipeline(text_encoder=encoder, tokenizer=tokenizer, **_flux2_parts(48))


def flux2_klein(kind: str, *, distilled: bool) -> Any:
    import diffusers

    tokenizer = qwen_tokenizer()
    # Layers 9, 18 and 27 are read.
    encoder = qwen3(tokenizer, causal=True, layers=27, width=16)
    return getattr(diffusers, kind)(
        text_encoder=encoder, tokenizer=tokenizer, is_distilled=distilled, **_flux2_parts(48)
    )
