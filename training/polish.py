"""Owns the last touch: the decoder learns to paint clean outlines from what the transformer really leaves it.

The encoder and the transformer stay as they are. Half of the latents are true ones with a little noise, the other half
are what the transformer makes of a noised picture in one stride, given its caption. The target is the clean drawing.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from torch import Tensor

from training.captions import caption
from training.draw import draw
from training.export import pipeline
from training.flat import FlatAdam
from training.latents import Shelf, load
from training.specs import SQUARE
from training.tokenization import Encoder
from training.train import LENGTH
from training.transformer import image_ids
from training.vae import decode, distance, quality, rate_at

#: Largest standard deviation of the noise on true latents, in units of the normalised latent.
ROUGHNESS = 0.3
#: Where the strides of the transformer start, at most.
FARTHEST = 0.4


def unpack(packed: Tensor, width: int, height: int) -> Tensor:
    """(n, tokens, 4 * channels) -> (n, channels, height / 8, width / 8), the reverse of `latents.pack`."""
    n, _, channels = packed.shape
    tiles = packed.view(n, height // 16, width // 16, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(n, channels // 4, height // 8, width // 8)


@torch.no_grad()
def strides(pipe: FluxPipeline, encoder: Encoder, clean: Tensor, words: list[str]) -> Tensor:
    """What the transformer takes the clean latents to be, seen through noise."""
    device, kind = clean.device, pipe.transformer.dtype
    clip_ids, t5_ids = (ids.to(device) for ids in encoder(words, LENGTH))
    times = FARTHEST * torch.rand(len(clean), device=device)
    noised = torch.lerp(clean, torch.randn_like(clean), times[:, None, None])
    velocity = pipe.transformer(
        hidden_states=noised.to(kind),
        encoder_hidden_states=pipe.text_encoder_2(t5_ids).last_hidden_state.to(kind),
        pooled_projections=pipe.text_encoder(clip_ids).pooler_output.to(kind),
        timestep=times.to(kind),
        img_ids=image_ids(*SQUARE).to(device),
        txt_ids=torch.zeros(LENGTH, 3, device=device),
    ).sample.float()
    made: Tensor = noised - times[:, None, None] * velocity
    return made


def batch(pipe: FluxPipeline, encoder: Encoder, shelf: Shelf, size: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Packed latents to decode, and the images they should become."""
    rows = [shelf.settled[rng.randrange(len(shelf.pictures))] for _ in range(size)]
    clean = shelf.latents[rows].to(pipe.transformer.device, torch.float32)
    half = size // 2
    made = strides(pipe, encoder, clean[:half], [caption(shelf.pictures[row], rng) for row in rows[:half]])
    width = ROUGHNESS * torch.rand(size - half, 1, 1, device=clean.device)
    rough = clean[half:] + width * torch.randn_like(clean[half:])
    images = np.stack([np.asarray(draw(shelf.pictures[row])) for row in rows]).astype(np.float32)
    targets = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    return torch.cat([made, rough]), targets.to(clean.device)


def train(pipe: FluxPipeline, vae: AutoencoderKL, encoder: Encoder, shelf: Shelf, args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    vae.encoder.requires_grad_(False)
    kept = [p.detach().clone() for p in vae.encoder.parameters()]
    vae.to(torch.bfloat16)
    optimiser = FlatAdam(vae.decoder.parameters(), decay=0.998)
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    start, total = time.monotonic(), 0.0
    for step in range(args.steps):
        latents, images = batch(pipe, encoder, shelf, args.batch, rng)
        loss = distance(decode(vae, unpack(latents, *SQUARE) / scale + shift), images, 0.7)
        loss.backward()
        total += loss.item()
        optimiser.step(rate_at(args.rate, step, args.steps))
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} {time.monotonic() - start:.0f}s loss {total / 50:.4f}", flush=True)
            total = 0.0
    vae.float()
    optimiser.put_average()
    for parameter, value in zip(vae.encoder.parameters(), kept, strict=True):
        parameter.data = value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a file of latents.py, of the full stage")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = pipeline(args.state, args.text, args.vae).to(device)
    pipe.transformer.to(torch.bfloat16)
    vae = AutoencoderKL.from_pretrained(args.vae).to(device, memory_format=torch.channels_last)
    print(f"before: {quality(vae):.2f} dB", flush=True)
    train(pipe, vae, Encoder(args.text), load(args.data)[SQUARE], args)
    vae.save_pretrained(args.out)
    print(f"after: {quality(vae):.2f} dB", flush=True)


if __name__ == "__main__":
    main()
