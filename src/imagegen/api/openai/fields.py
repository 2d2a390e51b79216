"""The fields of a request, and the draft of a task that they ask for. Each field has an effect or is refused by name.

None counts as absent, because SDKs send null for fields that have no value.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator, Field, field_validator, model_validator

from imagegen.api.native.shared import RequestBody
from imagegen.api.native.tasks.generation import LoraBody, Prompt, Seed, Side
from imagegen.catalog.catalog import Catalog, ModelSpec
from imagegen.core.sizes import MAX_SIDE
from imagegen.core.task import MAX_STEPS, ImageFormat, Lora, Output, TaskType
from imagegen.tasks.admission import TaskDraft

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]

#: The steps of each quality, as a share of the model's own number of steps.
SHARE_OF_STEPS: Mapping[Quality, float] = MappingProxyType(
    {"low": 0.5, "auto": 1, "standard": 1, "medium": 1, "high": 1.5, "hd": 1.5, "xhigh": 2, "max": 3}
)

#: What answers call each quality.
NAME_OF_QUALITY: Mapping[Quality, str] = MappingProxyType({"auto": "medium", "standard": "medium", "hd": "high"})

#: `strength` of a request with `input_fidelity`.
STRENGTH_OF_FIDELITY: Mapping[str, float] = MappingProxyType({"high": 0.5, "low": 0.8})

#: `strength` of an edit and of a variation that name none.
EDIT_STRENGTH, VARIATION_STRENGTH = 0.8, 0.6

#: The models of OpenAI whose answers have no URLs. Open WebUI reads a URL first, and fetches none from a private
#: address.
_WITHOUT_URL = re.compile("(chat)?gpt-image")

_SIZE = re.compile(r"([0-9]{2,4})x([0-9]{2,4})", re.ASCII)


def invalid(field: str, why: str) -> RequestValidationError:
    """The error of one field that is wrong together with others or with the settings of the service."""
    return RequestValidationError([{"type": "value_error", "loc": ("body", field), "msg": why, "input": None}])


def _refused(why: str) -> BeforeValidator:
    def refuse(_: object) -> None:
        raise ValueError(why)

    return BeforeValidator(refuse)


_Style = Annotated[None, _refused("the models here have no styles; describe the style in the prompt")]
_Vector = Annotated[None, _refused("the models here draw no vector graphics")]
_Animation = Annotated[None, _refused("the models here draw no animations")]
_Planning = Annotated[None, _refused("the models here plan nothing; quality and steps set how long they draw")]


def _safetensors(lora: object) -> object:
    """A LoRA of Together as one of ours."""
    if isinstance(lora, dict) and isinstance(lora.get("path"), str) and not lora["path"].endswith(".safetensors"):
        raise ValueError("path must name a .safetensors file below the LoRA directory; LoRAs are not fetched from URLs")
    return lora


class ImageFields(RequestBody):
    """The fields that all three routes have in common."""

    model: str | None = Field(None, min_length=1, max_length=200, description="A model's id, or an alias.")
    n: int = Field(1, strict=True, ge=1, le=10, description="Number of pictures.")
    size: str = Field("auto", max_length=20, description="`auto` or `WIDTHxHEIGHT`.")
    response_format: Literal["url", "b64_json", "base64"] | None = Field(
        None,
        description="Absent: both `url` and `b64_json`; of a model named `gpt-image...` only `b64_json`. `base64` is "
        "Together's word for `b64_json`.",
    )
    user: str | None = Field(None, max_length=512, description="Written to the log, beside the id of the task.")
    safety_identifier: str | None = Field(None, max_length=512, description="Like `user`, whose name it replaces.")

    # -- imagegen's own --
    negative_prompt: Prompt | None = Field(None, description="What the picture must not show.")
    steps: int | None = Field(None, strict=True, ge=1, le=MAX_STEPS, description="Denoising steps.")
    guidance_scale: float | None = Field(None, strict=True, ge=0, le=50, allow_inf_nan=False)
    seed: Seed = Field(None, description="The same seed gives the same pixels.")
    strength: float | None = Field(
        None, strict=True, ge=0.01, le=1, allow_inf_nan=False, description="How much of the input picture is replaced."
    )
    loras: list[LoraBody] = Field([], max_length=8, description="LoRAs, as in POST /text2image.")

    # -- Together's --
    width: Side | None = Field(None, description="Pixels, together with `height`, instead of `size`.")
    height: Side | None = Field(None, description="Pixels, together with `width`, instead of `size`.")
    image_loras: list[Annotated[LoraBody, BeforeValidator(_safetensors)]] = Field([], max_length=8)
    disable_safety_checker: bool | None = Field(None, strict=True, description="There is no safety checker.")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    @field_validator("size")
    @classmethod
    def _known_size(cls, size: str) -> str:
        found = _SIZE.fullmatch(size)
        if size != "auto" and (found is None or not all(16 <= int(side) <= MAX_SIDE for side in found.groups())):
            raise ValueError(f"must be 'auto' or WIDTHxHEIGHT, each from 16 to {MAX_SIDE}")
        return size

    def check(self) -> None:
        """Raises RequestValidationError for fields that do not go together, by the name of one of them."""
        if (self.width is None) != (self.height is None):
            raise invalid("height" if self.height is None else "width", "give width and height together")
        if self.width is not None and self.size != "auto":
            raise invalid("size", "give size, or width and height")

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """Width and height in pixels; None: the model's own, or those of the input picture."""
        if (found := _SIZE.fullmatch(self.size)) is not None:
            return int(found[1]), int(found[2])
        return self.width, self.height

    @property
    def wants_url(self) -> bool:
        """Whether the answer has the URL of each picture."""
        if self.response_format is not None:
            return self.response_format == "url"
        return _WITHOUT_URL.match(self.model or "") is None

    @property
    def wants_data(self) -> bool:
        """Whether the answer has each picture in base64."""
        return self.response_format != "url"

    @property
    def output(self) -> Output:
        """How the pictures are written."""
        return Output()

    def steps_of(self, spec: ModelSpec) -> int | None:
        """Denoising steps; None: the model's own number."""
        return self.steps

    def all_loras(self) -> tuple[Lora, ...]:
        """The LoRAs of both fields."""
        return tuple(body.lora() for body in (*self.loras, *self.image_loras))

    def draft(self, kind: TaskType, catalog: Catalog, most: int) -> TaskDraft:
        """The draft of a task without pictures. `most`: pictures that a task may have.

        Raises ModelNotFound, RequestValidationError.
        """
        self.check()
        if self.n > most:
            raise invalid("n", f"must be at most {most} here; IMAGEGEN_MAX_BATCH_SIZE sets this limit")
        model = catalog.id_of(self.model)
        width, height = self.sides
        return TaskDraft(
            type=kind,
            model=model,
            prompt="",
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            batch_size=self.n,
            steps=self.steps_of(catalog.model(model)),
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            strength=self.strength,
            loras=self.all_loras(),
            output=self.output,
        )


