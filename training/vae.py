"""Owns the autoencoder: 16 latent channels, 8 times smaller, trained on drawings made as it goes.

Instead of a KL term the latent gets fixed noise. Earlier attempts collapsed to a flat colour; one normalisation group,
orthogonal convolutions and weak residual branches at the start are what keeps it from doing so. The encoder is final
after this; the decoder goes to school once more when the transformer is there (`polish.py`).
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from training.draw import draw
from training.flat import FlatAdam
from training.specs import TILE, random_picture

LATENT_CHANNELS = 16
CROP = 96
#: Standard deviation of the noise on the latents, in the encoder's own units.
POSTERIOR = 0.1


def build() -> AutoencoderKL:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=128,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    initialise(vae)
    return vae


@torch.no_grad()
def initialise(vae: AutoencoderKL) -> None:
    for name, module in vae.named_modules():
        if name.endswith("conv2"):
            module.weight.mul_(0.1)
            module.bias.zero_()
        elif isinstance(module, nn.Conv2d) and not name.endswith("conv1"):
            nn.init.orthogonal_(module.weight)
            if "upsamplers" in name:
                module.weight.mul_(0.4)
                module.weight[:, :, 1, 1] += torch.eye(module.weight.shape[0])
    out = vae.encoder.conv_out
    out.weight[LATENT_CHANNELS:].zero_()
    out.bias.zero_()
    out.bias[LATENT_CHANNELS:].fill_(2 * math.log(POSTERIOR))


def crop(picture: np.ndarray, rng: random.Random) -> np.ndarray:
    """A square part; three times in four it lies on the grid, as whole pictures do."""
    step = TILE if rng.random() < 0.75 else 1
    y = step * rng.randint(0, (picture.shape[0] - CROP) // step)
    x = step * rng.randint(0, (picture.shape[1] - CROP) // step)
    return picture[y : y + CROP, x : x + CROP]


def recolour(picture: np.ndarray, rng: random.Random) -> np.ndarray:
    """Now and then other colours than the twelve, so that pictures from elsewhere survive too."""
    if rng.random() < 0.6:
        return picture
    order = rng.sample(range(3), 3)
    low, high = rng.randint(0, 40), rng.randint(200, 255)
    return low + picture[..., order].astype(np.float32) * ((high - low) / 255)


def pictures(count: int, rng: random.Random, device: torch.device) -> Tensor:
    """`count` crops, (count, 3, CROP, CROP) in -1..1."""
    parts: list[np.ndarray] = []
    while len(parts) < count:
        picture = random_picture(rng, "shapes" if rng.random() < 0.2 else "full")
        if min(picture.width, picture.height) >= CROP:
            parts.append(recolour(crop(np.asarray(draw(picture)), rng), rng).astype(np.float32))
    batch = torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2) / 127.5 - 1
    return batch.to(device).contiguous(memory_format=torch.channels_last)


def slopes(image: Tensor) -> tuple[Tensor, Tensor]:
    return image[..., 1:] - image[..., :-1], image[..., 1:, :] - image[..., :-1, :]


def distance(made: Tensor, wanted: Tensor, edges: float) -> Tensor:
    """Absolute and squared error, and the error of the slopes, which keeps outlines sharp."""
    sides = sum(F.l1_loss(a, b) for a, b in zip(slopes(made), slopes(wanted), strict=True))
    return F.l1_loss(made, wanted) + 2 * F.mse_loss(made, wanted) + edges * sides


def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """The mean latent in the encoder's own units, float32."""
    both: Tensor = vae.encoder(images.to(vae.dtype)).float()
    return both.chunk(2, 1)[0]


def decode(vae: AutoencoderKL, latent: Tensor) -> Tensor:
    images: Tensor = vae.decoder(latent.to(vae.dtype).contiguous(memory_format=torch.channels_last)).float()
    return images


def loss_of(vae: AutoencoderKL, images: Tensor) -> Tensor:
    latent = encode(vae, images)
    made = decode(vae, latent + POSTERIOR * torch.randn_like(latent))
    return distance(made, images, 0.5) + 1e-4 * latent.square().mean()


def measure_latents(vae: AutoencoderKL, rng: random.Random) -> None:
    """Set scale and shift so that normalised latents have mean 0 and deviation 1."""
    with torch.inference_mode():
        sample = torch.cat([encode(vae, pictures(16, rng, vae.device)) for _ in range(16)])
    vae.register_to_config(scaling_factor=1 / sample.std().item(), shift_factor=sample.mean().item())


def train(vae: AutoencoderKL, steps: int, rate: float, batch: int, seed: int) -> None:
    """Train everything and leave the averaged weights in `vae`, float32."""
    rng = random.Random(seed)
    vae.to(torch.bfloat16)
    optimiser = FlatAdam(vae.parameters(), decay=0.998)
    freeze_width(vae, optimiser)
    start, total = time.monotonic(), 0.0
    for step in range(steps):
        loss = loss_of(vae, pictures(batch, rng, vae.device))
        loss.backward()
        total += loss.item()
        optimiser.step(rate_at(rate, step, steps))
        if (step + 1) % 250 == 0:
            print(f"step {step + 1} {time.monotonic() - start:.0f}s loss {total / 250:.4f}", flush=True)
            total = 0.0
    vae.float()
    optimiser.put_average()


def rate_at(rate: float, step: int, steps: int) -> float:
    """A short rise, then half a cosine down to a fiftieth."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
    return rate * min(1, (step + 1) / 100) * (0.98 * cosine + 0.02)


def freeze_width(vae: AutoencoderKL, optimiser: FlatAdam) -> None:
    """The half of the encoder's output that says how wide the posterior is stays as it was set."""
    out = {id(vae.encoder.conv_out.weight), id(vae.encoder.conv_out.bias)}
    for parameter, rates in zip(optimiser.parameters, optimiser.views(optimiser.rates), strict=True):
        if id(parameter) in out:
            rates[LATENT_CHANNELS:] = 0


@torch.inference_mode()
def quality(vae: AutoencoderKL, seed: int = 4242) -> float:
    """Peak signal-to-noise ratio in dB over 128 fresh crops."""
    rng = random.Random(seed)
    errors = []
    for _ in range(8):
        images = pictures(16, rng, vae.device)
        errors.append(F.mse_loss(decode(vae, encode(vae, images)), images).item())
    return 10 * math.log10(4 / float(np.mean(errors)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = build().to(device, memory_format=torch.channels_last).train()
    train(vae, args.steps, args.rate, args.batch, args.seed)
    measure_latents(vae, random.Random(args.seed + 1))
    vae.save_pretrained(args.out)
    print(f"{quality(vae):.2f} dB on fresh drawings", flush=True)


if __name__ == "__main__":
    main()
