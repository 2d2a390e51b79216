"""Previews: at which steps, the estimate of the clean picture, and the size of the JPEG."""

from math import sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from imagegen.core.sizes import Size
from imagegen.loaders import previews
from imagegen.loaders.previews import MAX_BYTES, PreviewMaker, encode, wanted_steps


@given(st.integers(0, 8), st.integers(1, 200))
def test_previews_are_as_many_as_requested_and_never_after_the_last_step(asked: int, steps: int) -> None:
    wanted = wanted_steps(asked, steps)
    assert len(wanted) <= asked
    assert all(2 <= step < steps for step in wanted)
    if steps >= 4 * (asked + 1):
        assert len(wanted) == asked


def test_the_looks_are_spread_evenly() -> None:
    assert sorted(wanted_steps(3, 28)) == [7, 14, 21]
    assert sorted(wanted_steps(1, 4)) == [2]
    assert sorted(wanted_steps(8, 4)) == [2, 3]
    assert not wanted_steps(0, 28)
    assert not wanted_steps(3, 1)


CLEAN = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)


def ideal_prediction(scheduler: Any, sample: torch.Tensor, index: int) -> torch.Tensor:
    """The output of a model that knows the clean picture."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return (sample - CLEAN) / scheduler.sigmas[index]
    if isinstance(scheduler, EulerDiscreteScheduler):
        return (sample - CLEAN) / scheduler.sigmas[index]
    alpha = scheduler.alphas_cumprod[int(scheduler.timesteps[index])]
    return (sample - sqrt(alpha) * CLEAN) / sqrt(1 - alpha)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3),
        EulerDiscreteScheduler(),
        DDIMScheduler(),
        DPMSolverMultistepScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
@pytest.mark.parametrize("skipped", [0, 5])
def test_the_line_through_two_latents_leads_to_the_clean_picture(
    scheduler: Any, skipped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `skipped`: image-to-image begins further down.
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(previews, "can_preview", lambda pipeline: True)
    monkeypatch.setattr(previews, "_decode", lambda pipeline, latents, size: seen.append(latents))
    monkeypatch.setattr(previews, "encode", lambda rgb: b"jpeg")
    scheduler.set_timesteps(20)
    steps, latents = 20 - skipped, torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    if skipped and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    maker = PreviewMaker(1, Size(64, 64))
    for step, timestep in enumerate(scheduler.timesteps[skipped:], 1):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(latents, timestep)
        predicted = ideal_prediction(scheduler, latents, skipped + step - 1)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
        jpeg = maker.after_step(SimpleNamespace(scheduler=scheduler), step, steps, latents)
        assert (jpeg is not None) == (step == round(steps / 2))
    assert torch.allclose(seen[0], CLEAN, atol=0.05)


@pytest.mark.parametrize("shape", [(4, 4, 3), (700, 300, 3), (1, 900, 3)])
def test_a_preview_is_small(shape: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    jpeg = encode(noise)
    assert jpeg is not None
    assert len(jpeg) <= MAX_BYTES
