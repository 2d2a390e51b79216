"""Owns the transformer: its size, and a start from which it learns several times faster than from random weights."""

from __future__ import annotations

import math

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from training.text import WIDTH as TEXT_WIDTH

HEADS, HEAD_WIDTH = 5, 32
WIDTH = HEADS * HEAD_WIDTH
#: Rotary dimensions for index, row and column.
AXES = (4, 14, 14)
CHANNELS = 64
#: Where the gates of a block's residual branches start; closed gates (0) cost a third of the progress.
GATE = 0.5


def build() -> FluxTransformer2DModel:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=AXES,
    )
    initialise(transformer)
    return transformer


@torch.no_grad()
def initialise(transformer: FluxTransformer2DModel) -> None:
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            initialise_linear(name, module)
    copy_through(transformer)
    look_around(transformer)


def initialise_linear(name: str, module: nn.Linear) -> None:
    if name.startswith("norm_out") or name == "proj_out":
        nn.init.zeros_(module.weight)
    elif name.endswith("norm.linear") or (".norm1" in name and name.endswith("linear")):
        nn.init.normal_(module.weight, std=0.02)
        bias = module.bias.view(-1, WIDTH)
        for gate in (2, 5) if len(bias) == 6 else (2,):
            bias[gate] = GATE
    elif name.endswith(("to_out.0", "to_add_out", "ff.net.2", "ff_context.net.2", "proj_out")):
        module.weight.mul_(0.5)


def copy_through(transformer: FluxTransformer2DModel) -> None:
    """Let the output start as a copy of the input, which at full noise is the right answer but for the mean picture."""
    embed, spare = transformer.x_embedder, (WIDTH - CHANNELS) // 2
    embed.weight.mul_(0.1)
    embed.weight[:CHANNELS] = torch.eye(CHANNELS)
    embed.bias[CHANNELS:] = torch.tensor([1.0, -1.0]).repeat(spare)
    transformer.proj_out.weight[:, :CHANNELS] = torch.eye(CHANNELS)


def look_around(transformer: FluxTransformer2DModel) -> None:
    """Give each head a sense of place: its attention to the words turns with the row or the column of the token."""
    frequencies = [10000 ** (-2 * i / AXES[1]) for i in range(AXES[1] // 2)]
    slow = min(range(len(frequencies)), key=lambda i: abs(frequencies[i] - 0.3))
    for index, block in enumerate(transformer.transformer_blocks):
        query = block.attn.to_q.bias.view(HEADS, HEAD_WIDTH)
        key = block.attn.add_k_proj.bias.view(HEADS, HEAD_WIDTH)
        for head in range(HEADS):
            coarse = (head // 2) % 2 == 0
            band = slow if coarse else 0
            quarter = math.pi / 2 if (head + index) % 4 < 2 else -math.pi / 2
            phase = (quarter if coarse else 0) - 3.5 * frequencies[band]
            at = AXES[0] + ((head + index) % 2) * AXES[1] + 2 * band
            query[head, at], query[head, at + 1] = 4 * math.cos(phase), 4 * math.sin(phase)
            key[head, at] = 4.0


def image_ids(width: int, height: int) -> Tensor:
    """(tokens, 3) rotary positions for a picture of this many pixels."""
    rows, columns = height // 16, width // 16
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None]
    return ids.view(-1, 3)
