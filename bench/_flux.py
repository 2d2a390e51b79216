"""FLUX.1 pipelines with random weights in bfloat16, from a tiny one to the full size, in the layout of real ones."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from tests.pipelines.pictures import flow_by_size

from imagegen.loaders.diffusers_model import quiet_libraries
from imagegen.loaders.host_copy import tensor_bytes

#: How many letters and special words the tokenizers know at least.
LEAST_WORDS = 600


class Shape(NamedTuple):
    """The numbers by which the sizes differ."""

    heads: int
    head: int
    double: int
    single: int
    rope: tuple[int, int, int]
    clip_width: int
    clip_layers: int
    clip_words: int
    t5_width: int
    t5_inner: int
    t5_layers: int
    t5_heads: int
    t5_words: int
    vae: tuple[int, int, int, int]
    #: A transformer is cut into three files, as FLUX.1's is.
    shard: str


_FULL = Shape(24, 128, 19, 38, (16, 56, 56), 768, 12, 49408, 4096, 10240, 24, 64, 32128, (128, 256, 512, 512), "10GB")

#: `full` is FLUX.1 dev: 12 billion parameters, T5-XXL, CLIP-L; 33.7 GB. `short` has a T5 of two layers instead of 24:
#: 25.3 GB. `middle` has the proportions of `full` in 1 GB.
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "tiny": Shape(2, 16, 1, 1, (4, 6, 6), 32, 2, LEAST_WORDS, 32, 64, 2, 2, LEAST_WORDS, (8, 8, 8, 8), "40KB"),
        "middle": Shape(
            12, 128, 2, 4, (16, 56, 56), 384, 6, 8192, 1024, 2816, 10, 16, 32128, (64, 128, 256, 256), "300MB"
        ),
        "short": _FULL._replace(t5_layers=2),
        "full": _FULL,
    }
)


def build(size: str, folder: Path, device: str = "cpu") -> Path:
    """Write the pipeline of this size to `folder`, made on `device`, and give the folder back."""
    quiet_libraries()
    from diffusers import FluxPipeline

    pipeline = FluxPipeline(scheduler=flow_by_size(), **_made(size, device))
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=SHAPES[size].shard)
    return folder


def part_bytes(size: str) -> dict[str, int]:
    """The bytes of each part's weights, counted without making them."""
    quiet_libraries()
    modules = {name: part for name, part in _made(size, "meta").items() if hasattr(part, "parameters")}
    return {name: tensor_bytes([module]) for name, module in modules.items()}


def _made(size: str, device: str) -> dict[str, Any]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.random.fork_rng(), torch.device(device), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return _parts(SHAPES[size])
    finally:
        torch.set_default_dtype(before)


def _parts(shape: Shape) -> dict[str, Any]:
    first, second = clip_tokenizer(shape.clip_words), t5_tokenizer(shape.t5_words)
    return {
        "tokenizer": first,
        "text_encoder": _clip(shape, first),
        "tokenizer_2": second,
        "text_encoder_2": _t5(shape),
        "transformer": _transformer(shape),
        "vae": _autoencoder(shape),
    }


def _transformer(shape: Shape) -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=shape.double,
        num_single_layers=shape.single,
        attention_head_dim=shape.head,
        num_attention_heads=shape.heads,
        joint_attention_dim=shape.t5_width,
        pooled_projection_dim=shape.clip_width,
        guidance_embeds=True,
        axes_dims_rope=shape.rope,
    )


def _t5(shape: Shape) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=shape.t5_words,
        d_model=shape.t5_width,
        d_kv=shape.t5_width // shape.t5_heads,
        d_ff=shape.t5_inner,
        num_layers=shape.t5_layers,
        num_heads=shape.t5_heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config)


def _clip(shape: Shape, tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=shape.clip_words,
        hidden_size=shape.clip_width,
        intermediate_size=4 * shape.clip_width,
        projection_dim=shape.clip_width,
        num_hidden_layers=shape.clip_layers,
        num_attention_heads=max(2, shape.clip_width // 64),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _autoencoder(shape: Shape) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=shape.vae,
        norm_num_groups=min(32, shape.vae[0]),
        layers_per_block=2,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=1024,
    )


def clip_tokenizer(words: int) -> Any:
    """Of letters; the rest of its words are never met."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab=_filled(known, words), merges=[], model_max_length=77)


def t5_tokenizer(words: int) -> Any:
    """Likewise; like the real one, it knows a few words less than its encoder has rows."""
    from transformers import T5TokenizerFast

    known = ["<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(33, 127))]
    vocabulary = [(word, -2.0) for word in _filled(known, words - 28)]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _filled(known: list[str], words: int) -> dict[str, int]:
    unmet = (f"\u2400{number}" for number in range(words - len(known)))
    return {word: at for at, word in enumerate((*known, *unmet))}
