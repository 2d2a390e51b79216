"""Offloading: which of a pipeline's weights are on the device when."""

from collections.abc import Mapping
from typing import Any

from imagegen.catalog.catalog import CpuOffload
from imagegen.loaders.host_copy import tensor_bytes


def device_bytes(modules: Mapping[str, Any], offload: CpuOffload) -> int:
    """The most that these parts of a pipeline have on the device at one time.

    Read in diffusers 0.42: with `model`, image-to-image leaves the VAE beside the part that runs; with `sequential`
    and `group`, one layer is there, and with `group` the next one as well.
    """
    sizes = {name: tensor_bytes([module]) for name, module in modules.items()}
    if offload == "none":
        return tensor_bytes(modules.values())
    if offload == "model":
        vae = sizes.pop("vae", 0)
        return max(sizes.values(), default=0) + vae
    layers = (layer for module in modules.values() for layer in module.modules())
    largest = sorted((_own_bytes(layer) for layer in layers), reverse=True)
    return sum(largest[: 2 if offload == "group" else 1])


def _own_bytes(layer: Any) -> int:
    """Of its tensors, without those of the layers in it."""
    own = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    return sum(tensor.numel() * tensor.element_size() for tensor in own)
