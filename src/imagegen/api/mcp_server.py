"""The tools of the Model Context Protocol. Imported when they are first needed: the SDK takes 35 MB and a second."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import anyio
import httpx2
from fastapi import Request
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ContentBlock,
    ImageContent,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import imagegen
from imagegen.api.callers import cancel, problem_of
from imagegen.api.dependencies import Services
from imagegen.api.input_pictures import input_picture
from imagegen.api.mcp import PREFIX
from imagegen.api.native.tasks.generation import Prompt, Side
from imagegen.api.synchronous import read_picture
from imagegen.api.urls import open_url
from imagegen.core.errors import Forbidden, ImagegenError, TaskFinished
from imagegen.core.events import TaskLoading, TaskStep
from imagegen.core.keys import Scope
from imagegen.core.owner import ANYONE, Owner
from imagegen.core.sizes import AspectRatio
from imagegen.core.task import (
    MAX_SEED,
    MAX_STEPS,
    GenerationTask,
    ImageFormat,
    InputPictures,
    Output,
    StoredImage,
    TaskStatus,
    TaskType,
)
from imagegen.core.wording import explained
from imagegen.storage.images import media_type
from imagegen.tasks.admission import TaskDraft

#: Pictures of one call: a host shows all of them to the language model.
MOST_PICTURES = 4

Context = ServerRequestContext[Any, Any]


class Arguments(BaseModel):
    """The arguments of a tool."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerateArguments(Arguments):
    """The arguments of generate_image."""

    prompt: Prompt = Field(min_length=1, description="What the picture shows.")
    negative_prompt: Prompt | None = Field(
        None, description="What it must not show. Only for models that take a negative prompt; see list_models."
    )
    model: str | None = Field(None, max_length=200, description="The id of a model; default: the service's.")
    aspect_ratio: AspectRatio | None = Field(None, description="Shape of the picture.")
    width: Side | None = Field(None, description="Pixels, together with `height`. Replaces `aspect_ratio`.")
    height: Side | None = Field(None, description="Pixels, together with `width`.")
    steps: int | None = Field(None, ge=1, le=MAX_STEPS, description="Denoising steps; default: the model's.")
    guidance_scale: float | None = Field(
        None, ge=0, le=50, allow_inf_nan=False, description="How closely to follow the prompt; default: the model's."
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="The same seed gives the same picture.")
    pictures: int = Field(1, ge=1, le=MOST_PICTURES, description="Number of pictures.")
    format: ImageFormat = Field(ImageFormat.WEBP, description="Format of the files.")
    wait: bool = Field(
        True, description="Whether to wait for the pictures. If not, the answer has the id for task_status."
    )

    @model_validator(mode="after")
    def _width_with_height(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("give width and height together")
        return self


class EditArguments(GenerateArguments):
    """The arguments of edit_image."""

    image: str = Field(
        min_length=1,
        description="The picture to start from: base64, a data URL, or the `path` or `url` of an earlier picture.",
    )
    mask: str | None = Field(
        None, min_length=1, description="The same. Its white part is repainted. Only for models that can inpaint."
    )
    strength: float = Field(
        0.8, ge=0.01, le=1, allow_inf_nan=False, description="How much of the picture is replaced; 1 keeps nothing."
    )


class TaskArguments(Arguments):
    """The arguments of task_status and cancel_task."""

    task_id: str = Field(min_length=1, max_length=64, description="The id that generate_image or edit_image gave.")


class NoArguments(Arguments):
    """The arguments of list_models."""


class Call(NamedTuple):
    """One call of a tool."""

    context: Context
    services: Services
    who: Owner

    @property
    def request(self) -> Request | None:
        """The HTTP request; None over stdio."""
        request = self.context.request
        return request if isinstance(request, Request) else None


async def generate_image(call: Call, arguments: GenerateArguments) -> CallToolResult:
    """Make pictures from a prompt. The answer has the pictures, their seeds, and the id of the task."""
    return await _make(call, _draft(call, arguments), wait=arguments.wait)


async def edit_image(call: Call, arguments: EditArguments) -> CallToolResult:
    """Change a picture as a prompt says. With a mask, only the mask's white part changes."""
    image, size = await input_picture(arguments.image, call.services, call.who, call.request)
    mask = None
    if arguments.mask:
        mask, _ = await input_picture(arguments.mask, call.services, call.who, call.request, mask=True)
    draft = _draft(call, arguments).evolve(
        type=TaskType.IMAGE2IMAGE,
        strength=arguments.strength,
        pictures=InputPictures(init_image=image, mask_image=mask),
        input_size=size,
    )
    return await _make(call, draft, wait=arguments.wait)


async def list_models(call: Call, arguments: NoArguments) -> CallToolResult:
    """The models that can be used, what each can do, and the default."""
    catalog = call.services.models.catalog
    models = [
        {
            "id": model,
            "name": spec.name,
            "description": spec.description,
            "state": call.services.models.status(model).state,
            "generate": spec.supports_text2img,
            "edit": spec.supports_img2img,
            "inpaint": spec.supports_inpaint,
            "negative_prompt": spec.supports_negative_prompt,
        }
        for model, spec in catalog.models.items()
        if not call.who.models or model in call.who.models
    ]
    return _result({"default_model": catalog.default_model, "models": models})


async def task_status(call: Call, arguments: TaskArguments) -> CallToolResult:
    """The state of a task; its pictures, once it is completed."""
    return await _shown(call, await call.services.service.task(call.who, arguments.task_id))


async def cancel_task(call: Call, arguments: TaskArguments) -> CallToolResult:
    """Cancel a task. One that has ended stays as it is."""
    service = call.services.service
    try:
        task = await service.cancel(call.who, arguments.task_id)
    except TaskFinished:
        task = await service.task(call.who, arguments.task_id)
    return _result({"task_id": task.id, "status": task.status})


def _draft(call: Call, arguments: GenerateArguments) -> TaskDraft:
    return TaskDraft(
        type=TaskType.TEXT2IMAGE,
        model=call.services.models.catalog.id_of(arguments.model),
        batch_size=arguments.pictures,
        output=Output(format=arguments.format),
        **arguments.model_dump(include=_SHARED),
    )


#: The arguments that are fields of a draft.
_SHARED = {
    *("prompt", "negative_prompt", "aspect_ratio", "width", "height", "steps", "guidance_scale", "seed"),
}


async def _make(call: Call, draft: TaskDraft, *, wait: bool) -> CallToolResult:
    """Submit a task and wait for its pictures. A caller that leaves, or cancels its call, cancels the task."""
    service = call.services.service
    task = (await service.submit(call.who, draft)).task
    if not wait:
        return _result({"task_id": task.id, "status": task.status})
    try:
        await _tell_progress(call, task)
        task = await service.wait(call.who, task.id, float("inf"))
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await cancel(service, call.who, task.id)
        raise
    if task.status is not TaskStatus.COMPLETED:
        problem = problem_of(task)
        return _failed(problem.code, problem.detail, task_id=task.id)
    return await _shown(call, task)


async def _tell_progress(call: Call, task: GenerationTask) -> None:
    """Notifications for the caller, if it asked for them: a load, and each step."""
    loading = False
    async for published in call.services.service.events(call.who, task.id):
        match published.event if published is not None else None:
            case TaskStep(step=step, total=total):
                await call.context.session.report_progress(step, total, f"Step {step} of {total}")
            case TaskLoading(model=model) if not loading:
                loading = True
                await call.context.session.report_progress(0, None, f"Loading {model}")
            case _:
                pass


async def _shown(call: Call, task: GenerationTask) -> CallToolResult:
    """What there is to tell of a task, with its pictures."""
    images = task.images if task.status is TaskStatus.COMPLETED else ()
    outlook = call.services.tasks.outlook(task)
    facts = {
        "task_id": task.id,
        "status": task.status,
        "model": task.model,
        "position": outlook.position if outlook else None,
        "pictures": [await _described(call, image) for image in images],
        "warnings": list(task.warnings),
        "error": task.failure.message if task.failure else None,
    }
    files = [await read_picture(call.services.images, image) for image in images]
    texts = await asyncio.to_thread(lambda: [base64.b64encode(file).decode() for file in files])
    shown = [
        ImageContent(data=text, mime_type=media_type(image.path)) for text, image in zip(texts, images, strict=True)
    ]
    return _result(facts, shown)


async def _described(call: Call, image: StoredImage) -> dict[str, Any]:
    path = f"/images/{image.path}"
    facts = {"path": path, "width": image.width, "height": image.height, "seed": image.seed}
    return facts if call.request is None else facts | {"url": await open_url(path, call.request)}


def _result(facts: Mapping[str, Any], pictures: Sequence[ContentBlock] = ()) -> CallToolResult:
    kept = {name: value for name, value in facts.items() if value not in (None, [])}
    text = TextContent(text=json.dumps(kept, ensure_ascii=False))
    return CallToolResult(content=[text, *pictures], structured_content=kept)


def _failed(code: str, detail: str, **facts: str) -> CallToolResult:
    """An error that the language model can read and mend."""
    return CallToolResult(
        content=[TextContent(text=f"{code}: {detail}")],
        structured_content={"error_code": code, "error": detail, **facts},
        is_error=True,
    )


# -- the server --------------------------------------------------------------------------------------------------------


class ToolKind(NamedTuple):
    """A tool: its function, its arguments, and the scope that its caller's key must have."""

    run: Callable[[Call, Any], Awaitable[CallToolResult]]
    arguments: type[Arguments]
    scope: Scope
    title: str

    @property
    def tool(self) -> Tool:
        """How hosts see it."""
        reads = self.scope is Scope.READ
        return Tool(
            name=self.run.__name__,
            title=self.title,
            description=(self.run.__doc__ or "").strip(),
            input_schema=self.arguments.model_json_schema(),
            annotations=ToolAnnotations(
                read_only_hint=reads,
                destructive_hint=self.run is cancel_task,
                idempotent_hint=reads or self.run is cancel_task,
                open_world_hint=False,
            ),
        )


TOOLS: Mapping[str, ToolKind] = MappingProxyType(
    {
        kind.run.__name__: kind
        for kind in (
            ToolKind(generate_image, GenerateArguments, Scope.GENERATE, "Make pictures"),
            ToolKind(edit_image, EditArguments, Scope.GENERATE, "Change a picture"),
            ToolKind(list_models, NoArguments, Scope.READ, "List models"),
            ToolKind(task_status, TaskArguments, Scope.READ, "Look at a task"),
            ToolKind(cancel_task, TaskArguments, Scope.GENERATE, "Cancel a task"),
        )
    }
)


def make_server(services: Services) -> Server[Any]:
    """The server of one application, or of one stdio session."""

    async def list_tools(context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[kind.tool for kind in TOOLS.values()])

    async def call_tool(context: Context, params: CallToolRequestParams) -> CallToolResult:
        kind = TOOLS.get(params.name)
        if kind is None:
            raise MCPError(INVALID_PARAMS, f"There is no such tool; known: {', '.join(TOOLS)}.")
        try:
            arguments = kind.arguments.model_validate(params.arguments or {})
            who = _who(context)
            if kind.scope is Scope.GENERATE and not who.scopes & {Scope.GENERATE, Scope.ADMIN}:
                raise Forbidden("This needs a key with the scope admin or generate.")
            return await kind.run(Call(context, services, who), arguments)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)[:20]
            wrong = "; ".join(f"{'.'.join(map(str, it['loc']))}: {explained(it)}".removeprefix(": ") for it in found)
            return _failed("invalid_request", wrong)
        except ImagegenError as error:
            return _failed(error.code, error.detail)

    return Server(
        "imagegen",
        version=imagegen.__version__,
        title="imagegen",
        instructions="Makes and changes pictures with the models of a self-hosted service.",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _who(context: Context) -> Owner:
    """The caller that the route has found, or anyone over stdio."""
    request = context.request
    if not isinstance(request, Request):
        return ANYONE
    who = request.state.who
    assert isinstance(who, Owner)
    return who


def http_manager(services: Services) -> StreamableHTTPSessionManager:
    """What answers the requests at /mcp. It keeps no sessions, so each request shows its key."""
    most = services.settings.max_upload_bytes
    return StreamableHTTPSessionManager(make_server(services), stateless=True, max_request_body_size=most)


async def serve_stdio(services: Services, running: AbstractAsyncContextManager[None]) -> None:
    """Serve one host over standard input and output until it closes them. `running`: runs the service meanwhile."""
    server = make_server(services)
    # Standard output is taken first: what a library prints goes elsewhere then.
    async with stdio_server() as (read, write), running:
        await server.run(read, write, server.create_initialization_options())


async def forward_stdio(url: str, key: str | None) -> None:
    """Serve one host with the tools of the service at `url`. Raises MCPError if it cannot be reached, or refuses."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(60, read=None)) as http,
        Client(streamable_http_client(f"{url.rstrip('/')}{PREFIX}", http_client=http)) as service,
        stdio_server() as (read, write),
    ):
        server = _forwarding(service)
        await server.run(read, write, server.create_initialization_options())


def _forwarding(service: Client) -> Server[Any]:
    async def list_tools(context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        return await service.list_tools()

    async def call_tool(context: Context, params: CallToolRequestParams) -> CallToolResult:
        tell = context.session.report_progress
        return await service.call_tool(params.name, params.arguments or {}, progress_callback=tell)

    return Server("imagegen", version=imagegen.__version__, on_list_tools=list_tools, on_call_tool=call_tool)
