"""Counts the tokens of a prompt, and how many of them the text encoders of a pipeline read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imagegen.core.task import TokensRead

#: The tokens that CLIP reads; `max_sequence_length` does not change this.
CLIP_TOKENS = 77


def least_tokens(folder: Path | None, prompt: str) -> int:
    """The least number of tokens of a prompt, without the model's template. Needs neither torch nor transformers.

    The tokenizer of the encoder that reads the most counts them, if its tokenizer.json is in the pipeline's folder.
    Otherwise each word counts as one token: no tokenizer of these models makes one token of two words.

    May raise OSError or ValueError.
    """
    words = len(prompt.split())
    names = ("tokenizer_3", "tokenizer_2", "tokenizer")
    last = next((folder / name for name in names if (folder / name).is_dir()), None) if folder else None
    if last is None or not (file := last / "tokenizer.json").is_file():
        return words
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(file.read_text("utf-8"))
    except Exception as error:  # the library raises no narrower class
        raise ValueError("tokenizer.json cannot be read") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return max(words, len(tokenizer.encode(prompt).ids))


class Reading(NamedTuple):
    """A text that a tokenizer has encoded: how many of its tokens the encoder read."""

    encoder: str
    text: str
    read: int
    of: int


class TokenWatch:
    """Records what the tokenizers of one pipeline read. Its counts include special tokens and templates."""

    def __init__(self, pipeline: Any) -> None:
        #: The readings since the last `clear()`. `PromptCache` adds those of a cached prompt.
        self.readings: list[Reading] = []
        for number in ("", "_2", "_3", "_4"):
            tokenizer = getattr(pipeline, f"tokenizer{number}", None)
            if tokenizer is not None:
                if not hasattr(tokenizer, "model_max_length"):
                    tokenizer = tokenizer.tokenizer  # FLUX.2 has a processor of text and pictures in this place
                _watch(tokenizer, f"text_encoder{number}", self.readings)
        self._template = getattr(pipeline, "prompt_template_encode_start_idx", 0)

    def of(self, prompt: str, most: int | None = None) -> tuple[TokensRead, ...]:
        """The tokens of a prompt that each encoder read; empty if no watched tokenizer encoded the prompt.

        `most`: the number of tokens that the pipeline cuts the embeddings to.
        """
        found: dict[str, TokensRead] = {}
        for it in self.readings:
            # Some pipelines convert the prompt to lower case, others put it into a template.
            if prompt.lower().strip() in it.text.lower() or it.text.strip() == prompt.strip():
                read, of = it.read, it.of
                if most is not None:
                    read, of = min(read - self._template, most), of - self._template
                if it.encoder not in found or read < found[it.encoder].read:
                    found[it.encoder] = TokensRead(encoder=it.encoder, read=read, of=of)
        return tuple(found[encoder] for encoder in sorted(found))


def what_is_cut(what: str, tokens: Sequence[TokensRead]) -> Iterator[str]:
    """Yield a warning if no encoder read the end of a text. `what` is `prompt` or `negative_prompt`."""
    if tokens and all(it.read < it.of for it in tokens):
        counts = ", ".join(f"{it.encoder} read {it.read} of {it.of}" for it in tokens)
        yield f"The end of the {what} is ignored. Tokens: {counts}."


def _watch(tokenizer: Any, encoder: str, readings: list[Reading]) -> None:
    kind = type(tokenizer)

    def read(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        encoded = kind.__call__(self, text, *args, **kwargs)
        for one in [text] if isinstance(text, str) else text if isinstance(text, list | tuple) else []:
            if isinstance(one, str):
                special = kwargs.get("add_special_tokens", True)
                of = len(kind.__call__(self, one, add_special_tokens=special)["input_ids"])
                readings.append(Reading(encoder, one, min(_width(encoded["input_ids"]), of), of))
        return encoded

    # Python looks up `__call__` in the class, so a subclass replaces it. Libraries check the name, so it is kept.
    tokenizer.__class__ = type(kind.__name__, (kind,), {"__call__": read, "__module__": kind.__module__})


def _width(ids: Any) -> int:
    """The tokens of each text, including padding."""
    if hasattr(ids, "shape"):
        return int(ids.shape[-1])
    return len(ids[0]) if ids and isinstance(ids[0], list) else len(ids)
