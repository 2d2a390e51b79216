"""The families that have one pipeline class each."""

from pathlib import Path
from typing import Any

import torch

from tests.pipelines.pictures import SCHEDULE, autoencoder, flow, flow_by_size, flux2_autoencoder, qwen_autoencoder
from tests.pipelines.stable_diffusion import sdxl_unet
from tests.pipelines.words import (
    bert,
    bert_tokenizer,
    byte_tokenizer,
    gemma2,
    gemma_tokenizer,
    glm,
    glm_tokenizer,
    ministral3,
    mistral,
    qwen3,
    qwen3_vl,
    qwen_processor,
    qwen_tokenizer,
    qwen_vl,
    t5,
    t5_tokenizer,
    umt5,
)


def qwen_image() -> Any:
    from diffusers import QwenImagePipeline

    return QwenImagePipeline(**_qwen_parts(qwen_tokenizer()))


def qwen_edit(name: str) -> Any:
    """It cannot be read back from a folder without torchvision."""
    import diffusers

    tokenizer = qwen_tokenizer()
    processor = qwen_processor(tokenizer)
    return getattr(diffusers, name)(processor=processor, **_qwen_parts(tokenizer))


def _qwen_parts(tokenizer: Any) -> dict[str, Any]:
    from diffusers import QwenImageTransformer2DModel

    return dict(
        scheduler=flow_by_size(),
        vae=qwen_autoencoder(),
        text_encoder=qwen_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def z_image() -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 128, 128],
    )
    # Padding is learnt, and not initialised.
    for pad in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(pad, std=0.02)
    return ZImagePipeline(
        scheduler=flow(shift=3.0),
        vae=autoencoder(16),
        text_encoder=qwen3(tokenizer, causal=False, layers=2),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def _sana_parts(**extra: Any) -> dict[str, Any]:
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    tokenizer = gemma_tokenizer()
    # 32 pixels a latent.
    levels = 6
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock",) * levels,
        decoder_block_types=("ResBlock",) * levels,
        encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels,
        encoder_layers_per_block=(1,) * levels,
        decoder_layers_per_block=(1,) * levels,
        encoder_qkv_multiscales=((),) * levels,
        decoder_qkv_multiscales=((),) * levels,
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        # As the real one: a pipeline left alone would draw 1024 pixels and scale them down.
        sample_size=32,
        **extra,
    )
    return {"tokenizer": tokenizer, "text_encoder": gemma2(tokenizer), "vae": vae, "transformer": transformer}


def sana() -> Any:
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline

    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
    )
    return SanaPipeline(scheduler=scheduler, **_sana_parts())


def sana_sprint() -> Any:
    from diffusers import SanaSprintPipeline, SCMScheduler

    parts = _sana_parts(guidance_embeds=True, qk_norm="rms_norm_across_heads")
    return SanaSprintPipeline(scheduler=SCMScheduler(), **parts)


def chroma() -> Any:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    tokenizer = t5_tokenizer()
    return ChromaPipeline(
        scheduler=flow(use_beta_sigmas=False, shift=1.0),
        vae=autoencoder(16),
        text_encoder=t5(tokenizer),
        tokenizer=tokenizer,
        transformer=ChromaTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=32,
            approximator_hidden_dim=32,
            approximator_layers=1,
        ),
    )


def lumina2() -> Any:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    tokenizer = gemma_tokenizer()
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=16,
            in_channels=16,
            hidden_size=48,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(8, 8, 8),
            cap_feat_dim=32,
        ),
        scheduler=flow(shift=6.0),
        vae=autoencoder(16),
        text_encoder=gemma2(tokenizer),
        tokenizer=tokenizer,
    )


def cogview4() -> Any:
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel

    tokenizer = byte_tokenizer()
    return CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=glm(tokenizer),
        vae=autoencoder(16),
        transformer=CogView4Transformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=32,
            time_embed_dim=16,
            condition_dim=8,
            sample_size=16,
            rope_axes_dim=(16, 16),
        ),
        scheduler=flow(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )


