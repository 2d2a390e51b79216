"""Owns the optimiser: AdamW on one flat float32 copy of all weights, with a running average beside it.

The modules compute in bfloat16 on views of one flat buffer, and their gradients land in another. That makes a step a
handful of vector operations, the exchange between processes one call, and a checkpoint a few plain tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

BETAS = (0.9, 0.98)


def update(
    master: Tensor,
    average: Tensor,
    first: Tensor,
    second: Tensor,
    weights: Tensor,
    grads: Tensor,
    rates: Tensor,
    scales: Tensor,
) -> None:
    """Adam in place; `scales` are the clipping factor, the step size, the correction of `second` and the average's."""
    grads = grads * scales[0]
    first.lerp_(grads, 1 - BETAS[0])
    second.lerp_(grads * grads, 1 - BETAS[1])
    master.sub_(rates * scales[1] * first / ((second / scales[2]).sqrt() + 1e-8))
    average.add_((master - average) * (1 - scales[3]))
    weights.copy_(master)


class FlatAdam:
    """Adam with float32 master weights for parameters that compute in `compute`; `rates` scales single weights.

    `average` is an exponential moving average of the master weights, and what `put_average` leaves in the parameters.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        compute: torch.dtype = torch.bfloat16,
        decay: float = 0.999,
        compiled: bool = False,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.decay = decay
        self._update = torch.compile(update) if compiled else update
        self.steps = 0
        self.master = torch.cat([p.detach().float().reshape(-1) for p in self.parameters])
        self.average = self.master.clone()
        self.first, self.second = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.rates = torch.ones_like(self.master)
        self._weights = self.master.to(compute)
        self._grads = torch.zeros_like(self._weights)
        for parameter, weights, grads in zip(
            self.parameters, self.views(self._weights), self.views(self._grads), strict=True
        ):
            parameter.data = weights
            parameter.grad = grads

    def views(self, flat: Tensor) -> list[Tensor]:
        """The flat vector cut into the shapes of the parameters."""
        parts = flat.split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def step(self, rate: float, clip: float = 1.0) -> float:
        """Take one step with the gathered gradients, clear them, and return their norm."""
        grads = self._gather()
        norm = float(grads.norm())
        self.steps += 1
        keep = min(self.decay, self.steps / (10 + self.steps))
        scales = (min(1.0, clip / (norm + 1e-6)), rate / (1 - BETAS[0] ** self.steps), 1 - BETAS[1] ** self.steps, keep)
        state = (self.master, self.average, self.first, self.second, self._weights)
        self._update(*state, grads, self.rates, torch.tensor(scales, device=grads.device))
        self._grads.zero_()
        return norm

    def _gather(self) -> Tensor:
        grads = self._grads.float()
        if dist.is_initialized():
            dist.all_reduce(grads)
            grads /= dist.get_world_size()
        return grads

    def put_average(self) -> None:
        """Put the averaged weights into the parameters, as float32 of their own; training is over then."""
        for parameter, average in zip(self.parameters, self.views(self.average), strict=True):
            parameter.grad = None
            parameter.data = average.clone()

    def save(self, path: Path, **numbers: float) -> None:
        """Write everything needed to go on; `numbers` come back from `load`."""
        tensors = {"master": self.master, "average": self.average, "first": self.first, "second": self.second}
        counts = {key: torch.tensor(float(value), dtype=torch.float64) for key, value in numbers.items()}
        temporary = path.with_suffix(".part")
        save_file(tensors | counts | {"steps": torch.tensor(self.steps)}, temporary)
        temporary.replace(path)

    def load(self, path: Path) -> Mapping[str, float]:
        state = load_file(path)
        for name in ("master", "average", "first", "second"):
            getattr(self, name).copy_(state.pop(name))
        self.steps = int(state.pop("steps"))
        self._weights.copy_(self.master)
        return {key: float(value) for key, value in state.items()}
