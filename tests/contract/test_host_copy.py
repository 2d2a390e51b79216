"""Leaving the device copies nothing, coming back copies each weight once. Rehearsed with host memory as the device."""

from typing import Any

import torch

from imagegen.loaders.host_copy import HostCopy


class Tied(torch.nn.Module):
    """Two layers, one weight, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(16, 16)
        self.two = torch.nn.Linear(16, 16)
        self.two.weight = self.one.weight
        self.register_buffer("scale", torch.ones(4))


def places(module: Any) -> list[int]:
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


def test_what_moves_is_what_is_needed_and_tied_weights_move_once() -> None:
    module = Tied()
    needed = (16 * 16 + 16 + 16 + 4) * 4
    copy = HostCopy([module, module.one], "cpu")
    assert copy.bytes == needed
    assert copy.to_device() == needed
    assert module.one.weight is module.two.weight


def test_leaving_goes_back_to_the_very_same_memory_and_changes_no_weight() -> None:
    module = Tied()
    at_home, weights = places(module), [tensor.clone() for tensor in module.parameters()]
    copy = HostCopy([module], "cpu")
    for _ in range(3):
        assert places(module) == at_home
        copy.to_device()
        assert not set(places(module)) & set(at_home)
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), weights, strict=True))
        copy.to_host()
    assert places(module) == at_home


def test_what_was_added_on_the_device_comes_along() -> None:
    module = Tied()
    copy = HostCopy([module], "cpu")
    copy.to_device()
    module.extra = torch.nn.Linear(2, 2)
    extra = module.extra.weight.detach().clone()
    before = copy.bytes
    copy.to_host()
    assert copy.bytes == before + 6 * 4
    copy.to_device()
    assert torch.equal(module.extra.weight, extra)
