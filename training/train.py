"""Owns the training of the transformer and both text encoders: flow matching on stored latents, in phases.

The rate rises, stays, and falls only in the last phase. Each phase ends in a checkpoint from which the next goes on,
so more training means repeating a phase before the last. Start it under torchrun for several processes.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from training.captions import caption
from training.flat import FlatAdam
from training.latents import Format, Shelf, load
from training.specs import SQUARE, TILE, Picture
from training.tokenization import Encoder
from training.transformer import build, image_ids

LENGTH = 24
#: Tokens of a square picture; `--batch` counts pictures of this size, of larger ones there are fewer.
TOKENS = SQUARE[0] * SQUARE[1] // TILE**2
LONG_LENGTHS = (64, 128, 256, 512)
#: Every so many steps the words are padded to one of LONG_LENGTHS, as a pipeline with its defaults does.
LONG_EVERY = 40
CAPTION_DROPOUT = 0.05
#: At a greater strength a picture is too faint to tell where its things are.
FAINT = 0.75
#: How much more the tokens of things count than those of the ground.
FOCUS = 3.0
#: Tokens of a thing of medium size; one of fewer counts up to twice as much, or it would hardly be heard.
USUAL = 16
Velocity = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """Noised latents, the velocity wanted there, weights of the tokens, times, token ids and positions."""

    noised: Tensor
    velocity: Tensor
    weights: Tensor
    times: Tensor
    clip_ids: Tensor
    t5_ids: Tensor
    positions: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__slots__))


@dataclass(slots=True)
class Library:
    """The stored pictures of several stages, and how often each stage is drawn from."""

    shelves: list[dict[Format, Shelf]]
    shares: list[float]
    encoder: Encoder
    rng: random.Random
    siblings: float
    #: Shared by all processes, so that they work on the same format at the same time.
    order: random.Random = field(default_factory=lambda: random.Random(17))

    def draw(self, size: int, length: int) -> Batch:
        """A batch of one format, with as many tokens as `size` square pictures and captions of LENGTH have."""
        stage = self.order.choices(self.shelves, self.shares)[0]
        formats = list(stage)
        chosen = self.order.choices(formats, [len(stage[f].pictures) for f in formats])[0]
        shelf = stage[chosen]
        size = max(4, size * (TOKENS + LENGTH) // (shelf.latents.shape[1] + length))
        rows = [shelf.settled[self.rng.randrange(len(shelf.pictures))] for _ in range(size)]
        strengths = random_strengths(size, self.siblings)
        captions = [self.words(shelf.pictures[row], float(s)) for row, s in zip(rows, strengths, strict=True)]
        clean = shelf.latents[rows].float()
        source = shelf.latents[[row ^ 1 for row in rows]].float()
        noised, velocity, times = noise(clean, source, strengths)
        clip_ids, t5_ids = self.encoder(captions, length)
        return Batch(noised, velocity, focus(clean), times, clip_ids, t5_ids, image_ids(*chosen))

    def words(self, picture: Picture, strength: float) -> str:
        """A caption; half of those for a picture that is still well seen leave the layout to it."""
        if self.rng.random() < CAPTION_DROPOUT:
            return ""
        return caption(picture, self.rng, layout=strength > FAINT or self.rng.random() < 0.5)


def random_times(count: int) -> Tensor:
    """Mostly the noisy half, where what a picture shows is decided; one in ten is pure noise, one in ten anything."""
    times = torch.sigmoid(torch.randn(count) + 0.8)
    q = torch.rand(count)
    times = torch.where(q < 0.1, torch.rand(count), times)
    return torch.where(q > 0.9, torch.ones(()), times)


def random_strengths(count: int, siblings: float) -> Tensor:
    """1 for text-to-image, which starts from pure noise; less for a share of image-to-image."""
    strengths = 0.5 + 0.48 * torch.rand(count)
    return torch.where(torch.rand(count) < siblings, strengths, torch.ones(()))


def noise(clean: Tensor, source: Tensor, strengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noised latents, velocities and times.

    A row starts from the source's latents, noised up to its strength, and goes in a straight line to what the caption
    says; at strength 1 it starts from pure noise.
    """
    times = (random_times(len(clean)) * strengths)[:, None, None]
    strength = strengths[:, None, None]
    begin = (1 - strength) * source + strength * torch.randn_like(clean)
    velocity = (begin - clean) / strength
    return clean + times * velocity, velocity, times.view(-1)


def focus(clean: Tensor) -> Tensor:
    """(n, tokens) weights: tokens far from the picture's ground count up to 1 + FOCUS times, of small things more."""
    ground = clean.median(1, keepdim=True).values
    distance = ((clean - ground).square().mean(-1) / 0.5).clamp(max=1)
    small = (USUAL / distance.sum(1, keepdim=True).clamp(min=1)).sqrt().clamp(1, 2)
    return 1 + FOCUS * small * distance


@dataclass(slots=True)
class Models:
    transformer: FluxTransformer2DModel
    clip: CLIPTextModel
    t5: T5EncoderModel

    def named(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer, "text_encoder": self.clip, "text_encoder_2": self.t5}


def assemble(text: Path, device: torch.device) -> Models:
    clip = CLIPTextModel.from_pretrained(text / "text_encoder", attn_implementation="eager")
    t5 = T5EncoderModel.from_pretrained(text / "text_encoder_2")
    models = Models(build(), clip, t5)
    for module in models.named().values():
        module.to(device, torch.bfloat16).train()
    # Its gradient is that of the timestep embedder's bias, to which it is added; one of the two is enough.
    models.transformer.time_text_embed.text_embedder.linear_2.bias.requires_grad_(False)
    if device.type == "cpu":
        # The fused attention is slow backwards on CPU: twice as many samples a second without it.
        models.transformer.set_attention_backend("_native_math")
    return models


