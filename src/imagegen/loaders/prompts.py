"""PromptCache: keeps the embeddings of the latest prompts, so that a repeated prompt does not run the encoders."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from imagegen.loaders.tokens import Reading, TokenWatch

#: The most bytes of the embeddings that one model keeps on its device: 16 prompts of FLUX.1 in bfloat16.
MAX_BYTES = 64 * 1024**2


class PromptCache:
    """Wraps `encode_prompt` of the pipelines of one model. A cached answer has the same tensors as the first one."""

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        watch: TokenWatch | None = None,
        on_encoded: Callable[[], object] | None = None,
    ) -> None:
        """`watch`: gets the readings of a prompt's tokenizers also if the prompt is cached.

        `on_encoded` is called after each prompt, cached or not.
        """
        self._max_bytes = max_bytes
        self._on_encoded = on_encoded
        self._readings = [] if watch is None else watch.readings
        self._bytes = 0
        self._answers: OrderedDict[Hashable, tuple[Any, int, list[Reading]]] = OrderedDict()
        self._paused = False

    def attach(self, pipeline: Any) -> None:
        """Wrap `pipeline.encode_prompt`, if the pipeline has it."""
        encode = getattr(pipeline, "encode_prompt", None)
        if encode is None:
            return
        name = type(pipeline).__name__

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            key = None if self._paused else _key(name, args, kwargs)
            answer = encode(*args, **kwargs) if key is None else self._answer(key, lambda: encode(*args, **kwargs))
            if self._on_encoded is not None:
                self._on_encoded()
            return answer

        pipeline.encode_prompt = encode_prompt

    def clear(self) -> None:
        """Remove all cached prompts."""
        self._answers.clear()
        self._bytes = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Neither read nor fill the cache while the context lasts: a request's LoRA may change the encoders."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _answer(self, key: Hashable, encode: Any) -> Any:
        if key in self._answers:
            self._answers.move_to_end(key)
            self._readings.extend(self._answers[key][2])
            return _fresh(self._answers[key][0])
        before = len(self._readings)
        answer = encode()
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(answer))
        self._remember(key, answer, size, self._readings[before:])
        return _fresh(answer)

    def _remember(self, key: Hashable, answer: Any, size: int, readings: list[Reading]) -> None:
        if size > self._max_bytes:
            return
        self._answers[key] = (answer, size, readings)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, freed, _) = self._answers.popitem(last=False)
            self._bytes -= freed


def _key(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable | None:
    """The key of a call; None: it cannot be cached, because an argument is not text or a number (such as a picture)."""
    parts = [_part(value) for value in (*args, *kwargs.values())]
    return None if None in parts else (name, tuple(parts), len(args), tuple(kwargs))


def _part(value: Any) -> str | None:
    import torch

    if value is None or isinstance(value, str | int | float | torch.device | torch.dtype):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, list | tuple):
        parts = [_part(item) for item in value]
        return None if None in parts else repr(parts)
    return None


def _tensors(answer: Any) -> Iterator[Any]:
    if isinstance(answer, list | tuple):
        for item in answer:
            yield from _tensors(item)
    elif hasattr(answer, "element_size"):
        yield answer


def _fresh(answer: Any) -> Any:
    """New containers around the same tensors: a pipeline may add to a list that it gets."""
    if isinstance(answer, list | tuple):
        return type(answer)(_fresh(item) for item in answer)
    return answer
