"""The API of Automatic1111's web UI, /sdapi/v1, for clients that know it. docs/clients.md has each field and option."""

import asyncio
import base64
import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Self

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException

import imagegen
from imagegen.api.bounded import BoundedRoute
from imagegen.api.dependencies import EffectiveSettings, Models, Service, Services, Who, services_of, settings_of
from imagegen.api.native.images.uploads import decode_image
from imagegen.api.native.tasks.generation import Prompt, Seed
from imagegen.api.problems import Problem, render_errors
from imagegen.api.security import MAKE, SEE
from imagegen.api.synchronous import headers_of, read_picture, run
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.sources import listed_loras
from imagegen.core.errors import Forbidden, InvalidRequest, LoraNotFound, ModelNotFound, TaskFinished, TaskNotFound
from imagegen.core.events import Event, TaskEvent, TaskPreview, TaskQueued, TaskStep
from imagegen.core.owner import Owner
from imagegen.core.provenance import Provenance
from imagegen.core.receipt import Receipt
from imagegen.core.task import MAX_STEPS, GenerationRequest, GenerationTask, InputPictures, Lora, TaskType
from imagegen.core.wording import nearest
from imagegen.storage.encoding import read_receipt, read_text
from imagegen.tasks.admission import TaskDraft

PREFIX = "/sdapi/v1"

router = APIRouter(prefix=PREFIX, route_class=BoundedRoute, dependencies=[SEE], include_in_schema=False)

#: Routes whose bodies contain pictures; their limit is IMAGEGEN_MAX_UPLOAD_BYTES.
upload_router = APIRouter(prefix=PREFIX, route_class=BoundedRoute, dependencies=[SEE], include_in_schema=False)

#: Callers whose choices are remembered; the choice of the one that has been away for longest is forgotten.
REMEMBERED = 1000

#: Previews of a picture with the option `live_previews_enable`.
PREVIEWS = 4

#: The samplers and schedulers of the web UI, which clients name without asking for a list.
SAMPLERS = frozenset(
    {
        *("Euler", "Euler a", "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM"),
        *("DDIM CFG++", "PLMS", "UniPC", "LCM", "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun"),
        *("DPM++ 2S a", "DPM++ 3M SDE"),
    }
)
SCHEDULERS = frozenset(
    {
        *("automatic", "uniform", "karras", "exponential", "polyexponential", "sgm uniform", "sgm_uniform"),
        *("kl optimal", "kl_optimal", "align your steps", "align_your_steps", "simple", "normal", "ddim", "beta"),
    }
)

#: What the web UI calls the samplers of diffusers.
SAMPLER_OF: Mapping[str, str] = MappingProxyType(
    {
        "FlowMatchEulerDiscreteScheduler": "Euler",
        "EulerDiscreteScheduler": "Euler",
        "EulerAncestralDiscreteScheduler": "Euler a",
        "FlowMatchHeunDiscreteScheduler": "Heun",
        "HeunDiscreteScheduler": "Heun",
        "LMSDiscreteScheduler": "LMS",
        "KDPM2DiscreteScheduler": "DPM2",
        "KDPM2AncestralDiscreteScheduler": "DPM2 a",
        "DDIMScheduler": "DDIM",
        "PNDMScheduler": "PLMS",
        "UniPCMultistepScheduler": "UniPC",
        "FlowMatchLCMScheduler": "LCM",
        "LCMScheduler": "LCM",
        "DPMSolverMultistepScheduler": "DPM++ 2M",
    }
)

#: Fields for what is switched off (by the fields below), for files of the web UI's own, or of a client's own.
NO_EFFECT = frozenset(
    {
        *("firstphase_width", "firstphase_height", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x"),
        *("hr_resize_y", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt"),
        *("hr_additional_modules", "hr_cfg", "hr_distilled_cfg", "subseed", "s_tmax", "refiner_switch_at"),
        *("script_args", "image_cfg_scale", "save_images", "do_not_save_samples", "do_not_save_grid", "mask_round"),
        *("mask_blur", "mask_blur_x", "mask_blur_y", "inpainting_fill", "inpaint_full_res"),
        *("inpaint_full_res_padding", "url", "auth"),  # SillyTavern sends the last two
    }
)

#: Fields for what this service does not have, and the values that leave it switched off.
OFF: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("enable_hr", "restore_faces", "tiling", "disable_extra_networks"), (False,)),
        **dict.fromkeys(("include_init_images", "inpainting_mask_invert"), (0,)),
        **dict.fromkeys(("subseed_strength", "s_churn", "s_tmin", "s_min_uncond"), (0,)),
        **dict.fromkeys(("seed_resize_from_w", "seed_resize_from_h"), (0, -1)),
        **dict.fromkeys(("script_name", "refiner_checkpoint"), ("", "None")),
        **dict.fromkeys(("firstpass_image", "latent_mask", "infotext"), ("",)),
        **dict.fromkeys(("alwayson_scripts", "comments"), ({},)),
        **dict.fromkeys(("s_noise", "initial_noise_multiplier", "clip_skip"), (1,)),
        "styles": ([],),
        "eta": (0, 1),
        "resize_mode": (0, 1),
    }
)

