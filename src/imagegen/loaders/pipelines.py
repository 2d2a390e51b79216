"""The table of pipeline classes: which sibling classes share weights, and which arguments their calls take.

The table is written by hand because the process that reads the catalog never imports diffusers. A test compares every
line with the signatures of the installed diffusers. A class that is not in the table cannot be loaded.
"""

from collections.abc import Callable, Mapping
from math import isqrt
from types import MappingProxyType
from typing import Any, Literal, NamedTuple


class PipelineKind(NamedTuple):
    """The abilities of one set of weights: a class name for each kind of task; None: it cannot do this kind."""

    text2image: str | None
    image2image: str | None = None
    #: Image-to-image where only the white part of a mask is repainted.
    inpaint: str | None = None
    negative_prompt: bool = True
    lora: bool = True
    #: Whether image-to-image takes a `strength`. Classes that edit a picture as the prompt says take none.
    strength: bool = True
    #: The name of the argument for the request's `guidance_scale`.
    guidance: Literal["guidance_scale", "true_cfg_scale"] = "guidance_scale"
    #: Whether the first-block cache of diffusers supports its transformer.
    step_cache: bool = False
    #: Whether one call takes several prompts, and makes the same pictures as separate calls except for rounding.
    batches: bool = True
    #: Groups of optional parts. If the first part of a group is left out, the others are not needed either.
    optional: tuple[tuple[str, ...], ...] = (("image_encoder",), ("feature_extractor",), ("safety_checker",))
    #: Both sides of a rendered picture must be multiples of this many pixels.
    multiple: int = 16
    #: The largest `max_sequence_length` that its classes accept; None: they do not check it.
    max_tokens: int | None = None
    #: The tokens of a prompt that its encoders read, unless `max_sequence_length` is set; None: any number.
    tokens: int | None = None


FLUX: Mapping[str, PipelineKind] = MappingProxyType(
    {
        "FluxPipeline": PipelineKind(
            "FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", step_cache=True, max_tokens=512, tokens=512
        ),
        "FluxKontextPipeline": PipelineKind(
            "FluxKontextPipeline",
            "FluxKontextPipeline",
            "FluxKontextInpaintPipeline",
            strength=False,
            step_cache=True,
            max_tokens=512,
            tokens=512,
        ),
        "FluxFillPipeline": PipelineKind(
            None, None, "FluxFillPipeline", negative_prompt=False, step_cache=True, max_tokens=512, tokens=512
        ),
        "Flux2Pipeline": PipelineKind(
            "Flux2Pipeline", "Flux2Pipeline", negative_prompt=False, strength=False, step_cache=True, tokens=512
        ),
        "Flux2KleinPipeline": PipelineKind(
            "Flux2KleinPipeline",
            "Flux2KleinPipeline",
            "Flux2KleinInpaintPipeline",
            negative_prompt=False,
            strength=False,
            tokens=512,
        ),
    }
)

STABLE_DIFFUSION: Mapping[str, PipelineKind] = MappingProxyType(
    {
        "StableDiffusion3Pipeline": PipelineKind(
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
            optional=(("text_encoder_3", "tokenizer_3"), ("image_encoder",), ("feature_extractor",)),
            max_tokens=512,
            tokens=256,
        ),
        "StableDiffusionXLPipeline": PipelineKind(
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            tokens=77,
        ),
        "StableDiffusionPipeline": PipelineKind(
            "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", tokens=77
        ),
        # Their UNets take the mask as input, so they can only repaint.
        "StableDiffusionXLInpaintPipeline": PipelineKind(None, None, "StableDiffusionXLInpaintPipeline", tokens=77),
        "StableDiffusionInpaintPipeline": PipelineKind(None, None, "StableDiffusionInpaintPipeline", tokens=77),
    }
)

