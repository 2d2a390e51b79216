"""Owns the two tokenizers: CLIP's byte-pair encoding and T5's unigram, both with every known word as one token."""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import re
import string
import tempfile
from collections import Counter
from pathlib import Path

import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer, T5TokenizerFast

from training.captions import LITTLE, MIDDLE, PRAISE, PREFIXES, STRANGERS, caption
from training.specs import random_picture

CLIP_SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
BLANKED = ",.!?;:\"'()[]{}-_/|*+#&"
ACCENTS = dict(zip("éèêëáàâäóòôöúùûüíìîïñç", "eeeeaaaaoooouuuuiiiinc", strict=True))


def corpus(count: int = 60000, seed: int = 7) -> list[str]:
    """Captions without made-up words, and the single words that captions wrap around them."""
    rng = random.Random(seed)
    lines = [caption(random_picture(rng, "full"), rng, decorated=False) for _ in range(count)]
    words = [*MIDDLE, *PREFIXES, *PRAISE, *STRANGERS, *(w for group in LITTLE.values() for w in group)]
    words += ["flat", "design", "minimalist", "high", "quality", "vector", "art", "colourful", "4k"]
    return without_rare(lines) + [w for w in words if w] * 20


def without_rare(lines: list[str]) -> list[str]:
    """Drop the made-up words: no real one is that seldom."""
    counts = Counter(word for line in lines for word in line.split())
    return [" ".join(w for w in line.split() if counts[w] > 12) for line in lines]


def train_clip(lines: list[str]) -> CLIPTokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<|unk|>", end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = [
        " ".join(a * 2 for a in string.ascii_lowercase),
        *string.ascii_lowercase,
        *string.digits,
        *",.!?-'\"():;/&+#%",
    ]
    special = ["<|startoftext|>", "<|endoftext|>", "<|unk|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=1, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(lines + letters, trainer)
    vocabulary = tokenizer.get_vocab()
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token="<|unk|>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=77,
    )


def charsmap(lines: list[str]) -> bytes:
    """The compiled rules that lower-case, drop accents and turn punctuation to spaces, as sentencepiece stores them."""
    rules = [f"{ord(a):X}\t{ord(a.lower()):X}" for a in string.ascii_uppercase]
    rules += [f"{ord(a):X}\t20" for a in BLANKED] + [f"{ord(a):X}\t{ord(b):X}" for a, b in ACCENTS.items()]
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "rules.tsv")
        table.write_text("\n".join(rules) + "\n")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines[:3000]),
            model_writer=model,
            vocab_size=120,
            hard_vocab_limit=False,
            normalization_rule_tsv=str(table),
            minloglevel=2,
        )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    compiled: bytes = proto.normalizer_spec.precompiled_charsmap
    return compiled


def train_t5(lines: list[str]) -> T5TokenizerFast:
    counts = Counter(w for line in lines for w in re.sub(r"[^a-z0-9 ]", " ", line.lower()).split())
    total = sum(counts.values())
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [("▁" + word, math.log(count / total)) for word, count in counts.most_common()]
    return T5TokenizerFast(
        vocab=vocabulary, extra_ids=0, _spm_precompiled_charsmap=charsmap(lines), model_max_length=512
    )


class Encoder:
    """Captions to padded token ids, without the overhead of the tokenizers' own front ends."""

    CLIP_LENGTH = 40

    def __init__(self, folder: Path) -> None:
        self.clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.t5 = T5TokenizerFast.from_pretrained(folder / "tokenizer_2")
        for backend in (self.clip.backend_tokenizer, self.t5.backend_tokenizer):
            backend.no_padding()
            backend.no_truncation()

    def __call__(self, captions: list[str], length: int) -> tuple[Tensor, Tensor]:
        """Ids for CLIP, as long as the longest caption, and (n, length) ids for T5."""
        clip = [e.ids for e in self.clip.backend_tokenizer.encode_batch(captions)]
        t5 = [e.ids for e in self.t5.backend_tokenizer.encode_batch(captions)]
        clip_length = min(self.CLIP_LENGTH, max(map(len, clip)))
        return padded(clip, clip_length, self.clip.eos_token_id, self.clip.eos_token_id), padded(t5, length, 0, 1)


def padded(rows: list[list[int]], length: int, pad: int, end: int) -> Tensor:
    out = torch.full((len(rows), length), pad)
    for i, row in enumerate(rows):
        cut = row if len(row) <= length else [*row[: length - 1], end]
        out[i, : len(cut)] = torch.tensor(cut)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    lines = corpus()
    clip, t5 = train_clip(lines), train_t5(lines)
    clip.save_pretrained(args.out / "tokenizer")
    t5.save_pretrained(args.out / "tokenizer_2")
    words = {w for line in lines for w in re.sub(r"[^a-z0-9 ]", " ", line.lower()).split()}
    split = sorted(w for w in words if len(clip(w).input_ids) != 3)
    print(f"CLIP {len(clip)} tokens, T5 {len(t5)}; words that CLIP splits: {split}")
    for text in ("A Red CIRCLE, on a blue background!", "an astronaut riding a horse, über-cool redish apples", ""):
        for tokenizer in (
            CLIPTokenizer.from_pretrained(args.out / "tokenizer"),
            T5TokenizerFast.from_pretrained(args.out / "tokenizer_2"),
        ):
            print(tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids))


if __name__ == "__main__":
    main()
