"""HostCopy: the weights of a pipeline in host memory, so that it can leave the device and come back by a copy."""

from collections.abc import Iterable, Iterator
from typing import Any


class HostCopy:
    """Owns where the tensors of some modules are. Weights do not change: leaving the device copies nothing back."""

    def __init__(self, modules: Iterable[Any], device: str) -> None:
        """The modules must be in host memory. For CUDA their pages are pinned: copies then run at bus speed."""
        self._modules = list(modules)
        self._device = device
        self._host = {id(tensor): _pinned(tensor.data, device) for tensor in self._tensors()}
        self.to_host()

    @property
    def bytes(self) -> int:
        """Of all weights, each counted once."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._host.values())

    def to_device(self) -> int:
        """Copy every weight to the device; the bytes that moved."""
        import torch

        moved = 0
        for tensor in self._tensors():
            tensor.data = tensor.data.to(self._device, non_blocking=True, copy=True)
            moved += tensor.numel() * tensor.element_size()
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        return moved

    def to_host(self) -> None:
        """Drop the device's copies. What came later (adapters of the entry) is brought back and kept from now on."""
        for tensor in self._tensors():
            if id(tensor) not in self._host:
                self._host[id(tensor)] = _pinned(tensor.data.to("cpu"), self._device)
            tensor.data = self._host[id(tensor)]

    def _tensors(self) -> Iterator[Any]:
        """Parameters and buffers; tied ones once."""
        seen: set[int] = set()
        for module in self._modules:
            for tensor in (*module.parameters(), *module.buffers()):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor


def _pinned(tensor: Any, device: str) -> Any:
    return tensor.pin_memory() if device.startswith("cuda") and not tensor.is_pinned() else tensor