def velocity_of(transformer: FluxTransformer2DModel) -> Velocity:
    def velocity(
        noised: Tensor, words: Tensor, pooled: Tensor, times: Tensor, positions: Tensor, zeros: Tensor
    ) -> Tensor:
        made: Tensor = transformer(
            hidden_states=noised.to(words.dtype),
            encoder_hidden_states=words,
            pooled_projections=pooled,
            timestep=times,
            img_ids=positions,
            txt_ids=zeros,
            return_dict=False,
        )[0].float()
        return made

    return velocity


def loss_of(models: Models, velocity: Velocity, batch: Batch) -> Tensor:
    pooled = models.clip(batch.clip_ids).pooler_output
    words = models.t5(batch.t5_ids).last_hidden_state
    zeros = torch.zeros(batch.t5_ids.shape[1], 3, device=words.device)
    made = velocity(batch.noised, words, pooled, batch.times, batch.positions, zeros)
    errors = (made - batch.velocity).square().mean(-1)
    return (errors * batch.weights).sum() / batch.weights.sum()


@dataclass(slots=True)
class Run:
    """One phase: what it trains, from what, and how long."""

    models: Models
    optimiser: FlatAdam
    library: Library
    device: torch.device
    samples: int
    batch: int
    rate: float
    decay: bool
    #: Samples seen in all, and at the start of this phase.
    seen: int = 0
    began: int = 0

    def processes(self) -> int:
        return dist.get_world_size() if dist.is_initialized() else 1

    def rate_at(self, done: float) -> float:
        """Full rate after a short rise; in a phase with decay it falls to a fiftieth."""
        warm = min(1.0, (self.optimiser.steps + 1) / 100)
        return self.rate * warm * (1 - 0.98 * done if self.decay else 1)

    def train(self, state: Path, save_every: float, report_every: int = 100) -> None:
        compiled = torch.compile(velocity_of(self.models.transformer))
        plain = velocity_of(self.models.transformer)
        start = saved = time.monotonic()
        first, losses, step = self.seen, [], 0
        while (done := (self.seen - self.began) / self.samples) < 1:
            batch, usual = self.next_batch(step)
            loss = loss_of(self.models, compiled if usual else plain, batch)
            loss.backward()
            losses.append(loss.item())
            norm = self.optimiser.step(self.rate_at(done))
            self.seen += len(batch.times) * self.processes()
            step += 1
            if step % report_every == 0:
                seconds = time.monotonic() - start
                self.report(losses, norm, seconds, (self.seen - first) / seconds)
                losses = []
            if time.monotonic() - saved > save_every:
                self.save(state)
                saved = time.monotonic()
        self.save(state)

    def next_batch(self, step: int) -> tuple[Batch, bool]:
        """A batch, and whether it has the one shape that is worth compiling for."""
        if step % LONG_EVERY == LONG_EVERY - 1:
            length = self.library.order.choice(LONG_LENGTHS)
            return self.library.draw(self.batch, length).to(self.device), False
        batch = self.library.draw(self.batch, LENGTH).to(self.device)
        return batch, len(batch.positions) == TOKENS

    def report(self, losses: list[float], norm: float, seconds: float, speed: float) -> None:
        if leading():
            mean = sum(losses) / len(losses)
            line = f"step {self.optimiser.steps} samples {self.seen} loss {mean:.4f} norm {norm:.2f}"
            print(f"{line} {seconds:.0f}s {speed:.0f}/s", flush=True)

    def save(self, state: Path) -> None:
        if leading():
            self.optimiser.save(state, seen=self.seen, began=self.began)


def leading() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="folder with the tokenizers and taught encoders")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files written by latents.py")
    parser.add_argument("--shares", type=float, nargs="+", required=True, help="how often each file is drawn from")
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--after", type=Path, help="checkpoint of the phase before")
    parser.add_argument("--state", type=Path, required=True, help="checkpoint of this phase; where there, it goes on")
    parser.add_argument("--batch", type=int, default=24, help="pictures a step and process")
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--text-rate", type=float, default=0.2, help="the encoders' share of the rate")
    parser.add_argument("--siblings", type=float, default=0.0, help="share of image-to-image samples")
    parser.add_argument("--decay", action="store_true", help="let the rate fall to nearly nothing")
    parser.add_argument("--save-every", type=float, default=180, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def resume(args: argparse.Namespace, optimiser: FlatAdam) -> tuple[int, int]:
    """Load the checkpoint to go on from; returns the samples seen in all, and at the start of this phase."""
    if args.state.exists():
        numbers = optimiser.load(args.state)
        return int(numbers["seen"]), int(numbers["began"])
    seen = int(optimiser.load(args.after)["seen"]) if args.after else 0
    return seen, seen


def prepare(args: argparse.Namespace) -> Run:
    rank = int(os.environ.get("RANK", "0"))
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = assemble(args.text, device)
    parameters = [p for module in models.named().values() for p in module.parameters()]
    optimiser = FlatAdam(parameters, compiled=True)
    text = sum(p.numel() for p in (*models.clip.parameters(), *models.t5.parameters()))
    optimiser.rates[-text:] = args.text_rate
    seen, began = resume(args, optimiser)
    rng = random.Random(f"{args.seed}/{rank}/{seen}")
    torch.manual_seed(args.seed + 1000 * rank + seen)
    library = Library([load(p) for p in args.data], args.shares, Encoder(args.text), rng, args.siblings)
    return Run(models, optimiser, library, device, args.samples, args.batch, args.rate, args.decay, seen, began)


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    run = prepare(args)
    run.train(args.state, args.save_every)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
