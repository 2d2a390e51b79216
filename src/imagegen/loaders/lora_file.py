"""Reads the header of a LoRA file: the kind of adapter, its layers, and its settings for PEFT."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from imagegen.core.errors import EngineError, LoraRefused
from imagegen.loaders.folder import check_file, read_header, read_metadata

#: The second matrix of a layer, in the key names of diffusers, PEFT, kohya, and XLabs. It has a row for each output.
_UP = re.compile(r"(\.lora_B(\.\w+)?|\.lora_up|lora\d*\.up|_lora\.up|\.up)\.weight$")
#: Either matrix.
_MATRIX = re.compile(r"(lora_[AB](\.\w+)?|lora_(down|up)|lora\d*\.(down|up))\.weight$")

#: Adapters that diffusers does not read, by a part of their keys.
_OTHER_KINDS: Mapping[str, str] = {
    ".hada_": "a LoHa",
    ".oft_": "an OFT adapter",
    ".boft_": "a BOFT adapter",
    ".ia3_": "an IA3 adapter",
    ".on_input": "an IA3 adapter",
    ".a1.weight": "a GLoRA",
}

#: Keys of textual inversions: words for the text encoder instead of layers.
_EMBEDDINGS = frozenset({"emb_params", "string_to_param", "clip_l", "clip_g", "t5"})

#: Prefixes of the keys of T5's layers, in pipelines for which diffusers adds no LoRA to T5.
_T5 = ("lora_te2_", "lora_te3_", "text_encoder_2.", "text_encoder_3.", "text_encoders.t5")

#: The header's text that diffusers gives to PEFT: JSON, `transformer.lora_alpha` -> value. Its adapter_config.json, in
#: contrast, is never opened. Some of PEFT's settings are regular expressions, one of which took for ever (measured);
#: others name modules to import, or change the model's own weights. So only those are taken that a LoRA needs.
_SETTINGS = "lora_adapter_metadata"
_MAX_SETTINGS = 2**20
_FLAGS = frozenset({"inference_mode", "init_lora_weights", "lora_bias", "use_dora", "use_rslora"})
_WORDS = frozenset({"base_model_name_or_path", "bias", "megatron_core", "peft_type", "peft_version", "revision"})
#: Regular expressions that are names: of a layer, or of the end of one.
_LAYER = re.compile(r"\^?[\w.]{1,200}\$?")

#: The most characters of a layer's name in a message.
_MAX_NAME = 80


class LoraFile(NamedTuple):
    """The layers of a LoRA file."""

    name: str
    #: Key -> shape of each tensor.
    tensors: Mapping[str, tuple[int, ...]]

    @classmethod
    def read(cls, file: Path) -> "LoraFile":
        """Read the header. Raises LoraRefused with the reason for a damaged file, or for a file that is not a LoRA."""
        try:
            check_file(file, file.name)
            header = read_header(file, file.name)
            settings = read_metadata(file, file.name).get(_SETTINGS)
        except EngineError as error:
            raise LoraRefused(f"The LoRA cannot be read: {error.detail}") from error
        made = cls(file.name, {key: tensor.shape for key, tensor in header.items()})
        reason = made._why_not() or (_why_no_settings(settings) if settings else None)
        if reason is not None:
            raise LoraRefused(f"{file.name} {reason}")
        return made

    def _why_not(self) -> str | None:
        """The reason why this is not a LoRA; None: it is a LoRA."""
        for word, kind in _OTHER_KINDS.items():
            if any(word in key for key in self.tensors):
                return f"is {kind}, which diffusers does not read."
        flat = next((key for key, shape in self.tensors.items() if _MATRIX.search(key) and len(shape) < 2), None)
        if flat is not None:
            return f"is damaged: '{flat[:_MAX_NAME]}' is not a matrix."
        if self.rows or self.kronecker:
            return None
        if self.tensors.keys() & _EMBEDDINGS or (self.tensors and not any("." in key for key in self.tensors)):
            return "is a textual inversion (an embedding of words), not a LoRA."
        return "has no layers of a LoRA."

    @property
    def rows(self) -> int:
        """The outputs of all layers. The sum stays the same if the library splits a layer in two."""
        return sum(shape[0] for key, shape in self.tensors.items() if _UP.search(key))

    @property
    def kronecker(self) -> int:
        """How many layers are a LoKr."""
        return len({key.partition(".lokr_")[0] for key in self.tensors if ".lokr_" in key})

    @property
    def first(self) -> str:
        """The name of the first layer."""
        key = next((key for key in self.tensors if _UP.search(key) or ".lokr_" in key), "")
        return re.split(r"\.lora|\.lokr|\.up\.|\.alpha", key)[0][:_MAX_NAME]

    @property
    def has_scales(self) -> bool:
        """Whether it is a DoRA whose scales diffusers does not apply."""
        return any("dora_scale" in key for key in self.tensors)

    @property
    def has_t5(self) -> bool:
        """Whether it has layers that may belong to a T5."""
        return any(key.startswith(_T5) for key in self.tensors)


def _why_no_settings(text: str) -> str | None:
    """The reason why a file's settings for PEFT are refused; None: they are taken."""
    try:
        settings = json.loads(text) if len(text) <= _MAX_SETTINGS else None
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        return "has settings in its header that cannot be read."
    refused = next(_refused(settings), None)
    return None if refused is None else f"sets '{refused[:_MAX_NAME]}' in its header, which is not taken from a file."


def _refused(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        name = key.rpartition(".")[2]
        if value and not _is_number(value) and not _is_taken(name, value):
            yield name


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_taken(name: str, value: object) -> bool:
    match name, value:
        case _, True:
            return name in _FLAGS
        case "init_lora_weights", "gaussian":
            return True
        case _, str():
            return name in _WORDS
        case "target_modules", list():
            return all(isinstance(it, str) and _LAYER.fullmatch(it) for it in value)
        case "layers_to_transform", list():
            return all(map(_is_number, value))
        case "rank_pattern" | "alpha_pattern", dict():
            return all(_LAYER.fullmatch(it) and _is_number(number) for it, number in value.items())
    return False
