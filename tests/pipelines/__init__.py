"""Tiny diffusers pipelines with random weights, in the folder layout that real ones have.

Each is made from a seed: the same kind has the same bytes on every run. The proportions that a loader could trip over
are the real ones (scale of the autoencoder, channels of the latents, layers that are read from a text encoder); only
the widths are small.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from tests.pipelines import flux, others, stable_diffusion

#: Word -> how to make one, given the folder that it is for.
KINDS: Mapping[str, Callable[[Path], Any]] = MappingProxyType(
    {
        "flux-dev": lambda _: flux.flux("FluxPipeline"),
        "flux-schnell": lambda _: flux.flux("FluxPipeline", guided=False),
        # 256 wide, for the block size of the K quantisations.
        "flux-wide": lambda _: flux.flux("FluxPipeline", wide=True),
        "flux-kontext": lambda _: flux.flux("FluxKontextPipeline"),
        "flux-fill": lambda _: flux.flux("FluxFillPipeline", in_channels=64 + 64 + 256),
        "flux2": lambda _: flux.flux2(),
        "flux2-klein": lambda _: flux.flux2_klein("Flux2KleinPipeline", distilled=True),
        "flux2-klein-base": lambda _: flux.flux2_klein("Flux2KleinPipeline", distilled=False),
        "sd3": lambda _: stable_diffusion.sd3(dual=False),
        "sd3.5": lambda _: stable_diffusion.sd3(dual=True),
        "sdxl": lambda _: stable_diffusion.sdxl("StableDiffusionXLPipeline"),
        "sdxl-inpaint": lambda _: stable_diffusion.sdxl("StableDiffusionXLInpaintPipeline", in_channels=9),
        "sd15": lambda _: stable_diffusion.sd15("StableDiffusionPipeline"),
        "sd15-checked": lambda _: stable_diffusion.sd15("StableDiffusionPipeline", checked=True),
        "sd15-inpaint": lambda _: stable_diffusion.sd15("StableDiffusionInpaintPipeline", in_channels=9),
        "qwen-image": lambda _: others.qwen_image(),
        "z-image": lambda _: others.z_image(),
        "sana": lambda _: others.sana(),
        "chroma": lambda _: others.chroma(),
        "lumina2": lambda _: others.lumina2(),
        "cogview4": lambda _: others.cogview4(),
        "kolors": others.kolors,
        "aura-flow": lambda _: others.aura_flow(),
        "bria": lambda _: others.bria(),
        "ernie": lambda _: others.ernie(),
        "ernie-enhanced": lambda _: others.ernie(enhanced=True),
        "hunyuan-dit": lambda _: others.hunyuan_dit(),
        "krea2": lambda _: others.krea2(),
        "ovis": lambda _: others.ovis(),
        "sana-sprint": lambda _: others.sana_sprint(),
    }
)


def build(kind: str, folder: Path) -> Path:
    """Write the pipeline of this kind to `folder` and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Chroma's and Kolors' own code calls what diffusers and torch call deprecated.
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        pipeline = KINDS[kind](folder)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