#: Options beside those that can be changed: what they are, and what else a client may set without effect.
OPTIONS: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "sd_checkpoint_hash": ("", None),
        "sd_vae": ("Automatic", "None", "", None),
        "CLIP_stop_at_last_layers": (1,),
        "samples_format": ("png",),
    }
)

_LORA = re.compile(r"<lora:([^:<>]{1,200}):?([^:<>]{0,20})>")

_MASK_NOTE = "The mask is used as it is: mask_blur, inpainting_fill and inpaint_full_res have no effect here."


def install(app: FastAPI) -> None:
    """Prepare the application for the routes of this file."""
    app.state.sdapi = Callers()
    render_errors(app, PREFIX, _render)


def _render(problem: Problem, headers: Mapping[str, str] | None) -> Response:
    body = {"error": problem.code, "detail": problem.detail, "body": "", "errors": problem.detail}
    return JSONResponse(body, problem.status, headers)


# -- what the web UI keeps for everybody, and this API for each caller -------------------------------------------------


class Choice(NamedTuple):
    """The options that a caller has set."""

    model: str | None = None
    previews: bool = False


class Call:
    """A request that waits for its pictures."""

    def __init__(self, asked_id: str | None) -> None:
        #: The caller's own id of it: `force_task_id`.
        self.asked_id = asked_id
        #: Empty until the task is accepted.
        self.task_id = ""
        self.step = self.steps = 0
        #: JPEG in base64.
        self.preview: str | None = None

    def see(self, event: Event) -> None:
        """Follow the task."""
        if isinstance(event, TaskEvent):
            self.task_id = event.task_id
        if isinstance(event, TaskQueued):
            self.step, self.preview = 0, None
        elif isinstance(event, TaskStep):
            self.step, self.steps = event.step, event.total
        elif isinstance(event, TaskPreview):
            self.preview = event.image


class Callers:
    """The choices and the open calls of each caller. One object for each application; event loop only."""

    def __init__(self) -> None:
        self._choices: OrderedDict[str, Choice] = OrderedDict()
        self._calls: dict[str, list[Call]] = {}

    def __repr__(self) -> str:
        return f"<Callers [{len(self._choices)}], Open: {sum(map(len, self._calls.values()))}>"

    def choice(self, caller: str) -> Choice:
        return self._choices.get(caller, Choice())

    def choose(self, caller: str, choice: Choice) -> None:
        self._choices[caller] = choice
        self._choices.move_to_end(caller)
        if len(self._choices) > REMEMBERED:
            self._choices.popitem(last=False)

    @contextmanager
    def call(self, caller: str, asked_id: str | None) -> Iterator[Call]:
        """A call that is open until the context ends."""
        call = Call(asked_id)
        self._calls.setdefault(caller, []).append(call)
        try:
            yield call
        finally:
            self._calls[caller].remove(call)
            if not self._calls[caller]:
                del self._calls[caller]

    def calls(self, caller: str, wanted: str | None = None) -> Sequence[Call]:
        """The open calls: the one that is drawn first, then the others in order of arrival.

        `wanted`: only the one with this id, the caller's own or the task's. Raises TaskNotFound if there is none.
        """
        found = sorted(self._calls.get(caller, ()), key=lambda call: not call.step)
        if wanted is None:
            return found
        if not (chosen := [call for call in found if wanted in (call.asked_id, call.task_id)]):
            raise TaskNotFound
        return chosen


def _callers(request: Request) -> Callers:
    callers = request.app.state.sdapi
    assert isinstance(callers, Callers)
    return callers


