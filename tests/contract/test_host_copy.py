"""Weights are copied to the host once, and to the device at each return. On a pretended card."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from imagegen.loaders.host_copy import HostCopy
from tests.pretend_cuda import Cuda, pretended

NEEDED = (16 * 16 + 16 + 16 + 4) * 4


class Tied(torch.nn.Module):
    """Two layers, one weight, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(16, 16)
        self.two = torch.nn.Linear(16, 16)
        self.two.weight = self.one.weight
        self.register_buffer("scale", torch.ones(4))


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    with pretended() as card:
        yield card


@pytest.fixture
def module(cuda: Cuda) -> Tied:
    """A module on the card."""
    return Tied().to("cuda")


def weights(module: Any) -> list[Any]:
    return [*module.parameters(), *module.buffers()]


def values(module: Any) -> list[Any]:
    return [tensor.detach().cpu().clone() for tensor in weights(module)]


def places(module: Any) -> list[int]:
    return [tensor.data_ptr() for tensor in weights(module)]


def test_nothing_is_pinned_before_a_copy_is_wanted(cuda: Cuda, module: Tied) -> None:
    copy = HostCopy([module], "cuda")
    assert (copy.bytes, copy.missing_bytes, copy.kept, cuda.pinned.bytes) == (0, NEEDED, False, 0)
    copy.keep()
    assert (copy.bytes, copy.missing_bytes, copy.kept) == (NEEDED, 0, True)
    assert all(tensor.is_cuda for tensor in weights(module))


def test_only_needed_weights_move_and_tied_weights_move_once(cuda: Cuda, module: Tied) -> None:
    copy = HostCopy([module, module.one], "cuda")
    assert copy.to_device() == 0  # it is there
    copy.to_host()
    assert cuda.device.bytes == 0
    assert copy.to_device() == copy.bytes == NEEDED
    assert module.one.weight is module.two.weight


def test_all_weights_lie_in_one_pinned_block_each_at_its_place(cuda: Cuda, module: Tied) -> None:
    HostCopy([module], "cuda").to_host()
    assert len({tensor.untyped_storage().data_ptr() for tensor in weights(module)}) == 1
    assert all(tensor.is_pinned() and tensor.storage_offset() % 16 == 0 for tensor in weights(module))
    assert NEEDED <= cuda.pinned.bytes < NEEDED + 5 * 64


def test_leaving_uses_the_same_host_memory_again_and_changes_no_weight(cuda: Cuda, module: Tied) -> None:
    expected, copy = values(module), HostCopy([module], "cuda")
    copy.to_host()
    at_home = places(module)
    for _ in range(3):
        copy.to_device()
        assert all(tensor.is_cuda for tensor in weights(module))
        assert all(map(torch.equal, values(module), expected))
        copy.to_host()
        assert places(module) == at_home
    assert all(map(torch.equal, values(module), expected))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(6, 4).t(),
        torch.randn(1, 5).expand(3, 5),
        torch.randn(7).to(torch.float8_e4m3fn),
        torch.randint(9, (3, 3)),
        torch.tensor([True, False, True]),
        torch.empty(0, 4),
        torch.tensor(1.5),
    ],
    ids=["channels last", "transposed", "expanded", "8 bits", "numbers", "booleans", "empty", "scalar"],
)
def test_every_kind_of_tensor_keeps_its_values_and_its_layout(cuda: Cuda, tensor: torch.Tensor) -> None:
    module = torch.nn.Module()
    module.register_buffer("before", torch.ones(3))  # so that it does not begin at the block's beginning
    module.register_buffer("it", tensor.to("cuda"))
    layout = torch.empty_like(tensor).stride()
    copy = HostCopy([module], "cuda")
    copy.to_host()
    assert module.get_buffer("it").stride() == layout
    copy.to_device()
    back = module.get_buffer("it")
    assert (back.stride(), back.dtype) == (layout, tensor.dtype)
    assert torch.equal(back.cpu().float(), tensor.float())


def test_weights_added_on_the_device_are_copied_to_the_host(cuda: Cuda, module: Tied) -> None:
    copy = HostCopy([module], "cuda")
    copy.to_host()
    copy.to_device()
    module.extra = torch.nn.Linear(2, 2).to("cuda")
    extra = values(module.extra)
    copy.to_host()
    assert copy.bytes == NEEDED + 6 * 4
    copy.to_device()
    assert all(map(torch.equal, values(module.extra), extra))


def test_removed_weights_free_their_copy(cuda: Cuda, module: Tied) -> None:
    """Each request adds and removes adapters; a new tensor may get the id of a freed one."""
    copy = HostCopy([module], "cuda")
    for i in range(20):
        module.extra = torch.nn.Linear(2, 2).to("cuda")
        torch.nn.init.constant_(module.extra.weight, i)
        copy.to_host()
        assert copy.bytes == NEEDED + 6 * 4
        copy.to_device()
        assert torch.equal(module.extra.weight.detach().cpu(), torch.full((2, 2), float(i)))
        del module.extra


def test_a_way_back_that_fails_ends_where_it_began(cuda: Cuda, module: Tied) -> None:
    expected, copy = values(module), HostCopy([module], "cuda")
    copy.to_host()
    at_home = places(module)
    cuda.fail("out_of_memory", "to", skip=1)
    with pytest.raises(torch.OutOfMemoryError):
        copy.to_device()
    assert (places(module), cuda.device.bytes) == (at_home, 0)
    assert copy.to_device() == NEEDED
    assert all(map(torch.equal, values(module), expected))


def test_a_copy_that_is_dropped_gives_its_memory_back(cuda: Cuda, module: Tied) -> None:
    copy = HostCopy([module], "cuda")
    copy.to_host()
    copy.to_device()
    del copy
    assert cuda.pinned.bytes == 0


def test_unpinned_weights_in_host_memory_are_their_own_copies(cuda: Cuda) -> None:
    module = Tied()
    at_home, copy = places(module), HostCopy([module], "cuda", pinned=False)
    copy.to_host()
    assert places(module) == at_home
    assert copy.to_device() == NEEDED
    copy.to_host()
    assert (places(module), cuda.pinned.bytes, cuda.device.bytes) == (at_home, 0, 0)
