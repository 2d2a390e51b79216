"""Reads the header of a LoRA file: the kind of adapter, and its layers."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from imagegen.core.errors import EngineError, LoraRefused
from imagegen.loaders.folder import check_file, read_header

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
        except EngineError as error:
            raise LoraRefused(f"The LoRA cannot be read: {error.detail}") from error
        made = cls(file.name, {key: tensor.shape for key, tensor in header.items()})
        reason = made._why_not()
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