def _caller(request: Request, who: Owner) -> str:
    """Whose choices and calls these are: those of a key, or without keys of an address."""
    return f"key {who.name}" if who.name else f"address {request.client.host if request.client else ''}"


def _allowed(who: Owner, catalog: Catalog) -> list[str]:
    """The models that a caller may use."""
    return [model for model in catalog.models if not who.models or model in who.models]


def _current(choice: Choice, who: Owner, catalog: Catalog) -> str:
    """The model of a request that names none."""
    allowed = _allowed(who, catalog)
    if choice.model is not None and choice.model in catalog.models:
        return choice.model
    return allowed[0] if allowed and catalog.default_model not in allowed else catalog.default_model


def _changed(choice: Choice, options: Mapping[str, Any], who: Owner, catalog: Catalog) -> Choice:
    """The choice with these options set. Raises InvalidRequest, ModelNotFound, Forbidden."""
    for name, value in options.items():
        if name == "sd_model_checkpoint":
            choice = choice._replace(model=_model(value, who, catalog)) if value else choice
        elif name == "live_previews_enable" and isinstance(value, bool):
            choice = choice._replace(previews=value)
        elif value not in OPTIONS.get(name, ()) and not (name == "forge_additional_modules" and not value):
            raise InvalidRequest(f"The option {name[:100]!a} cannot be set to this value here; see docs/clients.md.")
    return choice


def _model(name: object, who: Owner, catalog: Catalog) -> str:
    if not isinstance(name, str):
        raise ModelNotFound
    if (model := catalog.id_of(name)) not in _allowed(who, catalog):
        raise Forbidden("The API key may not use this model.")
    return model


# -- pictures ----------------------------------------------------------------------------------------------------------


