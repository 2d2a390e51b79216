"""Fakes the Nunchaku engine: its names and the form of its files, without its kernels and without 4 bits."""

import json
from typing import Any, Self

import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from transformers import T5Config, T5EncoderModel

from nunchaku import _C, utils

__all__ = ["NunchakuFluxTransformer2dModel", "NunchakuT5EncoderModel", "utils"]

__version__ = "1.2.1"

#: What from_pretrained was called with, newest last.
calls: list[dict[str, Any]] = []


def _read(path: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration, which is in the file's header, and the tensors."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["config"]), {name: file.get_tensor(name) for name in file.offset_keys()}


class NunchakuFluxTransformerBlocks(torch.nn.Module):
    """All blocks in one module, whose weights are not parameters."""

    def __init__(self, m: _C.QuantizedFluxModel) -> None:
        super().__init__()
        self.m = m

    def forward(
        self,
        hidden_states: Any,
        encoder_hidden_states: Any,
        temb: Any,
        image_rotary_emb: Any,
        joint_attention_kwargs: Any = None,
    ) -> Any:
        return self.m.forward(hidden_states, encoder_hidden_states, temb, image_rotary_emb)

    def __del__(self) -> None:
        self.m.reset()


class NunchakuFluxTransformer2dModel(FluxTransformer2DModel):  # type: ignore[misc]
    """A transformer in one file."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> Self:
        calls.append({"class": cls.__name__, "path": pretrained_model_name_or_path, **kwargs})
        config, tensors = _read(pretrained_model_name_or_path)
        transformer = cls(**{name: value for name, value in config.items() if not name.startswith("_")})
        transformer.load_state_dict(tensors)
        transformer = transformer.to(kwargs.get("device", "cuda"), kwargs.get("torch_dtype", torch.bfloat16)).eval()
        m = _C.QuantizedFluxModel([*transformer.transformer_blocks, *transformer.single_transformer_blocks])
        transformer.transformer_blocks = torch.nn.ModuleList([NunchakuFluxTransformerBlocks(m)])
        transformer.single_transformer_blocks = torch.nn.ModuleList([])
        return transformer


class NunchakuT5EncoderModel(T5EncoderModel):  # type: ignore[misc]
    """A T5 encoder in one file."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> Self:
        calls.append({"class": cls.__name__, "path": pretrained_model_name_or_path, **kwargs})
        config, tensors = _read(pretrained_model_name_or_path)
        encoder = cls(T5Config(**config))
        encoder.load_state_dict(tensors, strict=False)
        return encoder.to(kwargs.get("device", "cuda"), kwargs.get("torch_dtype", torch.bfloat16)).eval()