OTHERS: Mapping[str, PipelineKind] = MappingProxyType(
    {
        "AuraFlowPipeline": PipelineKind("AuraFlowPipeline", tokens=256),
        "BriaPipeline": PipelineKind("BriaPipeline", lora=False, max_tokens=512, tokens=128),
        # Its inpainting sibling reads a setting that Chroma's transformer does not have (diffusers 0.42.1).
        "ChromaPipeline": PipelineKind("ChromaPipeline", "ChromaImg2ImgPipeline", max_tokens=512, tokens=512),
        # It pads all prompts of a call to the longest, and the transformer reads the padding, too.
        "CogView4Pipeline": PipelineKind("CogView4Pipeline", batches=False, tokens=1024),
        "ErnieImagePipeline": PipelineKind("ErnieImagePipeline", optional=(("pe", "pe_tokenizer"),)),
        "HunyuanDiTPipeline": PipelineKind("HunyuanDiTPipeline", lora=False),
        "KolorsPipeline": PipelineKind("KolorsPipeline", "KolorsImg2ImgPipeline", max_tokens=256, tokens=256),
        "Krea2Pipeline": PipelineKind("Krea2Pipeline", tokens=512),
        "Lumina2Pipeline": PipelineKind("Lumina2Pipeline", max_tokens=512, tokens=256),
        "OvisImagePipeline": PipelineKind("OvisImagePipeline", lora=False, max_tokens=256, tokens=256),
        "QwenImagePipeline": PipelineKind(
            "QwenImagePipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageInpaintPipeline",
            guidance="true_cfg_scale",
            max_tokens=1024,
            tokens=512,
        ),
        "QwenImageEditPipeline": PipelineKind(
            None,
            "QwenImageEditPipeline",
            "QwenImageEditInpaintPipeline",
            strength=False,
            guidance="true_cfg_scale",
            max_tokens=1024,
        ),
        "QwenImageEditPlusPipeline": PipelineKind(
            None, "QwenImageEditPlusPipeline", strength=False, guidance="true_cfg_scale", max_tokens=1024
        ),
        "SanaPipeline": PipelineKind("SanaPipeline", multiple=32, tokens=300),
        "SanaSprintPipeline": PipelineKind(
            "SanaSprintPipeline", "SanaSprintImg2ImgPipeline", negative_prompt=False, multiple=32, tokens=300
        ),
        "ZImagePipeline": PipelineKind("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline", tokens=512),
    }
)

#: The classes that read pictures with torchvision, which imagegen does not install.
WITH_TORCHVISION = frozenset({"Flux2Pipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline"})

PIPELINES: Mapping[str, PipelineKind] = MappingProxyType({**FLUX, **STABLE_DIFFUSION, **OTHERS})

#: How to read the number of positions along a side from a transformer's config.json, for the classes that limit it. The
#: defaults are those of the classes. All other transformers compute positions for any size.
_POSITIONS: Mapping[str, Callable[[Mapping[str, Any]], int]] = MappingProxyType(
    {
        "StableDiffusion3Pipeline": lambda config: config.get("pos_embed_max_size", 96),
        "AuraFlowPipeline": lambda config: isqrt(config.get("pos_embed_max_size", 1024)),
        "Lumina2Pipeline": lambda config: min(config.get("axes_lens", (300, 512, 512))[1:]),
        "ZImagePipeline": lambda config: min(config.get("axes_lens", (1024, 512, 512))[1:]),
    }
)

#: The pixels of a position along a side: a patch of 2x2 latents of 8x8 pixels each.
_POSITION = 16


def has_longest_side(pipeline_class: str) -> bool:
    """Whether this class limits the longest side of pictures; the limit is in its transformer's config.json."""
    return pipeline_class in _POSITIONS


def longest_side(pipeline_class: str, config: Mapping[str, Any]) -> int:
    """The longest side in pixels that a transformer with this configuration can draw; 0: no limit."""
    return int(_POSITIONS[pipeline_class](config)) * _POSITION if pipeline_class in _POSITIONS else 0
