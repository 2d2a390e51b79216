"""Tiny diffusers pipelines with random weights, in the folder layout that real ones have.

Each is made from a seed: the same kind has the same bytes on every run. The proportions that a loader could trip over
are the real ones (scale of the autoencoder, channels of the latents, layers that are read from a text encoder); only
the widths are small.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

#: What apply_chat_template needs; the wording is of no matter to random weights.
_CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
#: The same for a processor, whose messages hold a list of typed parts.
_CHAT_OF_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} "
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
)

_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def build(kind: str, folder: Path) -> Path:
    """Write the pipeline of this kind to `folder` and give the folder back."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Chroma's and Kolors' own code calls what diffusers and torch call deprecated.
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        pipeline = KINDS[kind](folder)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


# -- words -------------------------------------------------------------------------------------------------------------


def _bytes() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = _bytes()
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: at for at, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    words = ["<pad>", "</s>", "<unk>", "▁", *letters]
    return T5TokenizerFast(vocab=[(word, -2.0) for word in words], extra_ids=0, model_max_length=512)


def _qwen_tokenizer() -> Any:
    from transformers import Qwen2TokenizerFast

    words = [*_bytes(), "<|endoftext|>"]
    tokenizer = Qwen2TokenizerFast(vocab={word: at for at, word in enumerate(words)}, merges=[])
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = _CHAT
    return tokenizer


def _gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizerFast

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    return GemmaTokenizerFast(vocab={word: at for at, word in enumerate(words)}, merges=[])


def _byte_tokenizer() -> Any:
    """The plain kind that has no class of its own, as GLM, Llama and Mistral ship it."""
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", *_bytes()]
    backend = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # No text is empty: there is always a first word.
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=4096
    )


@cache
def _sentencepiece_model() -> bytes:
    from sentencepiece import SentencePieceTrainer

    text = [chr(code) * 3 for code in range(ord("a"), ord("z") + 1)] + ["a red circle on a blue background"]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=40, model_type="char", minloglevel=2
    )
    return model.getvalue()


def _glm_tokenizer(folder: Path) -> Any:
    from diffusers.pipelines.kolors import ChatGLMTokenizer

    # The tokenizer copies this file when it is saved, so it starts where it will stay.
    file = folder / "tokenizer" / "tokenizer.model"
    file.parent.mkdir()
    file.write_bytes(_sentencepiece_model())
    return ChatGLMTokenizer(str(file), model_max_length=256)


# -- encoders of words ---------------------------------------------------------------------------------------------


def _loud(encoder: Any) -> Any:
    """With words far enough apart that other words give other pictures, random as everything else is."""
    torch.nn.init.normal_(encoder.get_input_embeddings().weight)
    return encoder


def _clip(tokenizer: Any, *, projected: bool = False, width: int = 16, positions: int = 77) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5(tokenizer: Any, width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    # Like the real one, which has 32128 rows for 32100 words.
    rows = len(tokenizer) + 28
    config = T5Config(
        vocab_size=rows, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, tie_word_embeddings=False
    )
    return T5EncoderModel(config)


def _small(layers: int = 2, width: int = 32) -> dict[str, Any]:
    """The numbers that the language models share."""
    return {
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 2048,
    }


def _qwen3(tokenizer: Any, *, causal: bool, layers: int, width: int = 32) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **_small(layers, width))
    return _loud((Qwen3ForCausalLM if causal else Qwen3Model)(config))


def _qwen_vl(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = _small() | {
        "vocab_size": len(tokenizer),
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    return _loud(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)))


def _gemma2(tokenizer: Any) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), **_small()))


def _glm(tokenizer: Any) -> Any:
    from transformers import GlmConfig, GlmModel

    return GlmModel(GlmConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **_small()))


def _llama(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **_small()))


# -- pictures ------------------------------------------------------------------------------------------------------


def _autoencoder(channels: int, scale: int = 8) -> Any:
    """AutoencoderKL. `scale`: pixels a latent, in each direction."""
    from diffusers import AutoencoderKL

    levels = scale.bit_length()
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=channels,
        scaling_factor=1.5,
        shift_factor=0.06 if channels == 16 else None,
        use_quant_conv=channels == 4,
        use_post_quant_conv=channels == 4,
        sample_size=128,
    )


def _flow(**settings: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**settings)


def _flow_by_size() -> Any:
    return _flow(shift=3.0, use_dynamic_shifting=True)


# -- FLUX ----------------------------------------------------------------------------------------------------------


