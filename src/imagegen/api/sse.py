"""Server-sent events: the response that streams frames. Each API makes the frame of an event itself."""

from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType

from starlette.responses import StreamingResponse

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


async def frames(events: AsyncIterator[Published | None], frame: Callable[[int, Event], bytes]) -> AsyncIterator[bytes]:
    """`frame` of the id and the event of each, and a comment for each None."""
    async for published in events:
        yield published.encoded(frame) if published else KEEP_ALIVE
