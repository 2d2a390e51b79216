"""What all diffusers pipelines share: checked folders, steps that report and stop, exact sizes, memory."""

import gc
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imagegen.core.errors import LoraRefused, WeightsMissing, WeightsRefused
from imagegen.core.sizes import Size, render_size
from imagegen.core.task import GenerationRequest, Lora, Pixels
from imagegen.loaders.base import Inputs, LoadedModel, OnStep, Placement

#: What a model_index.json may name; anything else would be imported by diffusers from wherever it lies.
TRUSTED_LIBRARIES = frozenset({"diffusers", "transformers"})

#: The name of a request's adapter while it runs.
_LORA = "request"


def quiet_libraries() -> None:
    """Their progress bars and advice are for notebooks; errors still come through. Before their first import."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (transformers_logging, diffusers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def check_index(folder: Path, pipeline_class: str) -> None:
    """Refuse a folder whose model_index.json names another pipeline or code that is not diffusers' or transformers'."""
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
    except FileNotFoundError:
        raise WeightsMissing("The model's folder has no model_index.json: it is no diffusers pipeline.") from None
    except (ValueError, RecursionError):
        raise WeightsRefused("The model's model_index.json is not JSON.") from None
    if not isinstance(index, dict) or index.get("_class_name") != pipeline_class:
        raise WeightsRefused(f"The model's model_index.json does not describe a {pipeline_class}.")
    for name, part in index.items():
        if not name.startswith("_") and isinstance(part, list) and not _trusted(part):
            raise WeightsRefused(f"The model's model_index.json names code that is not allowed, for '{name}'.")


def _trusted(part: list[Any]) -> bool:
    return part == [None, None] or (len(part) == 2 and isinstance(part[0], str) and part[0] in TRUSTED_LIBRARIES)


def torch_dtype(word: str, device: str) -> Any:
    """The torch dtype for a word of models.yaml; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    import torch

    if word == "auto":
        word = "float32" if device == "cpu" else "bfloat16"
    return getattr(torch, word)


def place(pipeline: Any, placement: Placement) -> None:
    """Move a pipeline to its device and switch on the memory options that it has."""
    settings = placement.settings
    if settings.enable_attention_slicing:
        pipeline.enable_attention_slicing()
    if settings.enable_vae_slicing:
        pipeline.vae.enable_slicing()
    if settings.enable_cpu_offload and placement.device != "cpu":
        pipeline.enable_model_cpu_offload(device=placement.device)
    else:
        pipeline.to(placement.device)
    pipeline.set_progress_bar_config(disable=True)


class DiffusersModel(LoadedModel):
    """One pipeline for text-to-image and a sibling on the same weights for image-to-image."""

    def __init__(
        self, text2image: Any, image2image: Any, options: Callable[[GenerationRequest], Mapping[str, Any]]
    ) -> None:
        """`options` gives the arguments of a call that only this family has."""
        self._text2image = text2image
        self._image2image = image2image
        self._options = options

    @property
    def weight_bytes(self) -> int:
        modules = (part for part in self._text2image.components.values() if hasattr(part, "parameters"))
        return sum(
            tensor.numel() * tensor.element_size()
            for module in modules
            for tensors in (module.parameters(), module.buffers())
            for tensor in tensors
        )

    def generate(self, request: GenerationRequest, inputs: Inputs, on_step: OnStep) -> list[Pixels]:
        size = render_size(request.size)
        image = None if inputs.init_image is None else fit_image(inputs.init_image, size)
        steps = _BatchSteps(request.batch_size, on_step)
        with self._adapted(request.lora, inputs.lora_file):
            return [self._picture(request, seed, size, image, steps) for seed in request.seeds]

    @contextmanager
    def _adapted(self, lora: Lora | None, file: Path | None) -> Iterator[None]:
        """Add a LoRA to the weights, and take it away again whatever happens."""
        if lora is None or file is None:
            yield
            return
        from safetensors import SafetensorError

        pipeline = self._text2image
        try:
            try:
                pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=_LORA, use_safetensors=True)
                pipeline.set_adapters([_LORA], [lora.scale])
            except (ValueError, KeyError, RuntimeError, OSError, SafetensorError) as error:
                raise LoraRefused from error
            yield
        finally:
            pipeline.unload_lora_weights(reset_to_overwritten_params=True)

    def _picture(self, request: GenerationRequest, seed: int, size: Size, image: Any, steps: "_BatchSteps") -> Pixels:
        import torch

        pipeline = self._text2image if image is None else self._image2image
        call = {
            "prompt": request.prompt,
            "width": size.width,
            "height": size.height,
            "num_inference_steps": request.steps,
            # A CPU generator: the same noise on every device.
            "generator": torch.Generator("cpu").manual_seed(seed),
            "output_type": "np",
            "callback_on_step_end": steps.on_step_end,
            **({} if image is None else {"image": image, "strength": request.strength}),
            **self._options(request),
        }
        try:
            picture = pipeline(**call).images[0]
        finally:
            # An interrupted call leaves offload hooks in the middle of their sequence.
            pipeline.maybe_free_model_hooks()
        steps.picture_done()
        return crop(picture, request.size, seed)

    def close(self) -> None:
        self._text2image.remove_all_hooks()
        del self._text2image, self._image2image
        gc.collect()


class _BatchSteps:
    """Counts steps over a batch. How many a picture takes is known once its first one is done."""

    def __init__(self, pictures: int, on_step: OnStep) -> None:
        self._pictures = pictures
        self._on_step = on_step
        self._done = 0
        self._in_picture = 0

    def on_step_end(self, pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        self._in_picture = step + 1
        # `num_timesteps` is the real number: image-to-image runs int(steps * strength) of them.
        self._on_step(self._done + self._in_picture, pipeline.num_timesteps * self._pictures)
        return kwargs

    def picture_done(self) -> None:
        self._done += self._in_picture


def fit_image(encoded: bytes, size: Size) -> Any:
    """Decode a picture, turn it upright and fill `size` with its centre."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG", "WEBP")) as image:
        turn = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_270,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90,
        }.get(_orientation(image))
        upright = image.convert("RGB") if turn is None else image.convert("RGB").transpose(turn)
    return ImageOps.fit(upright, size, Image.Resampling.LANCZOS)


def _orientation(image: Any) -> Any:
    """The EXIF orientation, 1 to 8. Not by exif_transpose, which writes the other tags anew and fails on odd ones."""
    try:
        return image.getexif().get(0x0112)
    except (SyntaxError, ValueError, OSError):  # broken metadata; the picture itself has been checked
        return None


def crop(picture: Any, size: Size, seed: int) -> Pixels:
    """The centre of a rendered picture (float, height x width x 3, 0..1) as 8-bit pixels of the asked size."""
    height, width, _ = picture.shape
    left, top = (width - size.width) // 2, (height - size.height) // 2
    centre = picture[top : top + size.height, left : left + size.width]
    rgb = (centre * 255).round().clip(0, 255).astype("uint8").tobytes()
    return Pixels(width=size.width, height=size.height, seed=seed, rgb=rgb)
