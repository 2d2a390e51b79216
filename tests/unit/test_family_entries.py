"""A models.yaml with all families, and the problem that is reported for each wrong field."""

import pytest

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import ConfigError, parse_catalog
from imagegen.loaders import SPECS

MIXED = """\
models:
  schnell:
    name: FLUX.1 schnell
    type: flux
    hf_path: black-forest-labs/FLUX.1-schnell
    guidance_scale: 0
  medium:
    name: Stable Diffusion 3.5 medium
    type: stable_diffusion
    pipeline_class: StableDiffusion3Pipeline
    hf_path: stabilityai/stable-diffusion-3.5-medium
  dev-q4:
    name: FLUX.1 dev, 4 bits
    type: gguf
    hf_path: city96/FLUX.1-dev-gguf
    gguf_file: flux1-dev-Q4_K_S.gguf
    base_model: black-forest-labs/FLUX.1-dev
  kontext:
    name: FLUX.1 Kontext, 4 bits
    type: flux_nunchaku
    pipeline_class: FluxKontextPipeline
    hf_path: nunchaku-tech/nunchaku-flux.1-kontext-dev
    weight_name: svdq-{precision}_r32-flux.1-kontext-dev.safetensors
    base_model: black-forest-labs/FLUX.1-Kontext-dev
  qwen:
    name: Qwen-Image
    type: diffusers
    pipeline_class: QwenImagePipeline
    hf_path: Qwen/Qwen-Image
"""


def read(text: str = MIXED) -> Catalog:
    return parse_catalog(text, SPECS, name="m.yaml")


def abilities(catalog: Catalog, model: str) -> set[str]:
    spec = catalog.models[model]
    able = {
        "text": spec.supports_text2img,
        "image": spec.supports_img2img,
        "mask": spec.supports_inpaint,
        "negative": spec.supports_negative_prompt,
        "lora": spec.supports_lora,
        "strength": spec.supports_strength,
    }
    return {word for word, can in able.items() if can}


def test_all_families_stand_in_one_file() -> None:
    catalog = read()
    assert abilities(catalog, "schnell") == {"text", "image", "mask", "lora", "strength"}
    assert abilities(catalog, "medium") == {"text", "image", "mask", "negative", "lora", "strength"}
    assert abilities(catalog, "dev-q4") == {"text", "image", "mask", "lora", "strength"}
    assert abilities(catalog, "kontext") == {"text", "image", "mask"}
    assert abilities(catalog, "qwen") == {"text", "image", "mask", "negative", "lora", "strength"}


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ("ChromaPipeline", {"text", "image", "negative", "lora", "strength"}),
        ("SanaPipeline", {"text", "negative", "lora"}),
        ("KolorsPipeline", {"text", "image", "negative", "lora", "strength"}),
        ("QwenImageEditPipeline", {"image", "mask", "negative", "lora"}),
    ],
)
def test_the_capabilities_of_an_entry_are_those_of_its_class(pipeline: str, expected: set[str]) -> None:
    assert abilities(read(MIXED.replace("QwenImagePipeline", pipeline)), "qwen") == expected


def test_an_entry_may_do_less_than_its_class() -> None:
    catalog = read(MIXED + "    supports_img2img: false\n    supports_inpaint: false\n")
    assert abilities(catalog, "qwen") == {"text", "negative", "lora"}


