"""The body of an event, and GET /events: the events of all tasks and models, and of the configuration."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query

from imagegen.api.dependencies import Bus
from imagegen.api.native.images.routes import image_view
from imagegen.api.problems import describe
from imagegen.api.sse import KEEP_ALIVE, KEEP_ALIVE_S, EventStream
from imagegen.core.events import Event, EventBus, StreamEvent, TaskCompleted, TaskSaved

router = APIRouter(tags=["service"])

Filter = Annotated[list[str], Query(max_length=50)]


def event_view(event: Event) -> dict[str, Any]:
    """The data of an event. Pictures have the same form as in the task."""
    data = event.model_dump(mode="json")
    if isinstance(event, TaskCompleted | TaskSaved):
        data["result_files"] = [image.path for image in event.images]
        data["images"] = [image_view(image).model_dump() for image in event.images]
    return data


def frame(event_id: int, event: Event) -> bytes:
    """The frame of one event."""
    data = json.dumps(event_view(event), ensure_ascii=False, separators=(",", ":"))
    return f"event: {event.name}\ndata: {data}\nid: {event_id}\n\n".encode()


@router.get(
    "/events",
    operation_id="follow_events",
    summary="Follow all events (server-sent events)",
    response_class=EventStream,
    responses=describe("too_many_streams"),
)
async def follow_events(
    bus: Bus,
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
    256 events behind, or `stopping`. Both pass every filter.
    """
    wanted = {"name": set(name), "model": set(model), "task_id": set(task_id)}
    return EventStream(_everything(bus, {field: values for field, values in wanted.items() if values}, last_event_id))


async def _everything(bus: EventBus, wanted: Mapping[str, set[str]], after: int) -> AsyncIterator[bytes]:
    with bus.subscribe(after=after) as subscription:
        if (gap := bus.gap(after)) is not None:
            yield gap.encoded(frame)
        async for published in subscription.with_silence(KEEP_ALIVE_S):
            if published is None:
                yield KEEP_ALIVE
                continue
            # All that has been delivered in one piece: with many callers, each piece has its price.
            arrived = (published, *subscription.waiting())
            if piece := b"".join(it.encoded(frame) for it in arrived if _passes(it.event, wanted)):
                yield piece


def _passes(event: Event, wanted: Mapping[str, set[str]]) -> bool:
    if isinstance(event, StreamEvent):
        return True
    return all(getattr(event, field, None) in values for field, values in wanted.items())
