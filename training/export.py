"""Owns the finished model: a checkpoint's averaged weights as a plain FluxPipeline directory.

Transformer and autoencoder are stored in float16 and load as float32. The text encoders stay float32 in the files:
transformers keeps the type it finds, and half a pipeline in float16 does not run.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from transformers import CLIPTokenizer, T5TokenizerFast

from training.flat import FlatAdam
from training.train import assemble


def pipeline(state: Path, text: Path, vae: Path) -> FluxPipeline:
    """All parts in float32, with the averaged weights of a checkpoint."""
    models = assemble(text, torch.device("cpu"))
    optimiser = FlatAdam(p for module in models.named().values() for p in module.parameters())
    optimiser.load(state)
    optimiser.put_average()
    parts = {name: module.float().eval() for name, module in models.named().items()}
    parts["transformer"].set_attention_backend("native")
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=AutoencoderKL.from_pretrained(vae).eval(),
        tokenizer=CLIPTokenizer.from_pretrained(text / "tokenizer"),
        tokenizer_2=T5TokenizerFast.from_pretrained(text / "tokenizer_2"),
        **parts,
    )


def write(pipe: FluxPipeline, out: Path) -> None:
    """Save as described above; `out` is replaced at once, never half written."""
    pipe.transformer.half()
    pipe.vae.half()
    for part in (pipe.transformer, pipe.vae):
        part.register_to_config(_name_or_path="")
    fresh, old = out.with_name(out.name + ".new"), out.with_name(out.name + ".old")
    for folder in (fresh, old):
        shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(fresh, safe_serialization=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def size_of(folder: Path) -> float:
    """Megabytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    write(pipeline(args.state, args.text, args.vae), args.out)
    print(f"{args.out}: {size_of(args.out):.1f} MB")


if __name__ == "__main__":
    main()
