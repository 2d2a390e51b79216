"""GET /events: everything that happens, as it happens."""

from collections.abc import AsyncIterator, Mapping
from typing import Annotated

from fastapi import APIRouter, Query

from imagegen.api.dependencies import Bus
from imagegen.api.sse import KEEP_ALIVE, KEEP_ALIVE_S, EventStream, frame
from imagegen.core.events import EventBus

router = APIRouter(tags=["system"])

Filter = Annotated[list[str], Query(max_length=50)]


@router.get(
    "/events",
    operation_id="follow_events",
    summary="Follow everything (server-sent events)",
    response_class=EventStream,
)
async def follow_events(
    bus: Bus,
    name: Filter = [],  # noqa: B006 - FastAPI copies it
    model: Filter = [],  # noqa: B006
    task_id: Filter = [],  # noqa: B006
) -> EventStream:
    """Tasks and models, from now on; the events of one task from its beginning are at `/task/{task_id}/events`.

    Each filter may be given several times: `name` (`completed`, `model_loaded`, ...), `model`, `task_id`. An event
    passes a filter if it has one of the values there. Positions and previews are told on
    the task's own stream only. A listener that falls 256 events behind is ended.
    """
    wanted = {"name": set(name), "model": set(model), "task_id": set(task_id)}
    return EventStream(_everything(bus, {field: values for field, values in wanted.items() if values}))


async def _everything(bus: EventBus, wanted: Mapping[str, set[str]]) -> AsyncIterator[bytes]:
    with bus.subscribe() as subscription:
        async for published in subscription.with_silence(KEEP_ALIVE_S):
            if published is None:
                yield KEEP_ALIVE
            elif all(getattr(published.event, field, None) in values for field, values in wanted.items()):
                yield published.encoded(frame)
