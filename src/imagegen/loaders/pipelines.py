"""The table of pipeline classes: which siblings share their weights, and what a call of them takes.

Written down and not looked up, because the catalog is read by a process that never imports diffusers; a test compares
every line with the signatures of the installed diffusers. What is not here is not loaded.
"""

from collections.abc import Callable, Mapping
from math import isqrt
from types import MappingProxyType
from typing import Any, Literal, NamedTuple


class PipelineKind(NamedTuple):
    """What one set of weights can do. A class name for each task; None: it cannot."""

    text2image: str | None
    image2image: str | None = None
    #: Image-to-image where only the white part of a mask is repainted.
    inpaint: str | None = None
    negative_prompt: bool = True
    lora: bool = True
    #: The argument that `guidance_scale` of a request is passed as.
    guidance: Literal["guidance_scale", "true_cfg_scale"] = "guidance_scale"
    #: Whether the first-block cache of diffusers knows its transformer.
    step_cache: bool = False
    #: Whether one call takes several prompts, and makes of each what a call of its own does but for rounding.
    batches: bool = True
    #: Parts that it can do without, each with those that nothing else needs then.
    optional: tuple[tuple[str, ...], ...] = (("image_encoder",), ("feature_extractor",), ("safety_checker",))
    #: What both sides of a rendered picture must be multiples of, in pixels.
    multiple: int = 16
    #: The largest `max_sequence_length` that its classes accept; None: they do not check.
    max_tokens: int | None = None
    #: Tokens of a prompt that its encoders read unless `max_sequence_length` says otherwise; None: any number.
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
            step_cache=True,
            max_tokens=512,
            tokens=512,
        ),
        "FluxFillPipeline": PipelineKind(
            None, None, "FluxFillPipeline", negative_prompt=False, step_cache=True, max_tokens=512, tokens=512
        ),
        "Flux2Pipeline": PipelineKind(
            "Flux2Pipeline", "Flux2Pipeline", negative_prompt=False, step_cache=True, tokens=512
        ),
        "Flux2KleinPipeline": PipelineKind(
            "Flux2KleinPipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline", negative_prompt=False, tokens=512
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
        # Their UNets take the mask as input: they can do nothing else.
        "StableDiffusionXLInpaintPipeline": PipelineKind(None, None, "StableDiffusionXLInpaintPipeline", tokens=77),
        "StableDiffusionInpaintPipeline": PipelineKind(None, None, "StableDiffusionInpaintPipeline", tokens=77),
    }
)

OTHERS: Mapping[str, PipelineKind] = MappingProxyType(
    {
        "AuraFlowPipeline": PipelineKind("AuraFlowPipeline", tokens=256),
        "BriaPipeline": PipelineKind("BriaPipeline", lora=False, max_tokens=512, tokens=128),
        # Its inpainting sibling asks the transformer for a setting that Chroma has not (diffusers 0.42.1).
        "ChromaPipeline": PipelineKind("ChromaPipeline", "ChromaImg2ImgPipeline", max_tokens=512, tokens=512),
        # It pads all prompts of a call to the longest and has the transformer look at the padding, too.
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
            guidance="true_cfg_scale",
            max_tokens=1024,
        ),
        "QwenImageEditPlusPipeline": PipelineKind(
            None, "QwenImageEditPlusPipeline", guidance="true_cfg_scale", max_tokens=1024
        ),
        "SanaPipeline": PipelineKind("SanaPipeline", multiple=32, tokens=300),
        "SanaSprintPipeline": PipelineKind(
            "SanaSprintPipeline", "SanaSprintImg2ImgPipeline", negative_prompt=False, multiple=32, tokens=300
        ),
        "ZImagePipeline": PipelineKind("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline", tokens=512),
    }
)

#: Those that read pictures with torchvision, which imagegen does not bring.
WITH_TORCHVISION = frozenset({"Flux2Pipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline"})

PIPELINES: Mapping[str, PipelineKind] = MappingProxyType({**FLUX, **STABLE_DIFFUSION, **OTHERS})

#: Where a transformer knows a limited number of positions along a side: how many, from its config.json. The defaults
#: are those of the classes. All others compute the positions of any size.
_POSITIONS: Mapping[str, Callable[[Mapping[str, Any]], int]] = MappingProxyType(
    {
        "StableDiffusion3Pipeline": lambda config: config.get("pos_embed_max_size", 96),
        "AuraFlowPipeline": lambda config: isqrt(config.get("pos_embed_max_size", 1024)),
        "Lumina2Pipeline": lambda config: min(config.get("axes_lens", (300, 512, 512))[1:]),
        "ZImagePipeline": lambda config: min(config.get("axes_lens", (1024, 512, 512))[1:]),
    }
)

#: Pixels of a position: a patch of 2x2 latents of 8x8 pixels each.
_POSITION = 16


def has_longest_side(pipeline_class: str) -> bool:
    """Whether pictures of this class have a longest side, which its transformer's config.json says."""
    return pipeline_class in _POSITIONS


def longest_side(pipeline_class: str, config: Mapping[str, Any]) -> int:
    """Pixels of a side that the transformer with this configuration can draw, at most; 0: any number."""
    return int(_POSITIONS[pipeline_class](config)) * _POSITION if pipeline_class in _POSITIONS else 0