class SdBody(BaseModel):
    """A body that is read as leniently as the web UI does, but for fields that would change nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_off(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name in data.keys() & OFF.keys():
            if data[name] is not None and data[name] not in OFF[name]:
                raise ValueError(f"{name}: this service does not have it; leave it out, or send {OFF[name][0]!r}")
        left_out = NO_EFFECT | OFF.keys()
        return {name: value for name, value in data.items() if value is not None and name not in left_out}


class Txt2ImgBody(SdBody):
    """The fields that txt2img and img2img have in common."""

    prompt: Prompt = ""
    negative_prompt: Prompt = ""
    seed: Seed = None
    batch_size: int = Field(1, ge=1, le=64)
    n_iter: int = Field(1, ge=1, le=64)
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    cfg_scale: float | None = Field(None, ge=0, le=50, allow_inf_nan=False)
    width: int | None = Field(None, ge=16, le=8192)
    height: int | None = Field(None, ge=16, le=8192)
    #: Only with `enable_hr` in txt2img.
    denoising_strength: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    sampler_name: str = Field("", max_length=100)
    sampler_index: str = Field("", max_length=100)
    scheduler: str = Field("", max_length=100)
    override_settings: dict[str, Any] = Field({}, max_length=100)
    override_settings_restore_afterwards: bool = True
    send_images: bool = True
    force_task_id: str | None = Field(None, min_length=1, max_length=128)

    @model_validator(mode="after")
    def _known_sampler(self) -> Self:
        sampler = self.sampler.removesuffix(" Karras").removesuffix(" Exponential")
        if sampler and sampler not in SAMPLERS | {"Automatic"}:
            raise ValueError(f"sampler_name: there is no such sampler{nearest(sampler, SAMPLERS)}")
        if self.scheduler and self.scheduler.lower() not in SCHEDULERS:
            raise ValueError(f"scheduler: there is no such scheduler{nearest(self.scheduler.lower(), SCHEDULERS)}")
        return self

    @property
    def sampler(self) -> str:
        """The sampler that is asked for; empty: any."""
        return self.sampler_name or self.sampler_index


class Img2ImgBody(Txt2ImgBody):
    """The body of img2img."""

    init_images: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, max_length=1)
    denoising_strength: float | None = Field(0.75, ge=0.01, le=1, allow_inf_nan=False)
    mask: str = ""


@router.post("/txt2img", dependencies=[MAKE])
async def txt2img(body: Txt2ImgBody, request: Request, who: Who) -> Response:
    """Make pictures from a prompt."""
    return await _answer(body, request, who, TaskType.TEXT2IMAGE, InputPictures())


@upload_router.post("/img2img", dependencies=[MAKE])
async def img2img(body: Img2ImgBody, request: Request, who: Who) -> Response:
    """Make pictures from a prompt and a picture; with a mask, repaint its white part."""
    services = services_of(request)
    most = settings_of(services).max_input_pixels
    image, _ = await decode_image(body.init_images[0], most, services.checks)
    mask = None
    if body.mask:
        mask, _ = await decode_image(body.mask, most, services.checks, mask=True)
    pictures = InputPictures(init_image=image, mask_image=mask)
    return await _answer(body, request, who, TaskType.IMAGE2IMAGE, pictures)


async def _answer(body: Txt2ImgBody, request: Request, who: Owner, kind: TaskType, pictures: InputPictures) -> Response:
    services, callers, caller = services_of(request), _callers(request), _caller(request, who)
    choice = _changed(callers.choice(caller), body.override_settings, who, services.models.catalog)
    if body.override_settings and not body.override_settings_restore_afterwards:
        callers.choose(caller, choice)
    draft, notes = await _draft(body, services, who, choice)
    draft = draft.evolve(type=kind, pictures=pictures)
    if isinstance(body, Img2ImgBody):
        draft = draft.evolve(strength=body.denoising_strength)
        notes += [_MASK_NOTE] if body.mask else []
    with callers.call(caller, body.force_task_id) as call:
        task = await run(request, who, draft, call.see)
    notes += [*_sampler_notes(body, task), *task.warnings]
    files = [await read_picture(services.images, image) for image in task.images] if body.send_images else []
    answer = {
        "images": await asyncio.to_thread(lambda: [base64.b64encode(file).decode() for file in files]),
        "parameters": body.model_dump(mode="json", exclude={"init_images", "mask"}),
        "info": json.dumps(_info(task, notes), ensure_ascii=False),
    }
    return JSONResponse(answer, headers=headers_of(task))


async def _draft(body: Txt2ImgBody, services: Services, who: Owner, choice: Choice) -> tuple[TaskDraft, list[str]]:
    """The draft of a text-to-image task, and what it leaves out of the body. Raises LoraNotFound, InvalidRequest."""
    catalog = services.models.catalog
    model, notes = _current(choice, who, catalog), list[str]()
    prompt, loras = await _loras_of(body.prompt, services)
    negative = body.negative_prompt or None
    if negative and model in catalog.models and not catalog.models[model].supports_negative_prompt:
        negative = None
        notes.append(f"negative_prompt: the model '{model}' takes none, so it was left out.")
    draft = TaskDraft(
        type=TaskType.TEXT2IMAGE,
        model=model,
        prompt=prompt,
        negative_prompt=negative,
        width=body.width,
        height=body.height,
        steps=body.steps,
        guidance_scale=body.cfg_scale,
        seed=body.seed,
        batch_size=body.batch_size * body.n_iter,
        loras=loras,
        previews=PREVIEWS if choice.previews else 0,
    )
    return draft, notes


async def _loras_of(prompt: str, services: Services) -> tuple[str, tuple[Lora, ...]]:
    """The prompt without its `<lora:name:scale>`, and these LoRAs. Raises LoraNotFound, InvalidRequest."""
    found = _LORA.findall(prompt)
    if not found:
        return prompt, ()
    if len(found) > 8:
        raise InvalidRequest("prompt: at most 8 LoRAs.")
    files = await asyncio.to_thread(listed_loras, services.settings.loras_path)
    known = {PurePosixPath(file).stem: file for file in files} | {file.rpartition(".")[0]: file for file in files}
    loras = []
    for name, scale in found:
        if name not in known:
            raise LoraNotFound(f"There is no LoRA of this name{nearest(name, known)}")
        try:
            strength = float(scale or 1)
        except ValueError:
            strength = float("nan")
        if not -4 <= strength <= 4:
            raise InvalidRequest("prompt: the scale of a LoRA must be a number from -4 to 4.")
        loras.append(Lora(path=known[name], scale=strength))
    return _LORA.sub("", prompt).strip(), tuple(loras)


def _sampler_notes(body: Txt2ImgBody, task: GenerationTask) -> list[str]:
    """What the pictures ignore of the sampler that was asked for: it belongs to the model."""
    ours = _sampler_name(task.provenance)
    wanted = [body.sampler] if body.sampler not in ("", "Automatic", ours) else []
    if body.scheduler.lower() not in ("", "automatic"):
        wanted.append(body.scheduler)
    if not wanted:
        return []
    return [f"The sampler belongs to the model: '{task.model}' draws with {ours}, not with {', '.join(wanted)}."]


def _sampler_name(made_by: Provenance | None) -> str:
    word = (made_by.sampler if made_by is not None else None) or "Automatic"
    return SAMPLER_OF.get(word, word)


def _info(task: GenerationTask, notes: Sequence[str]) -> dict[str, Any]:
    """What clients read from `info`, as far as there is something to tell. `warnings` is this service's own."""
    request, made = task.request, task.images
    prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or ""}
    started = task.started_at or task.created_at
    return {
        **prompts,
        **{f"all_{name}s": [text] * len(made) for name, text in prompts.items()},
        "seed": request.seed,
        "all_seeds": [image.seed for image in made],
        "subseed": request.seed,
        "all_subseeds": [image.seed for image in made],
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": _sampler_name(task.provenance),
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": request.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": task.model,
        "sd_model_hash": "",
        "denoising_strength": request.strength,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [infotext(task.model, request, task.provenance, image.seed) for image in made],
        "styles": [],
        "job_timestamp": f"{started:%Y%m%d%H%M%S}",
        "clip_skip": 1,
        "is_using_inpainting_conditioning": task.mask_image_sha256 is not None,
        "version": f"imagegen {imagegen.__version__}",
        "task_id": task.id,
        "warnings": list(notes),
    }


