"""The inference API of Hugging Face, /hf/{model}: text-to-image and image-to-image; the answer is a picture's file."""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Self, TypeVar

from fastapi import APIRouter, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException

from imagegen.api.bounded import check_parts, is_json
from imagegen.api.dependencies import Services, Who, services_of, settings_of
from imagegen.api.native.images.uploads import decode_image
from imagegen.api.native.tasks.generation import Prompt, Seed, Side
from imagegen.api.problems import Problem
from imagegen.api.security import MAKE, KeyedRoute
from imagegen.api.synchronous import headers_of, read_picture, run
from imagegen.core.sizes import Size
from imagegen.core.task import MAX_STEPS, ImageFormat, InputPictures, Output, TaskType
from imagegen.storage.images import media_type
from imagegen.tasks.admission import TaskDraft

PREFIX = "/hf"

#: The limit of its bodies is IMAGEGEN_MAX_UPLOAD_BYTES.
upload_router = APIRouter(prefix=PREFIX, route_class=KeyedRoute, dependencies=[MAKE], include_in_schema=False)

#: The format of a picture, by the first of these types in `Accept`.
FORMATS: Mapping[str, ImageFormat] = MappingProxyType({f"image/{word}": word for word in ImageFormat})

#: What `inputs` begins with if it is a picture in base64: 64 letters without a blank are no prompt.
_PICTURE = re.compile(r"data:image/|[A-Za-z0-9+/]{64}")

ModelT = TypeVar("ModelT", bound=BaseModel)


def render(problem: Problem, headers: Mapping[str, str] | None) -> Response:
    """An error as the clients read it. None is 503: @huggingface/inference repeats such a request at once, for ever."""
    status = problem.status
    if status == 503:
        status = 429 if headers and "Retry-After" in headers else 500
    return JSONResponse({"error": problem.detail, "error_type": problem.code}, status, headers)


class TargetSize(BaseModel):
    """The size of the picture of image-to-image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: Side
    height: Side


class Parameters(BaseModel):
    """The parameters of both tasks, as the clients name them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    negative_prompt: Prompt | None = None
    num_inference_steps: int | None = Field(default=None, strict=True, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(default=None, strict=True, ge=0, le=50, allow_inf_nan=False)
    width: Side | None = None
    height: Side | None = None
    seed: Seed = None
    #: Only for image-to-image, as all that follow.
    prompt: Prompt | None = None
    target_size: TargetSize | None = None
    strength: float | None = Field(default=None, strict=True, ge=0.01, le=1, allow_inf_nan=False)
    #: In base64.
    mask: str | None = Field(default=None, min_length=1)
    scheduler: None = None

    @model_validator(mode="before")
    @classmethod
    def _no_scheduler(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("scheduler") is not None:
            raise ValueError("scheduler: the sampler belongs to the model; leave it out")
        return data

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("give width and height together")
        if self.target_size is not None and self.width is not None:
            raise ValueError("give either target_size, or width and height")
        return self

    @property
    def size(self) -> Size | None:
        """The size that is asked for; None: the model's."""
        if self.target_size is not None:
            return Size(self.target_size.width, self.target_size.height)
        return Size(self.width, self.height) if self.width is not None and self.height is not None else None

    @property
    def for_a_picture(self) -> bool:
        """Whether only image-to-image has such parameters."""
        return any(it is not None for it in (self.prompt, self.target_size, self.strength, self.mask))


class InferenceBody(BaseModel):
    """The body of both tasks. `inputs`: a prompt, or a picture in base64."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: str = Field(min_length=1)
    parameters: Parameters = Parameters()

    @property
    def picture(self) -> str | None:
        """The picture of image-to-image; None: `inputs` is a prompt."""
        return self.inputs if self.parameters.for_a_picture or _PICTURE.match(self.inputs) else None


class TextBody(InferenceBody):
    """The body of text-to-image."""

    inputs: Prompt


@upload_router.post("/{model:path}")
async def infer(
    model: str,
    request: Request,
    who: Who,
    accept: Annotated[str, Header(max_length=1000)] = "",
) -> Response:
    """A JSON body asks for either task. Any other body is the picture of an image-to-image without parameters."""
    services, data = services_of(request), await request.body()
    if is_json(request.headers.get("content-type", "")):
        body = _parsed(InferenceBody, data)
        if body.picture is None:
            body = _parsed(TextBody, data)
    else:
        body = None
    draft = await _draft(body, data, services)
    wanted = next((it for it in map(_bare, accept.split(",")) if it in FORMATS), None)
    draft = draft.evolve(
        model=services.models.catalog.id_of(model),
        output=Output(format=FORMATS[wanted] if wanted else ImageFormat.PNG),
    )
    task = await run(request, who, draft)
    image = task.images[0]
    data = await read_picture(services.images, image)
    return Response(data, media_type=media_type(image.path), headers=headers_of(task))


def _bare(media_range: str) -> str:
    return media_range.partition(";")[0].strip().lower()


def _parsed(kind: type[ModelT], data: bytes) -> ModelT:
    """The body. Raises HTTPException or RequestValidationError."""
    check_parts(data)
    try:
        return kind.model_validate(json.loads(data))
    except RecursionError:
        raise HTTPException(400, "The body is nested too deep.") from None
    except ValidationError as error:  # a ValueError, so before it
        found = [{**details, "loc": ("body", *details["loc"])} for details in error.errors(include_url=False)]
        raise RequestValidationError(found) from None
    except ValueError:
        raise HTTPException(400, "The body is not JSON.") from None


async def _draft(body: InferenceBody | None, data: bytes, services: Services) -> TaskDraft:
    """The draft of a body. None: the bytes are a picture. Raises InvalidImage, ImageTooLarge, TooManyUploads."""
    parameters = body.parameters if body is not None else Parameters()
    size = parameters.size
    draft = TaskDraft(
        type=TaskType.TEXT2IMAGE,
        prompt=body.inputs if body is not None and body.picture is None else parameters.prompt or "",
        negative_prompt=parameters.negative_prompt,
        width=size.width if size else None,
        height=size.height if size else None,
        steps=parameters.num_inference_steps,
        guidance_scale=parameters.guidance_scale,
        seed=parameters.seed,
    )
    if body is not None and body.picture is None:
        return draft
    most, checks = settings_of(services).max_input_pixels, services.checks
    if body is None or body.picture is None:
        image, input_size = data, await checks.check(data, most)
    else:
        image, input_size = await decode_image(body.picture, most, checks)
    mask = None
    if parameters.mask:
        mask, _ = await decode_image(parameters.mask, most, checks, mask=True)
    return draft.evolve(
        type=TaskType.IMAGE2IMAGE,
        strength=0.8 if parameters.strength is None else parameters.strength,
        pictures=InputPictures(init_image=image, mask_image=mask),
        input_size=input_size,
    )
