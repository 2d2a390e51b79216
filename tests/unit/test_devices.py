"""The cards that a process sees, the device that it uses, and why torch cannot use a card: torch.cuda is patched."""

import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from imagegen.gpu import devices
from imagegen.gpu.devices import Device, choose, only_card, see_only_card

GPU = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
MIG = "MIG-6de6a9a3-9b07-5b0c-a5a2-1e1a1d9ad1f5"
TOO_OLD = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver"


@pytest.mark.parametrize("asked", ["auto", "cpu", "cuda"])
def test_without_a_chosen_card_a_process_sees_the_operators_cards(asked: str) -> None:
    assert only_card(asked, {}) == (asked, {})
    assert only_card(asked, {"CUDA_VISIBLE_DEVICES": "2,3"}) == (asked, {})


@pytest.mark.parametrize(
    ("asked", "visible", "card"),
    [
        ("cuda:1", None, "1"),
        ("cuda:0", None, "0"),
        ("cuda:1", "2,3", "3"),
        ("cuda:0", f" {GPU} , {MIG}", GPU),
        (GPU, None, GPU),
        (MIG, "0", MIG),
    ],
)
def test_a_chosen_card_is_the_only_one_that_a_process_sees(asked: str, visible: str | None, card: str) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert only_card(asked, environment) == ("cuda", {"CUDA_VISIBLE_DEVICES": card})


@pytest.mark.parametrize("visible", ["", "0", "0,"])
def test_a_card_that_is_not_visible_is_reported_as_missing(visible: str) -> None:
    assert only_card("cuda:1", {"CUDA_VISIBLE_DEVICES": visible}) == ("cuda:1", {})


@pytest.mark.parametrize(("initialised", "name", "visible"), [(False, "cuda", "1"), (True, "cuda:1", None)])
def test_a_process_sees_one_card_unless_it_has_initialised_cuda(
    monkeypatch: pytest.MonkeyPatch, initialised: bool, name: str, visible: str | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "to be restored")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    assert see_only_card("cuda:1") == name
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


class Machine:
    """Patches what torch and /dev report about the machine's cards."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def has(
        self, *, build: str | None = "13.0", cards: int = 1, kernel: str = "", init: str = "", permission: bool = True
    ) -> None:
        """`build`: the CUDA version of torch; `kernel`, `init`: the errors of these calls."""
        patch = self._monkeypatch.setattr
        patch(torch.version, "cuda", build)
        patch(torch.version, "hip", None)
        patch(torch.cuda, "is_available", lambda: bool(build and cards and permission) and not init)
        patch(torch.cuda, "device_count", lambda: cards)
        patch(torch.cuda, "init", lambda: _fail(init or "No CUDA GPUs are available"))
        patch(torch.cuda, "get_device_name", lambda device: "GeForce GTX 1080")
        patch(torch.cuda, "get_device_capability", lambda device: (6, 1))
        patch(devices, "run_kernel", lambda device: _fail(kernel) if kernel else None)
        patch(devices, "_cards", lambda: [Path(f"/dev/nvidia{number}") for number in range(cards)])
        patch(os, "access", lambda path, mode: permission)


def _fail(words: str) -> NoReturn:
    raise RuntimeError(words)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize(("asked", "name"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:0", "cuda:0"), ("cpu", "cpu")])
def test_a_card_that_torch_can_use_is_no_problem(machine: Machine, asked: str, name: str) -> None:
    machine.has()
    assert choose(asked) == Device(name)


def test_a_machine_without_any_sign_of_a_card_uses_its_cpu_without_a_warning(machine: Machine) -> None:
    machine.has(build=None, cards=0)
    assert choose("auto") == Device("cpu")


def test_a_configured_cpu_is_no_problem(machine: Machine) -> None:
    machine.has(init=TOO_OLD)
    assert choose("cpu") == Device("cpu")


@pytest.mark.parametrize(
    ("has", "words"),
    [
        ({"init": TOO_OLD}, "The NVIDIA driver on your system is too old (found version 12020)"),
        ({"cards": 0}, "No CUDA GPUs are available"),
        ({"build": None}, "is a build without CUDA although there is /dev/nvidia0"),
        ({"permission": False}, "This process has no permission to open /dev/nvidia0."),
        (
            {"kernel": "CUDA error: no kernel image is available for execution on the device"},
            "has no kernels for GeForce GTX 1080 (compute capability 6.1)",
        ),
    ],
)
@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_card_that_torch_cannot_use_is_reported_with_the_reason(
    machine: Machine, asked: str, has: dict[str, Any], words: str
) -> None:
    machine.has(**has)
    name, problem = choose(asked)
    assert name == "cpu"
    assert problem is not None
    assert words in problem


def test_a_configured_card_that_does_not_exist_is_a_problem(machine: Machine) -> None:
    machine.has(build=None, cards=0)
    name, problem = choose("cuda")
    assert name == "cpu"
    assert problem is not None
    assert problem.endswith("is a build without CUDA; install the CUDA build.")


def test_which_cards_are_visible_is_part_of_the_reason(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has(cards=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert choose("cuda") == Device("cpu", "No CUDA GPUs are available (CUDA_VISIBLE_DEVICES=7)")


@pytest.mark.parametrize(("asked", "words"), [("cuda:2", "no cuda:2: torch sees 2"), (GPU, "already initialised")])
def test_a_card_that_cannot_be_selected_is_a_problem(machine: Machine, asked: str, words: str) -> None:
    machine.has(cards=2)
    name, problem = choose(asked)
    assert name == "cpu"
    assert problem is not None
    assert words in problem


def test_a_card_that_is_full_at_the_start_is_still_used(machine: Machine) -> None:
    machine.has(kernel="CUDA error: out of memory")
    assert choose("auto") == Device("cuda")


def test_the_text_of_torchs_error_is_limited(machine: Machine) -> None:
    machine.has(init="x" * 10_000)
    problem = choose("auto").problem
    assert problem is not None
    assert len(problem) < 400
