"""The table of pipeline classes: which siblings share their weights, and what a call of them takes.

Written down and not looked up, because the catalog is read by a process that never imports diffusers; a test compares
every line with the signatures of the installed diffusers. What is not here is not loaded.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple


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
    #: What both sides of a rendered picture must be multiples of, in pixels.
    multiple: int = 16


FLUX: Mapping[str, PipelineKind] = MappingProxyType(
    {
        "FluxPipeline": PipelineKind("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", step_cache=True),
        "FluxKontextPipeline": PipelineKind(
            "FluxKontextPipeline", "FluxKontextPipeline", "FluxKontextInpaintPipeline", step_cache=True
        ),
        "FluxFillPipeline": PipelineKind(None, None, "FluxFillPipeline", negative_prompt=False, step_cache=True),
        "Flux2Pipeline": PipelineKind("Flux2Pipeline", "Flux2Pipeline", negative_prompt=False, step_cache=True),
        "Flux2KleinPipeline": PipelineKind(
            "Flux2KleinPipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline", negative_prompt=False
        ),
    }
)

STABLE_DIFFUSION: Mapping[str, PipelineKind] = MappingProxyType(
    {
        "StableDiffusion3Pipeline": PipelineKind(
            "StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"
        ),
        "StableDiffusionXLPipeline": PipelineKind(
            "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"
        ),
        "StableDiffusionPipeline": PipelineKind(
            "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"
        ),
        # Their UNets take the mask as input: they can do nothing else.
        "StableDiffusionXLInpaintPipeline": PipelineKind(None, None, "StableDiffusionXLInpaintPipeline"),
        "StableDiffusionInpaintPipeline": PipelineKind(None, None, "StableDiffusionInpaintPipeline"),
    }
)

OTHERS: Mapping[str, PipelineKind] = MappingProxyType(
    {
        "AuraFlowPipeline": PipelineKind("AuraFlowPipeline"),
        "BriaPipeline": PipelineKind("BriaPipeline", lora=False),
        # Its inpainting sibling asks the transformer for a setting that Chroma has not (diffusers 0.42.1).
        "ChromaPipeline": PipelineKind("ChromaPipeline", "ChromaImg2ImgPipeline"),
        # It pads all prompts of a call to the longest and has the transformer look at the padding, too.
        "CogView4Pipeline": PipelineKind("CogView4Pipeline", batches=False),
        "ErnieImagePipeline": PipelineKind("ErnieImagePipeline"),
        "HunyuanDiTPipeline": PipelineKind("HunyuanDiTPipeline", lora=False),
        "KolorsPipeline": PipelineKind("KolorsPipeline", "KolorsImg2ImgPipeline"),
        "Krea2Pipeline": PipelineKind("Krea2Pipeline"),
        "Lumina2Pipeline": PipelineKind("Lumina2Pipeline"),
        "OvisImagePipeline": PipelineKind("OvisImagePipeline", lora=False),
        "QwenImagePipeline": PipelineKind(
            "QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline", guidance="true_cfg_scale"
        ),
        "QwenImageEditPipeline": PipelineKind(
            None, "QwenImageEditPipeline", "QwenImageEditInpaintPipeline", guidance="true_cfg_scale"
        ),
        "QwenImageEditPlusPipeline": PipelineKind(None, "QwenImageEditPlusPipeline", guidance="true_cfg_scale"),
        "SanaPipeline": PipelineKind("SanaPipeline", multiple=32),
        "SanaSprintPipeline": PipelineKind(
            "SanaSprintPipeline", "SanaSprintImg2ImgPipeline", negative_prompt=False, multiple=32
        ),
        "ZImagePipeline": PipelineKind("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
    }
)

#: Those that read pictures with torchvision, which imagegen does not bring.
WITH_TORCHVISION = frozenset({"Flux2Pipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline"})

PIPELINES: Mapping[str, PipelineKind] = MappingProxyType({**FLUX, **STABLE_DIFFUSION, **OTHERS})
