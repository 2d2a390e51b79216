"""What NVML says about the cards, and what it does not."""

import inspect
import os
import sys

import pynvml
import pytest

from imagegen.gpu.nvml import cards
from tests.nvml import GIB, Nvml


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    stand_in = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", stand_in)
    return stand_in


def test_the_stand_in_has_the_functions_of_the_bindings() -> None:
    for name, ours in inspect.getmembers(Nvml, inspect.isfunction):
        if name.startswith("nvml"):
            taken = len(inspect.signature(ours).parameters) - 1
            required = [
                it for it in inspect.signature(getattr(pynvml, name)).parameters.values() if it.default is it.empty
            ]
            assert len(required) == taken, name
    assert pynvml.NVML_TEMPERATURE_GPU == Nvml.NVML_TEMPERATURE_GPU
    assert issubclass(pynvml.NVMLError, Exception)


def test_the_bindings_find_no_card_where_there_is_none() -> None:
    if not os.path.exists("/dev/nvidiactl"):
        assert not cards()


def test_a_card_says_its_memory_load_and_temperature(nvml: Nvml) -> None:
    ours, other = os.getpid(), os.getppid()
    nvml.processes = {ours: 7 * GIB, other: 2 * GIB}
    first, second = cards(ours) or ()
    assert (first.index, first.name, first.uuid) == (0, "Card 0", "GPU-0000000-0000-0000-0000-000000000000")
    assert (first.memory_total, first.memory_used, first.memory_ours) == (24 * GIB, 10 * GIB, 7 * GIB)
    assert (first.utilization, first.temperature, first.power) == (97, 61, 212.5)
    assert second.memory_ours == 0
    assert nvml.open == 0


@pytest.mark.parametrize("processes", [{4_000_001: 7 * GIB}, {os.getpid(): None}, {os.getpid(): 7 * GIB, 4_000_001: 1}])
def test_what_a_container_does_not_know_is_not_guessed(nvml: Nvml, processes: dict[int, int | None]) -> None:
    nvml.processes = processes
    first, *_ = cards(os.getpid()) or ()
    assert (first.memory_used, first.memory_ours) == (10 * GIB, None)


def test_what_a_card_does_not_say_is_unknown(nvml: Nvml) -> None:
    nvml.unsupported = {"Memory", "Utilization", "Temperature", "Power", "Processes"}
    first, *_ = cards(1) or ()
    assert first.name == "Card 0"
    assert {first.memory_total, first.memory_ours, first.utilization, first.temperature, first.power} == {None}


def test_without_a_driver_or_the_bindings_there_are_no_cards(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.driver = False
    assert cards() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert cards() is None