class PromptedFields(ImageFields):
    """The fields of generations and edits."""

    prompt: Prompt = Field(min_length=1, description="What the picture shows.")
    quality: Quality = Field("auto", description="More or fewer steps than the model's own.")
    background: Literal["auto", "opaque", "transparent"] = Field("auto", description="All pictures are opaque.")
    moderation: Literal["auto", "low"] = Field("auto", description="Nothing is moderated.")
    output_format: ImageFormat = Field(ImageFormat.PNG, description="Also `avif`.")
    output_compression: int | None = Field(
        None, strict=True, ge=0, le=100, description="Quality of jpeg, webp and avif; 100 is the best."
    )
    stream: bool = Field(False, strict=True, description="Answer with server-sent events.")
    partial_images: int = Field(0, strict=True, ge=0, le=3, description="Previews of each picture in the stream.")
    style: _Style = None
    svg: _Vector = None
    frame_count: _Animation = None
    frame_duration_ms: _Animation = None
    complexity: _Planning = None

    @field_validator("background")
    @classmethod
    def _opaque(cls, background: str) -> str:
        if background == "transparent":
            raise ValueError("the models here draw opaque pictures")
        return background

    def check(self) -> None:
        super().check()
        if SHARE_OF_STEPS[self.quality] != 1 and self.steps is not None:
            raise invalid("quality", "give quality, which sets the steps, or steps")
        if self.output_format is ImageFormat.PNG and self.output_compression not in (None, 100):
            raise invalid("output_compression", "png is lossless; choose jpeg, webp or avif, or leave this out")
        if self.partial_images and not self.stream:
            raise invalid("partial_images", "needs stream: true")
        if self.stream and self.response_format == "url":
            raise invalid("response_format", "the events of a stream hold the pictures themselves; leave this out")

    @property
    def output(self) -> Output:
        lossless = self.output_format is ImageFormat.PNG or self.output_compression is None
        return Output(format=self.output_format, quality=None if lossless else max(1, self.output_compression or 0))

    def steps_of(self, spec: ModelSpec) -> int | None:
        share = SHARE_OF_STEPS[self.quality]
        return self.steps if share == 1 else min(MAX_STEPS, max(1, round(spec.steps * share)))

    def draft(self, kind: TaskType, catalog: Catalog, most: int) -> TaskDraft:
        return super().draft(kind, catalog, most).evolve(prompt=self.prompt, previews=self.partial_images)


