"""GGUF files of FLUX transformers, in the key names of diffusers and in the original ones, which most files have."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import load_file

Quantisation = Literal["F16", "BF16", "Q8_0", "Q5_0", "Q4_0", "Q4_K"]
Style = Literal["diffusers", "original"]

#: Values that share a scale: a row of another length stays as it is.
_BLOCK: Mapping[str, int] = MappingProxyType({"F16": 1, "BF16": 1, "Q8_0": 32, "Q5_0": 32, "Q4_0": 32, "Q4_K": 256})


def write_gguf(pipeline: Path, file: Path, quantisation: Quantisation, style: Style = "diffusers") -> Path:
    """Quantise the transformer of a pipeline's folder into `file`, and return the file."""
    weights = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    return write_tensors(load_file(weights), file, quantisation, style)


def write_tensors(
    tensors: Mapping[str, torch.Tensor], file: Path, quantisation: Quantisation, style: Style = "diffusers"
) -> Path:
    """The same, from a transformer's state."""
    named = tensors.items() if style == "diffusers" else original_names(tensors)
    writer = GGUFWriter(file, arch="flux")
    for name, tensor in named:
        _add(writer, name, tensor.float().numpy(), quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add(writer: GGUFWriter, name: str, values: Any, quantisation: Quantisation) -> None:
    """Biases, norms and learnt padding stay in float32, as in the files that people share."""
    if values.ndim != 2 or not name.endswith(".weight") or values.shape[-1] % _BLOCK[quantisation]:
        writer.add_tensor(name, values)
    elif quantisation == "F16":
        writer.add_tensor(name, values.astype(np.float16))
    elif quantisation == "Q4_K":
        writer.add_tensor(name, quantise_q4_k(values), raw_dtype=GGMLQuantizationType.Q4_K)
    else:
        kind = GGMLQuantizationType[quantisation]
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)


def quantise_q4_k(values: Any) -> Any:
    """Rows of 4-bit numbers: 8 scales and 8 offsets of 6 bits for 256 of them. The gguf package only reads these."""
    rows = values.shape[0]
    parts = values.reshape(-1, 8, 32)
    low = np.minimum(parts.min(axis=-1), 0)
    scale = (parts.max(axis=-1) - low) / 15
    step, steps = _six_bits(scale)
    offset, offsets = _six_bits(-low)
    real_scale = (step * steps)[..., None]
    shifted = parts + (offset * offsets)[..., None]
    numbers = np.divide(shifted, real_scale, out=np.zeros_like(parts), where=real_scale > 0)
    digits = np.rint(numbers).clip(0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    packed = (digits[:, :, 0] | digits[:, :, 1] << 4).reshape(-1, 128)
    halves = [half.astype(np.float16).view(np.uint8) for half in (step, offset)]
    return np.concatenate([*halves, _packed_scales(steps, offsets), packed], axis=-1).reshape(rows, -1)


def _six_bits(values: Any) -> tuple[Any, Any]:
    """A common step (rounded to float16) and each value in whole steps."""
    step = (values.max(axis=-1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    whole = np.divide(values, step, out=np.zeros_like(values), where=step > 0)
    return step, np.rint(whole).clip(0, 63).astype(np.uint8)


def _packed_scales(steps: Any, offsets: Any) -> Any:
    """Sixteen numbers of 6 bits in 12 bytes: the upper bits of the last eight are stored with the first eight."""
    first = steps[:, :4] | steps[:, 4:] >> 4 << 6
    second = offsets[:, :4] | offsets[:, 4:] >> 4 << 6
    third = steps[:, 4:] & 15 | (offsets[:, 4:] & 15) << 4
    return np.concatenate([first, second, third], axis=-1)


# -- the original's key names --------------------------------------------------------------------------------------

_TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
#: One original matrix for each tuple of diffusers' ones, stacked.
_DOUBLE: Mapping[tuple[str, ...], str] = {
    ("norm1.linear",): "img_mod.lin",
    ("norm1_context.linear",): "txt_mod.lin",
    ("attn.to_q", "attn.to_k", "attn.to_v"): "img_attn.qkv",
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"): "txt_attn.qkv",
    ("attn.to_out.0",): "img_attn.proj",
    ("attn.to_add_out",): "txt_attn.proj",
    ("ff.net.0.proj",): "img_mlp.0",
    ("ff.net.2",): "img_mlp.2",
    ("ff_context.net.0.proj",): "txt_mlp.0",
    ("ff_context.net.2",): "txt_mlp.2",
}
_DOUBLE_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
_SINGLE: Mapping[tuple[str, ...], str] = {
    ("norm.linear",): "modulation.lin",
    ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"): "linear1",
    ("proj_out",): "linear2",
}
_SINGLE_NORMS = {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}


def original_names(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """A transformer's state with the names and the layout of the model's authors."""
    for ours, theirs in _TOP.items():
        for end in ("weight", "bias"):
            if f"{ours}.{end}" in tensors:
                yield f"{theirs}.{end}", tensors[f"{ours}.{end}"]
    yield from _blocks(tensors, "transformer_blocks", "double_blocks", _DOUBLE, _DOUBLE_NORMS)
    yield from _blocks(tensors, "single_transformer_blocks", "single_blocks", _SINGLE, _SINGLE_NORMS)
    for end in ("weight", "bias"):
        scale, shift = tensors[f"norm_out.linear.{end}"].chunk(2)
        yield f"final_layer.adaLN_modulation.1.{end}", torch.cat([shift, scale])


def _blocks(
    tensors: Mapping[str, torch.Tensor],
    ours: str,
    theirs: str,
    stacks: Mapping[tuple[str, ...], str],
    norms: Mapping[str, str],
) -> Iterator[tuple[str, torch.Tensor]]:
    for block in sorted({name.split(".")[1] for name in tensors if name.startswith(f"{ours}.")}):
        for parts, stacked in stacks.items():
            for end in ("weight", "bias"):
                rows = [tensors[f"{ours}.{block}.{part}.{end}"] for part in parts]
                yield f"{theirs}.{block}.{stacked}.{end}", torch.cat(rows)
        for norm, name in norms.items():
            yield f"{theirs}.{block}.{name}.scale", tensors[f"{ours}.{block}.{norm}.weight"]
