"""Previews: estimates a picture from the latents of a running call."""

import io
from math import sqrt
from typing import Any

import numpy as np
from PIL import Image

from imagegen.core.sizes import Size

#: The most pixels of a preview's longer side: the cost of a VAE grows with the area.
LONGEST_SIDE = 256
#: The most bytes of a preview. A quarter of this is enough for a good JPEG of a photograph in this size.
MAX_BYTES = 32_768
QUALITIES = (80, 60, 40, 20)

#: Deterministic schedulers: no step adds noise. ADDING: the latents are the picture plus noise. SCALING: picture and
#: noise are both scaled, so that their sum keeps its variance.
ADDING = ("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler")
SCALING = ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")


def wanted_steps(previews: int, steps: int) -> frozenset[int]:
    """The steps after which a preview is made: evenly spread, without the first and the last step."""
    spread = {max(2, round(steps * k / (previews + 1))) for k in range(1, previews + 1)}
    return frozenset(step for step in spread if step < steps)


class PreviewMaker:
    """Makes previews from the latents of one picture. It changes no latents and draws no random numbers.

    Each step moves the latents towards the model's estimate of the clean picture. Extrapolating the line through the
    last two latents to zero noise gives this estimate: exactly for Euler steps, approximately for the others.
    """

    def __init__(self, previews: int, size: Size) -> None:
        self._previews = previews
        self._size = size
        #: The latents after the step before a wanted one, and their noise level.
        self._before: tuple[Any, float] | None = None

    def after_step(self, pipeline: Any, step: int, steps: int, latents: Any) -> bytes | None:
        """Called after step `step` of `steps`. Returns a JPEG if a preview is due and the pipeline supports it."""
        wanted = wanted_steps(self._previews, steps)
        if not wanted & {step, step + 1} or not can_preview(pipeline):
            return None
        before, now = self._before, _without_scale(pipeline.scheduler, step - steps, latents)
        self._before = now
        if step not in wanted or before is None or before[1] <= now[1]:
            return None
        clean = now[0] + (now[0] - before[0]) * (now[1] / (before[1] - now[1]))
        return encode(_decode(pipeline, clean.to(latents.dtype), self._size))


def can_preview(pipeline: Any) -> bool:
    """Whether the sampler and the VAE are supported, and decoding with this VAE moves no offloaded weights."""
    vae, scheduler = getattr(pipeline, "vae", None), pipeline.scheduler
    if vae is None or type(vae).__name__ != "AutoencoderKL" or type(scheduler).__name__ not in ADDING + SCALING:
        return False
    overflows = vae.config.force_upcast and str(vae.dtype) == "torch.float16"
    offloaded = any(hasattr(module, "_hf_hook") for module in (vae, vae.decoder)) or _group_offloaded(vae)
    return not overflows and not offloaded and not getattr(scheduler.config, "stochastic_sampling", False)


def _group_offloaded(vae: Any) -> bool:
    registry = getattr(vae, "_diffusers_hook", None)
    return registry is not None and registry.get_hook("group_offloading") is not None


def _without_scale(scheduler: Any, left: int, latents: Any) -> tuple[Any, float]:
    """The latents, scaled so that they are linear in the noise, and their noise level.

    `left` is the number of steps before the end, as a negative index: image-to-image starts at a later step, so steps
    are counted from the end.
    """
    import torch

    latents = latents.detach().to(torch.float32)
    if type(scheduler).__name__ in ADDING or getattr(scheduler.config, "use_flow_sigmas", False):
        return latents, float(scheduler.sigmas[left - 1])
    alpha = _alpha(scheduler, left)
    return latents / sqrt(alpha), sqrt((1 - alpha) / alpha)


def _alpha(scheduler: Any, left: int) -> float:
    """The share of the picture in the variance of the latents."""
    if hasattr(scheduler, "sigmas"):
        return 1 / (float(scheduler.sigmas[left - 1]) ** 2 + 1)
    return float(scheduler.alphas_cumprod[int(scheduler.timesteps[left])])


def _decode(pipeline: Any, latents: Any, size: Size) -> Any:
    """Decode latents to rows of RGB bytes. Large latents are made smaller first, because the VAE is slow."""
    import torch

    vae = pipeline.vae
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    if latents.ndim == 3:
        latents = pipeline._unpack_latents(latents, size.height, size.width, scale)
    factor = min(1.0, LONGEST_SIDE / (max(latents.shape[-2:]) * scale))
    if factor < 1:
        height, width = (max(1, round(side * factor)) for side in latents.shape[-2:])
        latents = torch.nn.functional.adaptive_avg_pool2d(latents.to(torch.float32), (height, width))
    shift = getattr(vae.config, "shift_factor", None) or 0
    picture = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor + shift, return_dict=False)[0][0]
    rows = (picture.to(torch.float32) * 127.5 + 127.5).nan_to_num().clamp(0, 255)
    return rows.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def encode(rgb: "np.ndarray[Any, Any]") -> bytes | None:
    """The JPEG of the highest quality that fits in MAX_BYTES; None: none fits."""
    image = Image.fromarray(rgb)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    for quality in QUALITIES:
        image.save(file := io.BytesIO(), "JPEG", quality=quality)
        if len(file.getvalue()) <= MAX_BYTES:
            return file.getvalue()
    return None
