"""A LocalEngine on a card: torch.cuda is patched, and the fake family's models take no device memory."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imagegen.catalog.catalog import Catalog
from imagegen.core.errors import FailureCode
from imagegen.gpu import devices, memory
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import (
    EngineOptions,
    Failed,
    Generate,
    Generated,
    Loaded,
    Measured,
    Stopped,
    Unload,
    Unloaded,
)
from imagegen.loaders.base import LoadedModel
from imagegen.testing import WITH_FAKE
from tests.conftest import fake_catalog, load_command, request_for

GIB = 2**30


class Card:
    """One card of 24 GiB that records its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.free = 23 * GIB
        #: What fails with which words.
        self.broken: dict[str, str] = {}
        for name in ("init", "reset_peak_memory_stats", "synchronize", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: self._ask(name))
        monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a-card"))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, 24 * GIB))
        for name in ("memory_allocated", "memory_reserved", "max_memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, lambda device: 2 * GIB)
        for module in (devices, memory):
            monkeypatch.setattr(module, "run_kernel", lambda device: self._ask("kernel"))

    def _ask(self, name: str) -> None:
        self.asked.append(name)
        if name in self.broken:
            raise RuntimeError(self.broken[name])


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


@pytest.fixture
def engine(card: Card) -> Iterator[LocalEngine]:
    made = LocalEngine(EngineOptions(families=WITH_FAKE))
    yield made
    made.close()


def load(engine: LocalEngine, catalog: Catalog | None = None, model: str = "fake") -> Loaded | Failed:
    return engine.load(load_command(catalog or fake_catalog(), model))


def draw(engine: LocalEngine) -> Generated | Stopped | Failed:
    return engine.generate(Generate(model="fake", request=request_for()), threading.Event(), lambda *step: None)


def test_free_memory_and_memory_of_other_processes_are_measured(engine: LocalEngine, card: Card) -> None:
    card.free = 10 * GIB
    answer = engine.measure()
    assert isinstance(answer, Measured)
    assert (answer.memory.gpu_name, answer.memory.free, answer.memory.total) == ("Card", 10 * GIB, 24 * GIB)
    assert answer.memory.foreign == 11.5 * GIB
    assert answer.memory.cuda_problem is None


def test_memory_outside_torch_does_not_count_as_another_process(
    engine: LocalEngine, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.free = 10 * GIB
    monkeypatch.setattr(LoadedModel, "outside_bytes", 6 * GIB)
    answer = load(engine)
    assert isinstance(answer, Loaded)
    assert (answer.memory.outside, answer.memory.foreign) == (6 * GIB, 5.5 * GIB)
    gone = engine.unload(Unload(model="fake"))
    assert isinstance(gone, Unloaded)
    assert gone.memory.outside == 0


# -- giving back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("switching", "times"), [(False, 1), (True, 0)])
def test_a_switch_leaves_the_memory_with_torch_for_the_next_model(
    engine: LocalEngine, card: Card, switching: bool, times: int
) -> None:
    assert isinstance(load(engine), Loaded)
    card.asked.clear()
    engine.unload(Unload(model="fake", switching=switching))
    assert card.asked.count("empty_cache") == times


def test_a_load_that_finds_too_little_memory_after_a_switch_is_tried_again_when_it_was_given_back(
    engine: LocalEngine, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = fake_catalog(fake={}, next={})
    assert isinstance(load(engine, catalog), Loaded)
    engine.unload(Unload(model="fake", switching=True))
    open_model, attempts = engine._open, []

    def open_when_there_is_room(command: Any) -> Any:
        attempts.append("empty_cache" in card.asked)
        if not attempts[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return open_model(command)

    monkeypatch.setattr(engine, "_open", open_when_there_is_room)
    card.asked.clear()
    answer = load(engine, catalog, "next")
    assert isinstance(answer, Loaded)
    assert answer.made_room
    assert attempts == [False, True]


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (7 * GIB, "this process holds 2.0, other processes hold about 14.5, and 7.0 are free."),
        (21 * GIB, "this process holds 2.0, and 21.0 are free."),
    ],
)
def test_out_of_memory_names_the_memory_of_other_processes(
    engine: LocalEngine, card: Card, free: int, words: str
) -> None:
    card.free = free
    failed = load(engine, fake_catalog(fake={"fault": "out_of_memory", "fault_at": "load"}))
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.OUT_OF_MEMORY
    assert failed.message.endswith(f"Of the card's 24.0 GiB, {words}")


def test_after_any_failure_a_card_that_runs_no_kernel_is_broken(engine: LocalEngine, card: Card) -> None:
    assert isinstance(load(engine, fake_catalog(fake={"fault": "error"})), Loaded)
    failed = draw(engine)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.GENERATION_FAILED
    card.broken["kernel"] = "CUDA error: unspecified launch failure"
    card.asked.clear()
    failed = draw(engine)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.DEVICE_FAULT
    assert "a fake fault" in failed.traceback
    assert "empty_cache" not in card.asked


def test_a_configured_card_that_cannot_be_used_fails_each_load_with_the_reason(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "_cards", lambda: [Path("/dev/nvidia0")])
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    card.broken["init"] = "The NVIDIA driver on your system is too old (found version 12020)."
    engine = LocalEngine(EngineOptions(device="cuda", families=WITH_FAKE))
    answer = engine.measure()
    assert isinstance(answer, Measured)
    assert answer.memory.cuda_problem == card.broken["init"]
    failed = load(engine)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.UNSUPPORTED_DEVICE
    assert failed.message == f"The card that IMAGEGEN_DEVICE names cannot be used: {card.broken['init']}"
    engine = LocalEngine(EngineOptions(device="auto", families=WITH_FAKE))
    loaded = load(engine)
    assert isinstance(loaded, Loaded)
    assert loaded.memory.cuda_problem == card.broken["init"]
