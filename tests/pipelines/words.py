"""Tokenizers and text encoders, each of the kind that a family uses."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

#: What apply_chat_template needs; the wording is of no matter to random weights.
_CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
#: The same for a processor, whose messages hold a list of typed parts.
CHAT_OF_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} "
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
)


def _bytes() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = _bytes()
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: at for at, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    words = ["<pad>", "</s>", "<unk>", "▁", *letters]
    return T5TokenizerFast(vocab=[(word, -2.0) for word in words], extra_ids=0, model_max_length=512)


def qwen_tokenizer() -> Any:
    from transformers import Qwen2TokenizerFast

    words = [*_bytes(), "<|endoftext|>"]
    tokenizer = Qwen2TokenizerFast(vocab={word: at for at, word in enumerate(words)}, merges=[])
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = _CHAT
    return tokenizer


def gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizerFast

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    return GemmaTokenizerFast(vocab={word: at for at, word in enumerate(words)}, merges=[])


def byte_tokenizer() -> Any:
    """The plain kind without its own class, as GLM, Llama and Mistral ship it."""
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


def bert_tokenizer() -> Any:
    from transformers import BertTokenizerFast

    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizerFast(vocab={word: at for at, word in enumerate(words)}, model_max_length=77)


@cache
def sentencepiece_model() -> bytes:
    from sentencepiece import SentencePieceTrainer

    text = [chr(code) * 3 for code in range(ord("a"), ord("z") + 1)] + ["a red circle on a blue background"]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=40, model_type="char", minloglevel=2
    )
    return model.getvalue()


def glm_tokenizer(folder: Path) -> Any:
    from diffusers.pipelines.kolors import ChatGLMTokenizer

    # The tokenizer copies this file when it is saved, so it starts where it will stay.
    file = folder / "tokenizer" / "tokenizer.model"
    file.parent.mkdir()
    file.write_bytes(sentencepiece_model())
    return ChatGLMTokenizer(str(file), model_max_length=256)


def loud(encoder: Any) -> Any:
    """A random encoder with embeddings far enough apart that other words give other pictures."""
    torch.nn.init.normal_(encoder.get_input_embeddings().weight)
    return encoder


def clip(tokenizer: Any, *, projected: bool = False, width: int = 16, positions: int = 77) -> Any:
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


def t5(tokenizer: Any, width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    # Like the real one, which has 32128 rows for 32100 words.
    rows = len(tokenizer) + 28
    config = T5Config(
        vocab_size=rows, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, tie_word_embeddings=False
    )
    return T5EncoderModel(config)


def small(layers: int = 2, width: int = 32) -> dict[str, Any]:
    """The settings that the language models share."""
    return {
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 2048,
    }


def qwen3(tokenizer: Any, *, causal: bool, layers: int, width: int = 32) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **small(layers, width))
    return loud((Qwen3ForCausalLM if causal else Qwen3Model)(config))


def qwen_processor(tokenizer: Any) -> Any:
    """A processor of text and pictures. The real class also needs one for videos, which needs torchvision."""
    from transformers import Qwen2VLImageProcessorPil, Qwen2VLProcessor

    class Processor(Qwen2VLProcessor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

    tokenizer.add_tokens(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"], special_tokens=True)
    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    return Processor(image_processor=pictures, tokenizer=tokenizer)


def qwen_vl(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = small() | {
        "vocab_size": len(tokenizer),
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
    }
    tokens = {
        name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items() if token in tokenizer.get_vocab()
    }
    return loud(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)))


def gemma2(tokenizer: Any) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), **small()))


def glm(tokenizer: Any) -> Any:
    from transformers import GlmConfig, GlmModel

    return GlmModel(GlmConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **small()))


def bert(tokenizer: Any) -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
        )
    )


def umt5(tokenizer: Any) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    return loud(
        UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    )


def ministral3(tokenizer: Any) -> Any:
    from transformers import Ministral3Config, Ministral3ForCausalLM

    return Ministral3ForCausalLM(Ministral3Config(vocab_size=len(tokenizer), **small()))


def mistral(tokenizer: Any) -> Any:
    from transformers import MistralConfig, MistralModel

    return loud(MistralModel(MistralConfig(vocab_size=len(tokenizer), **small())))


def qwen3_vl(tokenizer: Any) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLModel

    text = small() | {
        "vocab_size": len(tokenizer),
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default"},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    return loud(Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision | {"deepstack_visual_indexes": [0]})))
