"""Owns the two text encoders, and teaches them what captions say before the transformer ever sees them.

A linear layer on CLIP's pooled vector and another on every word of T5 must name each attribute of the picture. Without
this the transformer waits for the encoders to find out by themselves what matters, which takes longer than all else.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from training.captions import caption
from training.flat import FlatAdam
from training.specs import (
    COLOUR_NAMES,
    COLUMNS,
    GROUNDS,
    ROWS,
    SCENES,
    SIZES,
    THINGS,
    TIMES,
    Picture,
    Thing,
    random_picture,
)
from training.tokenization import Encoder

WIDTH = 128
LENGTH = 24
UNKNOWN = -100
KINDS = ("one", "two", "scene")
ANSWERS: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "name": THINGS,
    "colour": COLOUR_NAMES,
    "name2": THINGS,
    "colour2": COLOUR_NAMES,
    "relation": ("beside", "above"),
    "ground": GROUNDS,
    "ground_colour": COLOUR_NAMES,
    "stripe_colour": COLOUR_NAMES,
    "time": TIMES,
    "column": COLUMNS,
    "row": ROWS,
    "size": SIZES,
    "scene": SCENES,
    "extra": ("no", "yes"),
}


def build(clip_tokens: int, t5_tokens: int) -> tuple[CLIPTextModel, T5EncoderModel]:
    clip = CLIPTextConfig(
        vocab_size=clip_tokens,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        hidden_act="gelu",
    )
    t5 = T5Config(
        vocab_size=t5_tokens,
        d_model=WIDTH,
        d_kv=32,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        relative_attention_max_distance=64,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)


def facts(picture: Picture) -> dict[str, str]:
    """What a caption can say about a picture, by question; questions that make no sense for it are left out."""
    if picture.scene is not None:
        scene = picture.scene
        said = {"kind": "scene", "scene": scene.name, "time": scene.time}
        if scene.name in ("house", "boat"):
            said |= {"colour": scene.colour, "name": scene.name}
        return said | (
            {"extra": "yes" if scene.extra else "no"} if scene.name in ("house", "forest", "mountains") else {}
        )
    ground = picture.ground
    said = {"kind": KINDS[len(picture.things) - 1], "ground": ground.kind}
    if ground.kind in ("sky", "meadow"):
        said["time"] = ground.time
    else:
        said["ground_colour"] = ground.colour
    if ground.kind == "striped":
        said["stripe_colour"] = ground.second
    return said | thing_facts(*picture.things)


def thing_facts(first: Thing, second: Thing | None = None) -> dict[str, str]:
    said = {"name": first.name, "colour": first.colour}
    if second is None:
        return said | {"column": first.column, "row": first.row, "size": first.size}
    relation = "beside" if first.column == "left" else "above"
    return said | {"name2": second.name, "colour2": second.colour, "relation": relation}


class Questions(nn.Module):
    """Linear heads, one question after the other, with the loss and the share of right answers."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [len(options) for options in ANSWERS.values()]
        self.head = nn.Linear(WIDTH, sum(self.sizes))

    def forward(self, features: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, WIDTH), answers (n, questions) -> loss, (questions,) share right."""
        parts = self.head(features).float().split(self.sizes, dim=1)
        losses = [F.cross_entropy(p, a, ignore_index=UNKNOWN) for p, a in zip(parts, answers.T, strict=True)]
        guesses = torch.stack([p.argmax(1) for p in parts], 1)
        known = answers != UNKNOWN
        right = ((guesses == answers) & known).float().sum(0) / known.float().sum(0).clamp(min=1)
        return torch.stack(losses).nan_to_num().sum(), right


def answers_for(pictures: list[Picture]) -> Tensor:
    rows = []
    for picture in pictures:
        said = facts(picture)
        rows.append([options.index(said[q]) if q in said else UNKNOWN for q, options in ANSWERS.items()])
    return torch.tensor(rows)


def batch(rng: random.Random, encoder: Encoder, size: int) -> tuple[Tensor, Tensor, Tensor]:
    pictures = [random_picture(rng, rng.choice(("shapes", "things", "full", "full"))) for _ in range(size)]
    clip, t5 = encoder([caption(p, rng) for p in pictures], LENGTH)
    return clip, t5, answers_for(pictures)


def train(folder: Path, steps: int, rate: float, size: int, seed: int) -> tuple[CLIPTextModel, T5EncoderModel]:
    rng, encoder = random.Random(seed), Encoder(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clip, t5 = (model.to(device) for model in build(len(encoder.clip), len(encoder.t5)))
    heads = nn.ModuleList([Questions(), Questions()]).to(device)
    modules = nn.ModuleList([clip, t5, heads]).to(torch.bfloat16)
    optimiser = FlatAdam(modules.parameters(), decay=0.99)
    start = time.monotonic()
    for step in range(steps):
        clip_ids, t5_ids, answers = (x.to(device) for x in batch(rng, encoder, size))
        words = t5_ids > 0
        pooled_loss, pooled_right = heads[0](clip(clip_ids).pooler_output, answers)
        spread = answers.unsqueeze(1).expand(-1, t5_ids.shape[1], -1)[words]
        word_loss, word_right = heads[1](t5(t5_ids).last_hidden_state[words], spread)
        (pooled_loss + word_loss).backward()
        optimiser.step(rate * min(1, (step + 1) / 50) * (1 - 0.95 * step / steps))
        if (step + 1) % 200 == 0:
            report(step + 1, time.monotonic() - start, pooled_right, word_right)
    optimiser.put_average()
    return clip, t5


def report(step: int, seconds: float, pooled: Tensor, words: Tensor) -> None:
    shares = " ".join(f"{q} {a:.2f}/{b:.2f}" for q, a, b in zip(ANSWERS, pooled.tolist(), words.tolist(), strict=True))
    print(f"{step} {seconds:.0f}s pooled/words {shares}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("folder", type=Path, help="holds the tokenizers, receives the encoders")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    clip, t5 = train(args.folder, args.steps, args.rate, args.batch, args.seed)
    clip.save_pretrained(args.folder / "text_encoder")
    t5.save_pretrained(args.folder / "text_encoder_2")


if __name__ == "__main__":
    main()
