"""HostCopy: keeps weights in host memory, so that they can be moved from the device and copied back."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

#: Each tensor begins at a multiple of this many bytes of its block: one cache line.
_ALIGNMENT = 64


class HostCopy:
    """Decides where the tensors of some modules are: on the device, or in host memory.

    Weights never change, so they are copied to the host only once.
    """

    def __init__(self, modules: Iterable[Any], device: str, *, pinned: bool = True) -> None:
        """The modules are taken to be on the device.

        `pinned`: make the copies in pinned memory, which a CUDA device reads at bus speed. If false, weights that are
        in host memory are their own copies.
        """
        from torch.utils.weak import WeakTensorKeyDictionary

        self._modules = list(modules)
        self._device = device
        self._pinned = pinned and device.startswith("cuda")
        #: Weak: a request's adapters are freed after it, and a new tensor may get the id of a freed one.
        self._host: Any = WeakTensorKeyDictionary()
        self._on_device = True
        self._kept = False

    @property
    def kept(self) -> bool:
        """Whether copies in host memory were made; they are then kept until the weights are freed."""
        return self._kept

    @property
    def bytes(self) -> int:
        """The bytes of the copies in host memory, each counted once."""
        return sum(map(_bytes, self._host.values()))

    @property
    def missing_bytes(self) -> int:
        """The bytes of the weights that have no copy in host memory yet."""
        return sum(map(_bytes, self._missing()))

    def keep(self) -> None:
        """Make the missing copies in host memory; the weights are not moved."""
        self._kept, missing = True, self._missing()
        if not self._pinned:
            copies: Sequence[Any] = [tensor.data.to("cpu") for tensor in missing]
        else:
            copies = _in_one_block([tensor.data for tensor in missing])
        for tensor, copy in zip(missing, copies, strict=True):
            self._host[tensor] = copy

    def to_device(self) -> int:
        """Copy all weights to the device, or none if that fails. Returns the copied bytes, 0 if already there."""
        import torch

        if self._on_device:
            return 0
        moved, self._on_device = 0, True
        with ExitStack() as undo:
            undo.callback(self.to_host)
            for tensor in tensors_of(self._modules):
                tensor.data = tensor.data.to(self._device, non_blocking=True, copy=True)
                moved += _bytes(tensor)
            if self._device.startswith("cuda"):
                torch.cuda.synchronize(self._device)
            undo.pop_all()
        return moved

    def to_host(self) -> None:
        """Free the weights on the device. Weights without a copy in host memory (added adapters) get one first."""
        if not self._on_device:
            return
        self.keep()
        self._on_device = False
        for tensor in tensors_of(self._modules):
            tensor.data = self._host[tensor]

    def _missing(self) -> list[Any]:
        return [tensor for tensor in tensors_of(self._modules) if tensor not in self._host]


def tensors_of(modules: Iterable[Any]) -> Iterator[Any]:
    """Parameters and buffers; tied tensors once."""
    seen: set[int] = set()
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def tensor_bytes(modules: Iterable[Any]) -> int:
    """The bytes of all weights, each counted once."""
    return sum(map(_bytes, tensors_of(modules)))


def _bytes(tensor: Any) -> int:
    if hasattr(tensor, "__tensor_flatten__"):  # a quantised tensor reports its original width
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    size: int = tensor.numel() * tensor.element_size()
    return size


def _in_one_block(tensors: Sequence[Any]) -> list[Any]:
    """Copies in one block of pinned memory: pinning each tensor alone needs hundreds of driver calls."""
    import torch

    *begins, end = accumulate((-(-_bytes(tensor) // _ALIGNMENT) * _ALIGNMENT for tensor in tensors), initial=0)
    block = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    copies = []
    for tensor, begin in zip(tensors, begins, strict=True):
        layout = torch.empty_like(tensor, device="meta")  # its strides: weights of XL may be channels-last
        piece = block[begin : begin + _bytes(tensor)].view(tensor.dtype)
        copies.append(piece.as_strided(layout.size(), layout.stride()))
        copies[-1].copy_(tensor)
    return copies