#: What to replace, by what, and the beginning of the answer.
WRONG: dict[str, tuple[str, str, str]] = {
    "a type with a typo": ("type: gguf", "type: ggufs", "14:5: unknown type 'ggufs'; did you mean 'gguf'?"),
    "a type with a dash": (
        "type: stable_diffusion",
        "type: stable-diffusion",
        "9:5: unknown type 'stable-diffusion'; did you mean 'stable_diffusion'?",
    ),
    "a class of another family": (
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "10:5: 'pipeline_class': input should be 'StableDiffusion3Pipeline', 'StableDiffusionXLPipeline'",
    ),
    "a class that does not exist": (
        "QwenImagePipeline",
        "QwenImgPipeline",
        "28:5: 'pipeline_class': input should be 'AuraFlowPipeline'",
    ),
    "a list of classes": (
        "pipeline_class: QwenImagePipeline",
        "pipeline_class: [QwenImagePipeline]",
        "28:5: 'pipeline_class': input should be 'AuraFlowPipeline'",
    ),
    "no class where none can be guessed": (
        "    pipeline_class: QwenImagePipeline\n",
        "",
        "25:3: 'pipeline_class' is missing",
    ),
    "a key with a typo": ("gguf_file:", "gguf_fil:", "16:5: unknown key 'gguf_fil'; did you mean 'gguf_file'?"),
    "a key of another family": (
        "guidance_scale: 0\n",
        "guidance_scale: 0\n    gguf_file: a.gguf\n",
        "7:5: unknown key 'gguf_file'",
    ),
    "a file of another format": ("Q4_K_S.gguf", "Q4_K_S.bin", "16:5: 'gguf_file': must end with .gguf"),
    "a quantised file without its name": (
        "    gguf_file: flux1-dev-Q4_K_S.gguf\n",
        "",
        "12:3: no file is named; give gguf_file beside hf_path, or local_path",
    ),
    "a 4-bit file without its name": (
        "    weight_name: svdq-{precision}_r32-flux.1-kontext-dev.safetensors\n",
        "",
        "18:3: no file is named; give weight_name beside hf_path, or local_path",
    ),
    "a placeholder with a typo": (
        "{precision}",
        "{precison}",
        "23:5: 'weight_name': may have braces only as {precision}",
    ),
    "a quantised model without its base": (
        "    base_model: black-forest-labs/FLUX.1-dev\n",
        "",
        "12:3: 'base_model' is missing",
    ),
    "a URL for its base": (
        "base_model: black-forest-labs/FLUX.1-dev\n",
        "base_model: https://hub.example/a/b\n",
        "17:5: 'base_model': must be org/name[@revision] or a folder, not a URL",
    ),
    "a task that the class has not": (
        "QwenImagePipeline\n",
        "SanaPipeline\n    supports_img2img: true\n",
        "29:5: 'supports_img2img': its class, SanaPipeline, cannot do that; leave it out",
    ),
    "LoRAs of a model that takes none": (
        "FLUX.1-Kontext-dev\n",
        "FLUX.1-Kontext-dev\n    loras: [{path: a.safetensors}]\n",
        "18:3: loras: FluxKontextPipeline of type flux_nunchaku does not support LoRAs",
    ),
    "several pictures in a call of a class that pads them": (
        "QwenImagePipeline\n",
        "CogView4Pipeline\n    max_batch: 8\n",
        "25:3: max_batch: CogView4Pipeline makes one picture at a time; leave it out",
    ),
    "several pictures in a call of a class that takes no words alone": (
        "QwenImagePipeline\n",
        "QwenImageEditPipeline\n    max_batch: 8\n",
        "25:3: max_batch: QwenImageEditPipeline makes one picture at a time; leave it out",
    ),
    "several pictures in a call of an engine that nobody tried": (
        "FLUX.1-Kontext-dev\n",
        "FLUX.1-Kontext-dev\n    max_batch: 2\n",
        "18:3: max_batch: not tested with Nunchaku's engine; leave it out",
    ),
    "several pictures in a call, judged as one": (
        "guidance_scale: 0\n",
        "guidance_scale: 0\n    step_cache: 0.1\n    max_batch: 8\n",
        "2:3: max_batch: a step cache does not work for several pictures in a call; leave it out",
    ),
    "more pictures in a call than anything gains by": (
        "hf_path: Qwen/Qwen-Image\n",
        "hf_path: Qwen/Qwen-Image\n    max_batch: 65\n",
        "30:5: 'max_batch': input should be less than or equal to 64",
    ),
    "a LoRA that is too strong": (
        "hf_path: Qwen/Qwen-Image\n",
        "hf_path: Qwen/Qwen-Image\n    loras:\n      - path: a.safetensors\n        scale: 9\n",
        "32:9: 'loras.0.scale': input should be less than or equal to 4",
    ),
    "a LoRA's key with a typo": (
        "hf_path: Qwen/Qwen-Image\n",
        "hf_path: Qwen/Qwen-Image\n    loras:\n      - path: a.safetensors\n        scael: 1\n",
        "32:9: unknown key 'scael'; did you mean 'scale'?",
    ),
    "a precision that no one has": (
        "hf_path: Qwen/Qwen-Image\n",
        "hf_path: Qwen/Qwen-Image\n    torch_dtype: fp16\n",
        "30:5: 'torch_dtype': input should be 'auto', 'float32', 'float16' or 'bfloat16'",
    ),
}


@pytest.mark.parametrize(("old", "new", "answer"), WRONG.values(), ids=WRONG)
def test_each_wrong_field_is_reported_with_its_line_and_advice(old: str, new: str, answer: str) -> None:
    assert old in MIXED
    with pytest.raises(ConfigError) as raised:
        read(MIXED.replace(old, new, 1))
    (line,) = raised.value.lines
    assert line.startswith(f"m.yaml:{answer}")


def test_several_problems_are_reported_at_once_in_their_order() -> None:
    text = MIXED.replace("type: flux\n", "type: fluks\n").replace("gguf_file:", "gguf_fil:") + "    steps: many\n"
    with pytest.raises(ConfigError) as raised:
        read(text)
    assert [line.split(" ")[0] for line in raised.value.lines][:2] == ["m.yaml:4:5:", "m.yaml:16:5:"]
    assert raised.value.lines[-1].startswith("m.yaml:30:5: 'steps':")