def _flux_transformer(*, guided: bool, in_channels: int, wide: bool) -> Any:
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


def _flux(kind: str, *, guided: bool = True, in_channels: int = 64, wide: bool = False) -> Any:
    import diffusers

    clip, t5 = _clip_tokenizer(), _t5_tokenizer()
    width = 256 if wide else 32
    return getattr(diffusers, kind)(
        scheduler=_flow_by_size(),
        vae=_autoencoder(16),
        text_encoder=_clip(clip, width=width),
        tokenizer=clip,
        text_encoder_2=_t5(t5, width=width),
        tokenizer_2=t5,
        transformer=_flux_transformer(guided=guided, in_channels=in_channels, wide=wide),
    )


def _flux2_parts(words: int) -> dict[str, Any]:
    """`words`: the width of what the text encoder gives for a token."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=32, sample_size=128
    )
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
    return {"vae": vae, "transformer": transformer, "scheduler": _flow_by_size()}


def _flux2() -> Any:
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    tokenizer = _byte_tokenizer()
    # The real one has a processor of words and pictures here, which takes torchvision; only its words are used.
    tokenizer.chat_template = _CHAT_OF_PARTS
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = Mistral3Config(
        # Layers 10, 20 and 30 are read.
        text_config=_small(30, width=16) | {"model_type": "mistral", "vocab_size": len(tokenizer)},
        vision_config=vision | {"num_attention_heads": 2, "image_size": 32, "patch_size": 16},
    )
    encoder = _loud(Mistral3ForConditionalGeneration(config))
    return Flux2Pipeline(text_encoder=encoder, tokenizer=tokenizer, **_flux2_parts(48))


def _flux2_klein(kind: str, *, distilled: bool) -> Any:
    import diffusers

    tokenizer = _qwen_tokenizer()
    # Layers 9, 18 and 27 are read.
    encoder = _qwen3(tokenizer, causal=True, layers=27, width=16)
    return getattr(diffusers, kind)(
        text_encoder=encoder, tokenizer=tokenizer, is_distilled=distilled, **_flux2_parts(48)
    )


# -- Stable Diffusion ----------------------------------------------------------------------------------------------


def _sd3(*, dual: bool) -> Any:
    """`dual`: like 3.5 medium, which attends twice in its first layers and normalises queries and keys."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    clip_l, clip_g, t5 = _clip_tokenizer(), _clip_tokenizer(), _t5_tokenizer()
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
        scheduler=_flow(shift=3.0),
        vae=_autoencoder(16),
        text_encoder=_clip(clip_l, projected=True),
        tokenizer=clip_l,
        text_encoder_2=_clip(clip_g, projected=True),
        tokenizer_2=clip_g,
        text_encoder_3=_t5(t5),
        tokenizer_3=t5,
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


def _sdxl_unet(words: int, pooled: int, in_channels: int = 4, **extra: Any) -> Any:
    # Six numbers of the size are embedded beside the pooled words.
    return _unet(
        words,
        in_channels,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=pooled + 6 * 8,
        **extra,
    )


def _sdxl(kind: str, in_channels: int = 4) -> Any:
    import diffusers

    clip_l, clip_g = _clip_tokenizer(), _clip_tokenizer()
    return getattr(diffusers, kind)(
        vae=_autoencoder(4),
        text_encoder=_clip(clip_l),
        tokenizer=clip_l,
        text_encoder_2=_clip(clip_g, projected=True),
        tokenizer_2=clip_g,
        unet=_sdxl_unet(32, 16, in_channels),
        scheduler=diffusers.EulerDiscreteScheduler(**_SCHEDULE),
        add_watermarker=False,
    )


def _sd15(kind: str, in_channels: int = 4, *, checked: bool = False) -> Any:
    """`checked`: with the safety checker that the real repository has."""
    import diffusers

    tokenizer = _clip_tokenizer()
    checker, features = _safety_checker() if checked else (None, None)
    return getattr(diffusers, kind)(
        vae=_autoencoder(4),
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(16, in_channels),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, **_SCHEDULE),
        safety_checker=checker,
        feature_extractor=features,
        requires_safety_checker=checked,
    )


def _safety_checker() -> tuple[Any, Any]:
    """One that objects to everything: whoever runs it gets black pictures."""
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


# -- other families ------------------------------------------------------------------------------------------------


