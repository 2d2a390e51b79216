"""A repeated prompt does not run the text encoders, and the picture is the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from imagegen.builtin import builtin_model
from imagegen.catalog.catalog import GlobalSettings
from imagegen.catalog.sources import Folders
from imagegen.core.task import GenerationRequest, Lora
from imagegen.loaders.base import Inputs, LoadedModel, Placement
from imagegen.loaders.flux import FluxModelLoader, FluxSpec
from imagegen.loaders.parts import Parts
from imagegen.loaders.prompts import PromptCache
from tests.conftest import request_for
from tests.contract.test_lora import write_lora


class Counter:
    """Counts the runs of the T5 encoder."""

    def __init__(self, model: Any) -> None:
        self.runs = 0
        model._pipeline.text_encoder_2.register_forward_hook(self._ran)

    def _ran(self, *_: object) -> None:
        self.runs += 1


@pytest.fixture
def model() -> Iterator[LoadedModel]:
    spec = FluxSpec(name="Tiny", type="flux", local_path=str(builtin_model("tiny")), max_sequence_length=64)
    loaded = FluxModelLoader().load(spec, Placement("cpu", GlobalSettings(), Folders(Path(), Path()), Parts()))
    yield loaded
    loaded.close()


def draw(model: LoadedModel, inputs: Inputs = Inputs(), **changes: Any) -> bytes:  # noqa: B008
    request: GenerationRequest = request_for(**changes)
    (picture,) = model.generate(request, inputs, lambda *step: None)
    return picture.rgb


def test_a_repeat_runs_no_encoder_and_gives_the_same_pixels(model: LoadedModel) -> None:
    counter = Counter(model)
    first = draw(model, prompt="a cat", seed=1)
    assert counter.runs == 1
    assert draw(model, prompt="a cat", seed=1) == first
    assert draw(model, prompt="a cat", seed=2) != first
    assert counter.runs == 1
    draw(model, prompt="a dog")
    assert counter.runs == 2


def test_a_lora_neither_uses_nor_leaves_anything(model: LoadedModel, tmp_path: Path) -> None:
    counter = Counter(model)
    file = write_lora(tmp_path / "style.safetensors")
    plain = draw(model, prompt="a cat")
    styled = draw(model, Inputs(lora_files=[file]), prompt="a cat", loras=(Lora(path="style.safetensors", scale=1),))
    assert counter.runs == 2
    assert styled != plain == draw(model, prompt="a cat")
    assert counter.runs == 2


def test_the_prompts_of_a_shared_call_are_cached_together(model: LoadedModel) -> None:
    counter = Counter(model)
    requests = [request_for("a cat", seed=1), request_for("a dog", seed=1)]
    first = model.generate_together(requests, lambda *step: None)
    assert counter.runs == 1
    assert model.generate_together(requests, lambda *step: None) == first
    assert counter.runs == 1
    alone = draw(model, prompt="a cat", seed=1)
    assert counter.runs == 2
    model.trim()
    assert draw(model, prompt="a cat", seed=1) == alone
    turned = model.generate_together(requests[::-1], lambda *step: None)
    assert counter.runs == 4
    assert abs(sum(turned[1].rgb) - sum(first[0].rgb)) < len(alone) / 100


class Pipeline:
    """Embeds a prompt as a tensor of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size, self.runs = size, 0

    def encode_prompt(self, prompt: Any, image: Any = None) -> list[Any]:
        self.runs += 1
        return [torch.full((self.size,), self.runs, dtype=torch.uint8)]


def attached(size: int, max_bytes: int = 100) -> Pipeline:
    pipeline = Pipeline(size)
    PromptCache(max_bytes).attach(pipeline)
    return pipeline


def test_the_oldest_is_forgotten_when_the_room_is_taken() -> None:
    pipeline = attached(40)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        pipeline.encode_prompt(prompt)
    assert pipeline.runs == 4  # a, b, c, and b again: a was used in between


def test_a_prompt_larger_than_the_cache_is_not_kept() -> None:
    pipeline = attached(101)
    pipeline.encode_prompt("a")
    pipeline.encode_prompt("a")
    assert pipeline.runs == 2


@pytest.mark.parametrize("other", [["a"], ("a", "b"), "A", None])
def test_a_different_prompt_is_encoded(other: Any) -> None:
    pipeline = attached(10)
    pipeline.encode_prompt("a")
    pipeline.encode_prompt(other)
    assert pipeline.runs == 2


def test_a_prompt_with_a_picture_is_never_cached() -> None:
    pipeline = attached(10)
    for _ in range(2):
        pipeline.encode_prompt("a", image=object())
        pipeline.encode_prompt(torch.zeros(2))
    assert pipeline.runs == 4


def test_a_caller_that_adds_to_its_list_does_not_change_the_next_ones() -> None:
    pipeline = attached(10)
    pipeline.encode_prompt("a").append("x")
    assert len(pipeline.encode_prompt("a")) == 1
