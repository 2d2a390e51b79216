"""Server-sent events: the frame of an event, and the response that streams frames."""

import json
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

from starlette.responses import StreamingResponse

from imagegen.api.views import event_view
from imagegen.core.events import Event, Published

#: Seconds without an event after which a comment is sent, because proxies close silent connections.
KEEP_ALIVE_S = 15
KEEP_ALIVE = b": keep-alive\n\n"

_HEADERS: Mapping[str, str] = MappingProxyType({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


class EventStream(StreamingResponse):
    """A stream of frames that ends when its source does."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[bytes], status_code: int = 200) -> None:
        super().__init__(frames, status_code, headers=_HEADERS)


def frame(event_id: int, event: Event) -> bytes:
    """The frame of one event."""
    data = json.dumps(event_view(event), ensure_ascii=False, separators=(",", ":"))
    return f"event: {event.name}\ndata: {data}\nid: {event_id}\n\n".encode()


async def frames(events: AsyncIterator[Published | None]) -> AsyncIterator[bytes]:
    """The frame of each event, and a comment for each None."""
    async for published in events:
        yield published.encoded(frame) if published else KEEP_ALIVE