def _qwen_image() -> Any:
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

    tokenizer = _qwen_tokenizer()
    vae = AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    vae.decoder.conv_out.weight.data.mul_(8)  # else all pictures are nearly grey
    return QwenImagePipeline(
        scheduler=_flow_by_size(),
        vae=vae,
        text_encoder=_qwen_vl(tokenizer),
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


def _z_image() -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    tokenizer = _qwen_tokenizer()
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
        scheduler=_flow(shift=3.0),
        vae=_autoencoder(16),
        text_encoder=_qwen3(tokenizer, causal=False, layers=2),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def _sana() -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    tokenizer = _gemma_tokenizer()
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
        sample_size=32,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
    )
    return SanaPipeline(tokenizer, _gemma2(tokenizer), vae, transformer, scheduler)


def _chroma() -> Any:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    tokenizer = _t5_tokenizer()
    return ChromaPipeline(
        scheduler=_flow(use_beta_sigmas=False, shift=1.0),
        vae=_autoencoder(16),
        text_encoder=_t5(tokenizer),
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


def _lumina2() -> Any:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    tokenizer = _gemma_tokenizer()
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
        scheduler=_flow(shift=6.0),
        vae=_autoencoder(16),
        text_encoder=_gemma2(tokenizer),
        tokenizer=tokenizer,
    )


def _cogview4() -> Any:
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel

    tokenizer = _byte_tokenizer()
    return CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=_glm(tokenizer),
        vae=_autoencoder(16),
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
        scheduler=_flow(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )


def _kolors(folder: Path) -> Any:
    from diffusers import EulerDiscreteScheduler, KolorsPipeline
    from diffusers.pipelines.kolors import ChatGLMModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    tokenizer = _glm_tokenizer(folder)
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
        vae=_autoencoder(4),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=_sdxl_unet(16, 32, encoder_hid_dim=32, encoder_hid_dim_type="text_proj"),
        scheduler=EulerDiscreteScheduler(**_SCHEDULE),
    )


def _hidream() -> Any:
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel

    clip_l, clip_g, t5, llama = _clip_tokenizer(), _clip_tokenizer(), _t5_tokenizer(), _byte_tokenizer()
    return HiDreamImagePipeline(
        scheduler=_flow(shift=3.0),
        vae=_autoencoder(16),
        text_encoder=_clip(clip_l, projected=True, positions=248),
        tokenizer=clip_l,
        text_encoder_2=_clip(clip_g, projected=True, positions=218),
        tokenizer_2=clip_g,
        text_encoder_3=_t5(t5),
        tokenizer_3=t5,
        text_encoder_4=_llama(llama),
        tokenizer_4=llama,
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[32, 32],
            text_emb_dim=32,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(128, 128),
            llama_layers=[0, 1],
        ),
    )


#: Word -> how to make one, given the folder that it is for.
KINDS: Mapping[str, Callable[[Path], Any]] = MappingProxyType(
    {
        "flux-dev": lambda _: _flux("FluxPipeline"),
        "flux-schnell": lambda _: _flux("FluxPipeline", guided=False),
        # 256 wide, for the block size of the K quantisations.
        "flux-wide": lambda _: _flux("FluxPipeline", wide=True),
        "flux-kontext": lambda _: _flux("FluxKontextPipeline"),
        "flux-fill": lambda _: _flux("FluxFillPipeline", in_channels=64 + 64 + 256),
        "flux2": lambda _: _flux2(),
        "flux2-klein": lambda _: _flux2_klein("Flux2KleinPipeline", distilled=True),
        "flux2-klein-base": lambda _: _flux2_klein("Flux2KleinPipeline", distilled=False),
        "flux2-klein-kv": lambda _: _flux2_klein("Flux2KleinKVPipeline", distilled=True),
        "sd3": lambda _: _sd3(dual=False),
        "sd3.5": lambda _: _sd3(dual=True),
        "sdxl": lambda _: _sdxl("StableDiffusionXLPipeline"),
        "sdxl-inpaint": lambda _: _sdxl("StableDiffusionXLInpaintPipeline", in_channels=9),
        "sd15": lambda _: _sd15("StableDiffusionPipeline"),
        "sd15-checked": lambda _: _sd15("StableDiffusionPipeline", checked=True),
        "sd15-inpaint": lambda _: _sd15("StableDiffusionInpaintPipeline", in_channels=9),
        "qwen-image": lambda _: _qwen_image(),
        "z-image": lambda _: _z_image(),
        "sana": lambda _: _sana(),
        "chroma": lambda _: _chroma(),
        "lumina2": lambda _: _lumina2(),
        "cogview4": lambda _: _cogview4(),
        "kolors": _kolors,
        "hidream": lambda _: _hidream(),
    }
)