def infotext(model: str, request: GenerationRequest, made_by: Provenance | None, seed: int) -> str:
    """The generation parameters of one picture in the web UI's form, as other programs parse them."""
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in _parameters(model, request, made_by, seed).items()))
    return "\n".join(lines)


def _parameters(
    model: str, request: GenerationRequest, made_by: Provenance | None, seed: int
) -> dict[str, str | int | float]:
    strength = {} if request.strength is None else {"Denoising strength": request.strength}
    return {
        "Steps": request.steps,
        "Sampler": _sampler_name(made_by),
        "Schedule type": "Automatic",
        "CFG scale": request.guidance_scale,
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model": model,
        **strength,
        "Version": f"imagegen {imagegen.__version__}",
    }


# -- the state of a call -----------------------------------------------------------------------------------------------


@router.get("/progress")
async def progress(
    request: Request,
    who: Who,
    id_task: Annotated[str | None, Query(max_length=128)] = None,
    skip_current_image: bool = False,
) -> dict[str, Any]:
    """The progress of the caller's call that is drawn, or of the one with the id. Others are counted only."""
    calls = _callers(request).calls(_caller(request, who), id_task)
    call = calls[0] if calls else Call(None)
    share = call.step / call.steps if call.steps else 0.0
    return {
        "progress": share,
        "eta_relative": await _seconds_left(call, services_of(request), who),
        "state": {
            **dict.fromkeys(("skipped", "interrupted", "stopping_generation"), False),
            "job": call.task_id,
            "job_count": len(calls),
            "job_no": 0,
            "job_timestamp": f"{datetime.now(UTC):%Y%m%d%H%M%S}",
            "sampling_step": call.step,
            "sampling_steps": call.steps,
        },
        "current_image": None if skip_current_image else call.preview,
        "textinfo": None,
    }


async def _seconds_left(call: Call, services: Services, who: Owner) -> float:
    if not call.task_id:
        return 0.0
    outlook = services.tasks.outlook(await services.service.task(who, call.task_id))
    if outlook is None or outlook.finish_at is None:
        return 0.0
    return max(0.0, (outlook.finish_at - datetime.now(UTC)).total_seconds())


@router.post("/interrupt", dependencies=[MAKE])
async def interrupt(
    request: Request, service: Service, who: Who, id_task: Annotated[str | None, Query(max_length=128)] = None
) -> dict[str, Any]:
    """Cancel the caller's call that is drawn, or the one with the id."""
    for call in _callers(request).calls(_caller(request, who), id_task)[:1]:
        if call.task_id:
            try:
                await service.cancel(who, call.task_id)
            except TaskFinished:
                break
    return {}


# -- options and lists -------------------------------------------------------------------------------------------------