class GenerationFields(PromptedFields):
    """The body of POST /v1/images/generations."""

    image_url: str | None = Field(None, min_length=1, description="Together's: a `data:` URL of an input picture.")
    reference_images: list[str] = Field([], max_length=1, description="Together's: a list of one such URL.")

    def check(self) -> None:
        super().check()
        if self.image_url and self.reference_images:
            raise invalid("reference_images", "give this or image_url: the models here take one picture")
        if self.strength is not None and self.picture is None:
            raise invalid("strength", "needs a picture")
        if self.picture is not None and self.picture.lstrip()[:5].lower() != "data:":
            name = "image_url" if self.image_url else "reference_images"
            raise invalid(name, "must be a data: URL; the service fetches nothing for its callers")

    @property
    def picture(self) -> str | None:
        """The input picture, as the request names it."""
        return self.image_url or next(iter(self.reference_images), None)

    def draft(self, kind: TaskType, catalog: Catalog, most: int) -> TaskDraft:
        draft = super().draft(kind, catalog, most)
        return draft if self.picture is None else draft.evolve(strength=self.strength or EDIT_STRENGTH)


class EditFields(PromptedFields):
    """The fields of POST /v1/images/edits, without its pictures."""

    input_fidelity: Literal["high", "low"] | None = Field(
        None, description="`high` keeps more of the picture. `strength` says it as a number."
    )

    def check(self) -> None:
        super().check()
        if self.input_fidelity is not None and self.strength is not None:
            raise invalid("input_fidelity", "give this or strength")

    def draft(self, kind: TaskType, catalog: Catalog, most: int) -> TaskDraft:
        usual = STRENGTH_OF_FIDELITY.get(self.input_fidelity or "", EDIT_STRENGTH)
        return super().draft(kind, catalog, most).evolve(strength=self.strength or usual)


class VariationFields(ImageFields):
    """The fields of POST /v1/images/variations, without its picture."""

    prompt: Prompt = Field("", description="imagegen's own: what the picture shows.")

    def draft(self, kind: TaskType, catalog: Catalog, most: int) -> TaskDraft:
        own = {"prompt": self.prompt, "strength": self.strength or VARIATION_STRENGTH}
        return super().draft(kind, catalog, most).evolve(**own)
