"""The body of an event, and GET /events: the events of all tasks and models, and of the configuration."""

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field, RootModel, create_model

from imagegen.api.dependencies import Service, Who
from imagegen.api.native.images.routes import ImageView, image_view
from imagegen.api.problems import describe
from imagegen.api.security import SEE, KeyedRoute
from imagegen.api.sse import KEEP_ALIVE, KEEP_ALIVE_S, EventStream
from imagegen.core.events import Event, Published, StreamEvent, TaskCompleted, TaskEvent, TaskSaved

router = APIRouter(tags=["service"], route_class=KeyedRoute, dependencies=[SEE])

Filter = Annotated[list[Annotated[str, Field(max_length=64)]], Query(max_length=50)]


def event_view(event: Event, prefix: str = "") -> dict[str, Any]:
    """The data of an event. `type` is its name; pictures have the same form as in the task.

    `prefix`: of the paths of this service, as `/imagegen`.
    """
    data = {"type": event.name, **event.model_dump(mode="json")}
    if isinstance(event, TaskCompleted | TaskSaved):
        data["result_files"] = [image.path for image in event.images]
        data["images"] = [image_view(image, prefix).model_dump() for image in event.images]
    return data


def frame(event_id: int, event: Event, prefix: str = "") -> bytes:
    """The frame of one event."""
    data = json.dumps(event_view(event, prefix), ensure_ascii=False, separators=(",", ":"))
    return f"event: {event.name}\ndata: {data}\nid: {event_id}\n\n".encode()


def framed_below(prefix: str) -> Callable[[Published], bytes]:
    """Makes the frame of an event for callers below a prefix.

    They share the frame with all callers unless it has URLs. A frame is not kept for each prefix: a proxy may pass on
    any prefix that a caller sends.
    """

    def framed(published: Published) -> bytes:
        if prefix and isinstance(published.event, TaskCompleted | TaskSaved):
            return frame(published.id, published.event, prefix)
        return published.encoded(frame)

    return framed


def kinds_of_event(kind: type[Event] = Event) -> Iterator[type[Event]]:
    """The class of each event with a name of its own, in the order of their definitions."""
    for each in kind.__subclasses__():
        # Tests have events of their own.
        if each.__module__ == Event.__module__:
            if "name" in vars(each):
                yield each
            yield from kinds_of_event(each)


def _documented(kind: type[Event]) -> type[BaseModel]:
    """The form of `event_view(event)` for the events of a class, for the OpenAPI document."""
    fields: dict[str, Any] = {name: (it.annotation, it) for name, it in kind.model_fields.items()}
    if "images" in fields:
        files = Field(description="`folder/file` of each picture.")
        fields |= {"images": (list[ImageView], ...), "result_files": (list[str], files)}
    name: Any = (Literal[kind.name], Field(description="The name of the event."))
    return create_model(kind.__name__, __doc__=kind.__doc__, __module__=__name__, type=name, **fields)


def _one_of(name: str, about: str, kinds: Iterable[type[BaseModel]]) -> type[BaseModel]:
    """The class of a value that is of one of several classes, which its `type` tells apart."""
    union: Any = Annotated[Union[tuple(kinds)], Field(discriminator="type")]  # noqa: UP007 - known at run time only
    base: Any = RootModel.__class_getitem__(union)
    return create_model(name, __base__=base, __doc__=about, __module__=__name__)


_DOCUMENTED = {kind: _documented(kind) for kind in kinds_of_event()}

TaskStreamEvent = _one_of(
    "TaskStreamEvent",
    "The data of an event in the stream of one task. `type` is also in the `event:` line.",
    (it for kind, it in _DOCUMENTED.items() if issubclass(kind, TaskEvent | StreamEvent)),
)
StreamedEvent = _one_of(
    "StreamedEvent",
    "The data of an event in the stream of all tasks and models. `type` is also in the `event:` line.",
    (it for kind, it in _DOCUMENTED.items() if kind.lasting or not issubclass(kind, TaskEvent)),
)


@router.get(
    "/events",
    operation_id="follow_events",
    summary="Follow all events (server-sent events)",
    response_class=EventStream,
    responses={
        200: {"model": StreamedEvent, "description": "The `data` of each event is of this form."},
        **describe("too_many_streams"),
    },
)
async def follow_events(
    request: Request,
    service: Service,
    who: Who,
    name: Filter = [],  # noqa: B006 - FastAPI copies it
    model: Filter = [],  # noqa: B006
    task_id: Filter = [],  # noqa: B006
    last_event_id: Annotated[int, Header(ge=0, description="Also past events with a higher id.")] = 0,
) -> EventStream:
    """Events from now on, or after `Last-Event-ID`. `/task/{task_id}/events` has those of one task from its beginning.

    Each filter may be given several times: `name` (`completed`, `model_loaded`, ...), `model`, `task_id`. An event
    passes a filter if it has one of its values. Positions, previews and the progress of a task's load are sent on the
    task's own stream only. The latest 4 MiB of events are kept, some thousands: if some after `Last-Event-ID` may be
    missing, the first event is `gap`. The last event is `closed`, with a `reason`: `too_slow` for a client that falls
    256 events behind, `stopping`, `key_revoked`, `key_expired`, or `key_required` (the first key was made meanwhile).
    Both pass every filter. A key without the scope `read` gets the events of its own tasks and of the models.
    """
    asked = {"name": set(name), "model": set(model), "task_id": set(task_id)}
    wanted = {field: values for field, values in asked.items() if values}
    framed = framed_below(request.scope["root_path"])
    return EventStream(_everything(service.everything(who, last_event_id, KEEP_ALIVE_S), wanted, framed))


async def _everything(
    events: AsyncIterator[list[Published] | None],
    wanted: Mapping[str, set[str]],
    framed: Callable[[Published], bytes],
) -> AsyncIterator[bytes]:
    async for arrived in events:
        if arrived is None:
            yield KEEP_ALIVE
        # All events that have arrived are sent in one piece, because with many callers each piece takes time.
        elif piece := b"".join(framed(it) for it in arrived if _passes(it.event, wanted)):
            yield piece


def _passes(event: Event, wanted: Mapping[str, set[str]]) -> bool:
    if isinstance(event, StreamEvent):
        return True
    return all(getattr(event, field, None) in values for field, values in wanted.items())
