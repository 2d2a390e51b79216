"""Fakes the engine's compiled part: its device memory is invisible to torch."""

from typing import Any

import torch


class utils:
    """Memory of the engine, in bytes."""

    #: In use, and freed but not given back.
    used = 0
    kept = 0

    @staticmethod
    def disable_memory_auto_release() -> None:
        """Keep freed memory from now on; this fake always does."""

    @classmethod
    def trim_memory(cls) -> None:
        """Free the kept memory."""
        cls.kept = 0


class QuantizedFluxModel:
    """The blocks of a transformer."""

    def __init__(self, blocks: list[torch.nn.Module]) -> None:
        utils.disable_memory_auto_release()
        self._blocks = blocks
        self._bytes = sum(it.numel() * it.element_size() for block in blocks for it in block.parameters())
        utils.used += self._bytes

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, temb: Any, image_rotary_emb: Any) -> Any:
        """Both streams after all blocks."""
        for block in self._blocks:
            encoder_hidden_states, hidden_states = block(
                hidden_states=hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                temb=temb,
                image_rotary_emb=image_rotary_emb,
            )
        return encoder_hidden_states, hidden_states

    def reset(self) -> None:
        """Free them."""
        utils.used, utils.kept = utils.used - self._bytes, utils.kept + self._bytes
        self._blocks, self._bytes = [], 0
