"""Stable Diffusion 3, 3.5, XL and 1.5."""

from typing import Any

from tests.pipelines.pictures import SCHEDULE, autoencoder, flow
from tests.pipelines.words import clip, clip_tokenizer, t5, t5_tokenizer


def sd3(*, dual: bool) -> Any:
    """`dual`: like 3.5 medium, which attends twice in its first layers and normalises queries and keys."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    clip_l, clip_g, last = clip_tokenizer(), clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=96,
        dual_attention_layers=(0,) if dual else (),
        qk_norm="rms_norm" if dual else None,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow(shift=3.0),
        vae=autoencoder(16),
        text_encoder=clip(clip_l, projected=True),
        tokenizer=clip_l,
        text_encoder_2=clip(clip_g, projected=True),
        tokenizer_2=clip_g,
        text_encoder_3=t5(last),
        tokenizer_3=last,
    )


def _unet(words: int, in_channels: int = 4, **extra: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=words,
        attention_head_dim=2,
        norm_num_groups=8,
        **extra,
    )


def sdxl_unet(words: int, pooled: int, in_channels: int = 4, **extra: Any) -> Any:
    # Six numbers of the size are embedded beside the pooled words.
    return _unet(
        words,
        in_channels,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=pooled + 6 * 8,
        **extra,
    )


def sdxl(kind: str, in_channels: int = 4) -> Any:
    import diffusers

    clip_l, clip_g = clip_tokenizer(), clip_tokenizer()
    return getattr(diffusers, kind)(
        vae=autoencoder(4),
        text_encoder=clip(clip_l),
        tokenizer=clip_l,
        text_encoder_2=clip(clip_g, projected=True),
        tokenizer_2=clip_g,
        unet=sdxl_unet(32, 16, in_channels),
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULE),
        add_watermarker=False,
    )


def sd15(kind: str, in_channels: int = 4, *, checked: bool = False) -> Any:
    """`checked`: with the safety checker that the real repository has."""
    import diffusers

    tokenizer = clip_tokenizer()
    checker, features = _safety_checker() if checked else (None, None)
    return getattr(diffusers, kind)(
        vae=autoencoder(4),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(16, in_channels),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, **SCHEDULE),
        safety_checker=checker,
        feature_extractor=features,
        requires_safety_checker=checked,
    )


def _safety_checker() -> tuple[Any, Any]:
    """A safety checker that rejects everything, so that all pictures become black."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 30,
        "patch_size": 15,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    checker.concept_embeds_weights.data.fill_(-2)
    return checker, CLIPImageProcessor(size={"shortest_edge": 30}, crop_size=30)
