"""The family `diffusers`: every other text-to-image pipeline of the table in pipelines.py."""

from typing import Literal

from imagegen.loaders.diffusers_model import DiffusersSpec
from imagegen.loaders.pipeline_loader import PipelineModelLoader


class OtherSpec(DiffusersSpec):
    """A pipeline in the diffusers folder layout, chosen by `pipeline_class`."""

    type: Literal["diffusers"]
    pipeline_class: Literal[
        "AuraFlowPipeline",
        "BriaPipeline",
        "ChromaPipeline",
        "CogView4Pipeline",
        "ErnieImagePipeline",
        "HunyuanDiTPipeline",
        "KolorsPipeline",
        "Krea2Pipeline",
        "Lumina2Pipeline",
        "OvisImagePipeline",
        "QwenImageEditPipeline",
        "QwenImageEditPlusPipeline",
        "QwenImagePipeline",
        "SanaPipeline",
        "SanaSprintPipeline",
        "ZImagePipeline",
    ]


class OtherModelLoader(PipelineModelLoader[OtherSpec]):
    """Loads every pipeline of the table, safetensors only."""
