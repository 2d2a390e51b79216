"""Offloads whole parts: only the running part is on the device. Before it runs, the previous part is freed there."""

from collections.abc import Collection, Mapping
from typing import Any

from imagegen.catalog.catalog import CpuOffload
from imagegen.loaders.host_copy import HostCopy, tensor_bytes, tensors_of
from imagegen.loaders.host_memory import room

#: The names of the part that runs the denoising steps.
DENOISERS = ("transformer", "unet")


def denoiser_of(pipeline: Any) -> Any:
    """The part of a pipeline that runs the denoising steps."""
    return getattr(pipeline, "transformer", None) or pipeline.unet


def offloaded_parts(names: Collection[str], offload: CpuOffload) -> list[str]:
    """The parts of a pipeline that are offloaded, and so take turns on the device."""
    if offload == "model":
        return list(names)
    return [name for name in names if name not in (*DENOISERS, "vae")] if offload == "encoders" else []


def most_bytes(sizes: Mapping[str, int], offloaded: Collection[str]) -> int:
    """The most bytes that parts of these sizes take on the device at one time."""
    turns = [sizes[name] for name in offloaded]
    return sum(sizes.values()) - sum(turns) + max(turns, default=0)


def layer_bytes(modules: Collection[Any], layers: int) -> int:
    """The bytes of the `layers` largest layers: the most that are on the device when single layers are offloaded."""
    sizes = (
        sum(tensor.numel() * tensor.element_size() for tensor in (*layer.parameters(False), *layer.buffers(False)))
        for module in modules
        for layer in module.modules()
    )
    return sum(sorted(sizes, reverse=True)[:layers])


class Turns:
    """The parts of one pipeline that take turns on the device. Owns which of them is on it."""

    def __init__(self, modules: Mapping[str, Any], offload: CpuOffload, device: str) -> None:
        """`modules`: all parts of the pipeline, in host memory. Parts that are not offloaded are moved to the device.

        A part is pinned if the machine has room for it. A part that is on the device already (Nunchaku's transformer)
        or that cannot be moved in place (torchao's tensors) stays where it is.
        """
        self._device = device
        names = [name for name in offloaded_parts(modules, offload) if _in_host_memory(modules[name])]
        self._copies = {name: _in_host(modules[name], device) for name in names}
        self._running: str | None = None
        self._modules = [modules[name] for name in names]
        for name, module in modules.items():
            if name not in names:
                module.to(device)
        for name, module in modules.items():
            if name in names or name in DENOISERS:
                self._hook(name, module)

    @property
    def names(self) -> Collection[str]:
        """The names of the parts."""
        return self._copies.keys()

    @property
    def host_bytes(self) -> int:
        """The bytes of the parts in host memory."""
        return tensor_bytes(self._modules)

    def begin(self, name: str) -> bool:
        """Bring a part to the device because it runs now. Returns whether it was copied for that."""
        if name == self._running:
            return False
        self.end()
        self._running = name
        return name in self._copies and self._copies[name].to_device() > 0

    def end(self) -> None:
        """Free the part that is on the device."""
        if self._running in self._copies:
            self._copies[self._running].to_host()
        self._running = None

    def _hook(self, name: str, module: Any) -> None:
        from accelerate.hooks import add_hook_to_module

        turn: Any = _Turn(self, name, self._device)  # it has the methods of a ModelHook
        add_hook_to_module(module, turn, append=True)


class _Turn:
    """The hook that accelerate calls before a part's `forward`, and diffusers before a VAE's `encode` and `decode`."""

    no_grad = False

    def __init__(self, turns: Turns, name: str, device: str) -> None:
        import torch

        self._turns = turns
        self._name = name
        #: The device on which diffusers makes latents and embeddings.
        self.execution_device = torch.device("cuda", torch.device(device).index or 0)

    def init_hook(self, module: Any) -> Any:
        return module

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        from accelerate.utils import send_to_device

        if self._turns.begin(self._name):
            return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        return output

    def detach_hook(self, module: Any) -> Any:
        return module


def _in_host_memory(module: Any) -> bool:
    return all(
        tensor.device.type == "cpu" and not hasattr(tensor, "__tensor_flatten__") for tensor in tensors_of([module])
    )


def _in_host(module: Any, device: str) -> HostCopy:
    copy = HostCopy([module], device, pinned=tensor_bytes([module]) <= room())
    copy.to_host()
    return copy
