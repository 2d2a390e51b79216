"""GET /events: everything that happens, as it happens."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from imagegen.api.dependencies import Bus
from imagegen.api.views import event_view

router = APIRouter(tags=["system"])

Filter = Annotated[list[str], Query(max_length=50)]


@router.get(
    "/events",
    operation_id="follow_events",
    summary="Follow everything (server-sent events)",
    response_class=EventSourceResponse,
)
async def follow_events(
    bus: Bus,
    name: Filter = [],  # noqa: B006 - FastAPI copies it
    model: Filter = [],  # noqa: B006
    task_id: Filter = [],  # noqa: B006
) -> AsyncIterator[ServerSentEvent]:
    """Tasks and models, from now on; the events of one task from its beginning are at `/task/{task_id}/events`.

    Each filter may be given several times: `name` (`completed`, `model_loaded`, ...), `model`, `task_id`. An event
    passes a filter if it has one of the values there. A listener that falls 256 events behind is ended.
    """
    wanted = {"name": set(name), "model": set(model), "task_id": set(task_id)}
    with bus.subscribe() as events:
        async for published in events:
            event = published.event
            if all(not values or getattr(event, field, None) in values for field, values in wanted.items()):
                yield ServerSentEvent(event=event.name, id=str(published.id), data=event_view(event))
