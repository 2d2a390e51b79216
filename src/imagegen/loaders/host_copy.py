"""HostCopy: weights in host memory, so that they can leave the device and come back by a copy."""

from collections.abc import Iterable, Iterator
from typing import Any


class HostCopy:
    """Owns where the tensors of some modules are. Weights do not change: leaving the device copies nothing back."""

    def __init__(self, modules: Iterable[Any], device: str) -> None:
        """The modules must be in host memory. For CUDA their pages are pinned: copies then run at bus speed."""
        self._modules = list(modules)
        self._device = device
        self._host = {id(tensor): _pinned(tensor.data, device) for tensor in tensors_of(self._modules)}
        self.to_host()

    @property
    def bytes(self) -> int:
        """Of all weights, each counted once."""
        return sum(map(_bytes, self._host.values()))

    def to_device(self) -> int:
        """Copy every weight to the device; the bytes that moved."""
        import torch

        moved = 0
        for tensor in tensors_of(self._modules):
            tensor.data = tensor.data.to(self._device, non_blocking=True, copy=True)
            moved += _bytes(tensor)
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        return moved

    def to_host(self) -> None:
        """Drop the device's copies. What came later (adapters of the entry) is brought back and kept from now on."""
        for tensor in tensors_of(self._modules):
            if id(tensor) not in self._host:
                self._host[id(tensor)] = _pinned(tensor.data.to("cpu"), self._device)
            tensor.data = self._host[id(tensor)]


def tensors_of(modules: Iterable[Any]) -> Iterator[Any]:
    """Parameters and buffers; tied ones once."""
    seen: set[int] = set()
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def tensor_bytes(modules: Iterable[Any]) -> int:
    """Of all weights, each counted once."""
    return sum(map(_bytes, tensors_of(modules)))


def _bytes(tensor: Any) -> int:
    if hasattr(tensor, "__tensor_flatten__"):  # a quantised one calls itself as wide as it was
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    size: int = tensor.numel() * tensor.element_size()
    return size


def _pinned(tensor: Any, device: str) -> Any:
    return tensor.pin_memory() if device.startswith("cuda") and not tensor.is_pinned() else tensor
