"""The same seed draws the same picture, also if a library uses the process's generators."""

import json
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Generate, Generated, Loaded
from tests.conftest import load_command, request_for
from tests.contract.families import LIBRARY_WARNINGS, Shelf, catalog_of, draw, run, shelf_of

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIBRARY_WARNINGS]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """SD3 with a scheduler that adds noise in each step, and ERNIE with its prompt enhancer."""
    with shelf_of(tmp_path_factory.mktemp("models"), ("sd3", "ernie-enhanced")) as shelf:
        for name, field in (("model_index.json", "scheduler"), ("scheduler/scheduler_config.json", "_class_name")):
            file = shelf.model("sd3") / name
            said = json.loads(file.read_text())
            said[field] = ["diffusers", "FlowMatchLCMScheduler"] if field == "scheduler" else "FlowMatchLCMScheduler"
            file.write_text(json.dumps(said))
        yield shelf


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(EngineOptions(device="cpu"))
    yield made
    made.close()


def load(engine: LocalEngine, shelf: Shelf, kind: str, **changes: Any) -> None:
    catalog = catalog_of(**{kind: shelf.entry(kind) | changes})
    assert isinstance(loaded := engine.load(load_command(catalog, kind, shelf.folder)), Loaded), loaded


def test_a_scheduler_that_adds_noise_adds_the_same_for_the_same_seed(engine: LocalEngine, shelf: Shelf) -> None:
    load(engine, shelf, "sd3")
    first = draw(engine, "sd3", seed=9, steps=3)
    assert np.array_equal(draw(engine, "sd3", seed=9, steps=3), first)
    batch = run(engine, "sd3", seed=7, batch_size=3, steps=3)
    assert isinstance(batch, Generated)
    assert batch.images[2].rgb == first.tobytes()
    assert not np.array_equal(draw(engine, "sd3", seed=10, steps=3), first)


def test_pictures_of_one_call_repeat_as_well(engine: LocalEngine, shelf: Shelf) -> None:
    load(engine, shelf, "sd3", max_batch=2)
    requests = [request_for("a star", seed=seed, steps=3, guidance_scale=3.0) for seed in (1, 2)]
    command = Generate(model="sd3", request=requests[0], companions=tuple(requests[1:]), together=True)
    made = [engine.generate(command, threading.Event(), lambda *_: None) for _ in range(2)]
    first, again = made
    assert isinstance(first, Generated)
    assert isinstance(again, Generated)
    assert first.images == again.images


def test_the_generators_of_the_process_go_on_as_if_nothing_had_been_drawn(engine: LocalEngine, shelf: Shelf) -> None:
    load(engine, shelf, "sd3")
    torch.manual_seed(3)
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # type: ignore[index]
    draw(engine, "sd3")
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_the_prompt_is_not_rewritten_by_default(engine: LocalEngine, shelf: Shelf) -> None:
    load(engine, shelf, "ernie-enhanced")
    plain = draw(engine, "ernie-enhanced")
    assert np.array_equal(draw(engine, "ernie-enhanced"), plain)
    load(engine, shelf, "ernie-enhanced", use_pe=True)
    rewritten = draw(engine, "ernie-enhanced")
    assert not np.array_equal(rewritten, plain)
    assert np.array_equal(draw(engine, "ernie-enhanced"), rewritten)
