"""Server-sent events: the response that streams frames. Each API makes the frame of an event itself."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from imagegen.core.errors import TooManyStreams
from imagegen.core.events import Event, Published

#: Seconds without an event after which a comment is sent, because proxies close silent connections.
KEEP_ALIVE_S = 15
KEEP_ALIVE = b": keep-alive\n\n"

_HEADERS: Mapping[str, str] = MappingProxyType({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


#: Seconds after which a caller that got no stream should ask again.
_AGAIN_S = 5


class Streams:
    """Counts the event streams, together and for each address. One object for each application."""

    def __init__(self, most: int, per_address: int) -> None:
        self._most = most
        self._per_address = per_address
        self._open: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Streams [{self._open.total()}], Addresses: {len(self._open)}>"

    @contextmanager
    def one(self, address: str) -> Iterator[None]:
        """Count one stream. Raises TooManyStreams."""
        if self._open.total() >= self._most or self._open[address] >= self._per_address:
            raise TooManyStreams(retry_after=_AGAIN_S)
        self._open[address] += 1
        try:
            yield
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]


class EventStream(StreamingResponse):
    """A stream of frames that ends when its source does. The application's `state.streams` counts it."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[bytes], status_code: int = 200) -> None:
        super().__init__(frames, status_code, headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises TooManyStreams before the stream begins."""
        streams: Streams = scope["app"].state.streams
        with streams.one(scope["client"][0] if scope.get("client") else ""):
            await super().__call__(scope, receive, send)


async def frames(events: AsyncIterator[Published | None], frame: Callable[[int, Event], bytes]) -> AsyncIterator[bytes]:
    """The frame of each event, and a comment for each None."""
    async for published in events:
        yield published.encoded(frame) if published else KEEP_ALIVE
