"""The names that other image services give to fields of a request, for the message about an unknown field."""

from collections.abc import Mapping
from types import MappingProxyType

from pydantic import BaseModel

from imagegen.catalog.fields import field_names, unknown_key

#: Our field by its names elsewhere (Automatic1111, ComfyUI, diffusers, Replicate, OpenAI): lower case, no `_` and `-`.
FIELDS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("text", "caption", "positiveprompt"), "prompt"),
        **dict.fromkeys(("uc", "unprompt", "negprompt"), "negative_prompt"),
        **dict.fromkeys(("modelid", "checkpoint", "sdmodelcheckpoint", "modelversion"), "model"),
        **dict.fromkeys(("n", "niter", "numimages", "numimagesperprompt", "numoutputs", "numsamples"), "batch_size"),
        **dict.fromkeys(("w", "imagewidth"), "width"),
        **dict.fromkeys(("h", "imageheight"), "height"),
        **dict.fromkeys(("ratio", "aspect"), "aspect_ratio"),
        **dict.fromkeys(
            ("numinferencesteps", "inferencesteps", "numsteps", "samplingsteps", "samplesteps", "ddimsteps"), "steps"
        ),
        **dict.fromkeys(("cfg", "cfgscale", "guidance", "distilledcfgscale", "promptguidance"), "guidance_scale"),
        **dict.fromkeys(("randomseed", "noiseseed"), "seed"),
        **dict.fromkeys(("denoisingstrength", "denoise", "promptstrength", "imagestrength"), "strength"),
        **dict.fromkeys(("initimage", "initimages", "inputimage", "imageurl", "sourceimage", "imagebase64"), "image"),
        **dict.fromkeys(("maskurl", "maskbase64", "inpaintmask"), "mask"),
        **dict.fromkeys(("outputformat", "imageformat"), "format"),
        **dict.fromkeys(("outputquality", "outputcompression", "jpegquality"), "quality"),
        **dict.fromkeys(("lora", "loraweights", "adapters"), "loras"),
        **dict.fromkeys(("webhook", "callback", "callbackurl"), "webhook_url"),
    }
)

_SAMPLER = "the sampler belongs to the model: `scheduler_config.json` in its folder names it"
_SIZE = "give width and height as two numbers, or aspect_ratio"

#: What to do instead of a field that requests for pictures do not have.
ADVICE: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("sampler", "samplername", "samplerindex", "scheduler", "schedulername"), _SAMPLER),
        **dict.fromkeys(("size", "imagesize", "resolution"), _SIZE),
    }
)


def unknown_field(name: str, body: type[BaseModel] | None) -> str:
    """The message about a field that a body refused; None: the body has no fields to compare it with."""
    if body is None:
        return f"unknown field '{name}'"
    word = name.lower().replace("_", "").replace("-", "")
    ours = {field.replace("_", ""): field for field in body.model_fields}
    meant = ours.get(word) or FIELDS.get(word)
    if meant in body.model_fields and name not in field_names(body):
        return f"unknown field '{name}'; did you mean '{meant}'?"
    if word in ADVICE and "prompt" in body.model_fields:
        return f"unknown field '{name}'; {ADVICE[word]}"
    return unknown_key(name, body, "field")
