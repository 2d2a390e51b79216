"""Server-sent events: the response that streams frames. Each API makes the frame of an event itself."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from imagegen.core.errors import TooManyStreams
from imagegen.core.events import Published
from imagegen.core.owner import Owner

#: Seconds without an event after which a comment is sent, because proxies close silent connections.
KEEP_ALIVE_S = 15
KEEP_ALIVE = b": keep-alive\n\n"

_HEADERS: Mapping[str, str] = MappingProxyType({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


#: Seconds after which a caller that got no stream should ask again.
_AGAIN_S = 5


class Streams:
    """Counts the event streams, together and for each caller. One object for each application."""

    def __init__(self, most: int, per_caller: int) -> None:
        self._most = most
        self._per_caller = per_caller
        self._open: Counter[tuple[str, str]] = Counter()

    def __repr__(self) -> str:
        return f"<Streams [{self._open.total()}], Callers: {len(self._open)}>"

    @contextmanager
    def one(self, who: Owner | None, address: str) -> Iterator[None]:
        """Count one stream: of the owner, who may have many addresses, or of the address. Raises TooManyStreams."""
        caller = ("key", who.name) if who is not None and who.name else ("address", address)
        if self._open.total() >= self._most or self._open[caller] >= self._per_caller:
            raise TooManyStreams(retry_after=_AGAIN_S)
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]


class EventStream(StreamingResponse):
    """A stream of frames that ends when its source does. The application's `state.streams` counts it."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[bytes], status_code: int = 200) -> None:
        super().__init__(frames, status_code, headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises TooManyStreams before the stream begins."""
        streams: Streams = scope["app"].state.streams
        address = scope["client"][0] if scope.get("client") else ""
        with streams.one(scope.get("state", {}).get("who"), address):
            await super().__call__(scope, receive, send)


async def frames(events: AsyncIterator[Published | None], framed: Callable[[Published], bytes]) -> AsyncIterator[bytes]:
    """The frame of each event, and a comment for each None."""
    async for published in events:
        yield framed(published) if published else KEEP_ALIVE