@router.get("/options")
async def get_options(request: Request, who: Who, models: Models) -> dict[str, Any]:
    """The options, with the caller's model."""
    choice = _callers(request).choice(_caller(request, who))
    chosen = {
        "sd_model_checkpoint": _current(choice, who, models.catalog),
        "live_previews_enable": choice.previews,
    }
    return chosen | {name: values[0] for name, values in OPTIONS.items()}


@router.post("/options", dependencies=[MAKE])
async def set_options(options: dict[str, Any], request: Request, who: Who, models: Models) -> None:
    """Set options for this caller, until the service ends."""
    callers, caller = _callers(request), _caller(request, who)
    callers.choose(caller, _changed(callers.choice(caller), options, who, models.catalog))


@router.get("/sd-models")
async def sd_models(who: Who, models: Models) -> list[dict[str, Any]]:
    """The models that the caller may use. Their title is the id."""
    return [
        {"title": model, "model_name": model, "hash": None, "sha256": None, "filename": model, "config": None}
        for model in _allowed(who, models.catalog)
    ]


@router.get("/loras")
async def loras(settings: EffectiveSettings) -> list[dict[str, Any]]:
    """The LoRAs that a prompt can name."""
    files = await asyncio.to_thread(listed_loras, settings.loras_path)
    names = [file.rpartition(".")[0] for file in files]
    return [
        {"name": name, "alias": name, "path": file, "metadata": {}} for name, file in zip(names, files, strict=True)
    ]


@router.get("/memory")
async def memory(models: Models) -> dict[str, Any]:
    """Bytes of memory of the machine and of the device, as last measured."""
    now = models.memory
    host = {"free": now.host_available, "used": now.host_total - now.host_available, "total": now.host_total}
    if not now.gpu_available:
        return {"ram": host, "cuda": {"error": "unavailable"}}
    system = {"free": now.free, "used": now.total - now.free, "total": now.total}
    return {
        "ram": host,
        "cuda": {"system": system, "allocated": {"current": now.allocated}, "reserved": {"current": now.cached}},
    }


#: What there is none of, or one: the answers to lists that clients read at their start.
LISTS: Mapping[str, Any] = MappingProxyType(
    {
        "samplers": [{"name": "Automatic", "aliases": [], "options": {}}],
        "schedulers": [
            {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1, "need_inner_model": False}
        ],
        "upscalers": [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4}],
        "scripts": {"txt2img": [], "img2img": []},
        "embeddings": {"loaded": {}, "skipped": {}},
        "cmd-flags": {},
        **dict.fromkeys(("latent-upscale-modes", "sd-vae", "hypernetworks", "face-restorers"), ()),
        **dict.fromkeys(("realesrgan-models", "prompt-styles", "script-info", "extensions"), ()),
    }
)


@router.get("/{name}")
async def constant(name: str) -> Response:
    """One of LISTS."""
    if name not in LISTS:
        raise HTTPException(404)
    return JSONResponse(LISTS[name])


@router.post("/refresh-checkpoints")
@router.post("/refresh-loras")
async def refresh() -> None:
    """Do nothing: models.yaml is followed, and the folder of LoRAs is read for each request."""


# -- pictures of old ---------------------------------------------------------------------------------------------------


class PngInfoBody(SdBody):
    """The body of png-info."""

    image: str = Field(min_length=1)


@upload_router.post("/png-info")
async def png_info(body: PngInfoBody, request: Request) -> dict[str, Any]:
    """The generation parameters of a picture that this service or the web UI has made; empty if it has none."""
    services = services_of(request)
    data, _ = await decode_image(body.image, settings_of(services).max_input_pixels, services.checks)
    return await asyncio.to_thread(_described, data)


def _described(data: bytes) -> dict[str, Any]:
    try:
        receipt = Receipt.model_validate(read_receipt(data) or {})
    except ValidationError:
        text = read_text(data, "parameters") or ""
        return {"info": text, "items": {"parameters": text} if text else {}, "parameters": {}}
    except OSError:  # of a format that has no such text
        return {"info": "", "items": {}, "parameters": {}}
    model, request, made_by = receipt.model, receipt.request, receipt.provenance
    text = infotext(model, request, made_by, request.seed)
    prompts = {"Prompt": request.prompt, "Negative prompt": request.negative_prompt or ""}
    values = _parameters(model, request, made_by, request.seed)
    parameters = prompts | {name: str(value) for name, value in values.items()}
    return {"info": text, "items": {"parameters": text}, "parameters": parameters}