def kolors(folder: Path) -> Any:
    from diffusers import EulerDiscreteScheduler, KolorsPipeline
    from diffusers.pipelines.kolors import ChatGLMModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    tokenizer = glm_tokenizer(folder)
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        ffn_hidden_size=32,
        kv_channels=16,
        num_attention_heads=2,
        multi_query_attention=True,
        multi_query_group_num=1,
        seq_length=256,
        add_qkv_bias=True,
        original_rope=True,
    )
    encoder = ChatGLMModel(config)
    for name, tensor in encoder.named_parameters():  # which this class leaves as the memory was
        torch.nn.init.constant_(tensor, 1) if "norm" in name else torch.nn.init.normal_(tensor, std=0.2)
    return KolorsPipeline(
        vae=autoencoder(4),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=sdxl_unet(16, 32, encoder_hid_dim=32, encoder_hid_dim_type="text_proj"),
        scheduler=EulerDiscreteScheduler(**SCHEDULE),
    )


def aura_flow() -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

    tokenizer = byte_tokenizer()
    return AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=umt5(tokenizer),
        vae=autoencoder(4),
        transformer=AuraFlowTransformer2DModel(
            sample_size=16,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
        ),
        scheduler=flow(shift=1.73),
    )


def bria() -> Any:
    from diffusers import BriaPipeline, BriaTransformer2DModel

    tokenizer = t5_tokenizer()
    return BriaPipeline(
        transformer=BriaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=[4, 6, 6],
        ),
        scheduler=flow_by_size(),
        vae=autoencoder(4),
        text_encoder=t5(tokenizer),
        tokenizer=tokenizer,
    )


def ernie(*, enhanced: bool = False) -> Any:
    """`enhanced`: with a language model that rewrites prompts."""
    from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel

    tokenizer, enhancer = byte_tokenizer(), byte_tokenizer()
    # It draws as many tokens as its tokenizer says.
    enhancer.model_max_length, enhancer.chat_template = 8, "{{ messages[0]['content'] }}"
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        text_in_dim=32,
        rope_axes_dim=(4, 6, 6),
    )
    for layer in (transformer.adaLN_modulation[-1], transformer.final_linear):  # which begin as zeros
        torch.nn.init.normal_(layer.weight, std=0.2)
    return ErnieImagePipeline(
        transformer=transformer,
        vae=flux2_autoencoder(),
        text_encoder=mistral(tokenizer),
        tokenizer=tokenizer,
        scheduler=flow(shift=3.0),
        pe=ministral3(enhancer) if enhanced else None,
        pe_tokenizer=enhancer if enhanced else None,
    )


def hunyuan_dit() -> Any:
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    words, more = bert_tokenizer(), t5_tokenizer()
    return HunyuanDiTPipeline(
        vae=autoencoder(4),
        text_encoder=bert(words),
        tokenizer=words,
        text_encoder_2=t5(more),
        tokenizer_2=more,
        transformer=HunyuanDiT2DModel(
            sample_size=16,
            in_channels=4,
            patch_size=2,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            hidden_size=32,
            cross_attention_dim=32,
            cross_attention_dim_t5=32,
            pooled_projection_dim=32,
            use_style_cond_and_image_meta_size=False,
        ),
        scheduler=DDPMScheduler(beta_start=0.00085, beta_end=0.02, prediction_type="v_prediction", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def krea2() -> Any:
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel

    tokenizer = qwen_tokenizer()
    return Krea2Pipeline(
        scheduler=flow_by_size(),
        vae=qwen_autoencoder(),
        text_encoder=qwen3_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=Krea2Transformer2DModel(
            in_channels=64,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=32,
            text_hidden_dim=32,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        text_encoder_select_layers=(1, 2),
    )


def ovis() -> Any:
    from diffusers import OvisImagePipeline, OvisImageTransformer2DModel

    tokenizer = qwen_tokenizer()
    return OvisImagePipeline(
        scheduler=flow_by_size(),
        vae=autoencoder(16),
        text_encoder=qwen3(tokenizer, causal=False, layers=2),
        tokenizer=tokenizer,
        transformer=OvisImageTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        ),
    )
