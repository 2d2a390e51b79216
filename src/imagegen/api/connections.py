"""Bounds of connections: how many there are, how long a request may take to arrive, and how many bytes it may hold."""

import asyncio
import ipaddress
import json
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade
from pydantic import IPvAnyNetwork
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from imagegen.api.problems import MEDIA_TYPE, problem

#: Bytes and fields of the request line and the headers, at most. Browsers send 2 KiB and 20 fields.
MAX_HEAD = 64 * 2**10
MAX_FIELDS = 100

#: Requests of a connection that wait for the answer to the one before. A megabyte holds 25,000 requests, and each
#: takes a hundred times its bytes. Browsers send none ahead.
MAX_AHEAD = 8

#: Seconds in which the request line and the headers must arrive.
HEAD_S = 10

#: A body that brings fewer bytes in so many seconds is given up. 1 KiB/s is slower than any modem.
BODY_S = 10
BODY_BYTES = 10 * 2**10

#: Seconds after which a caller that takes nothing of its answer is disconnected.
STALLED_S = 60

#: Bytes of each body that the bound of all bodies does not count: prompts always pass.
SMALL_BODY = 64 * 2**10

#: The most connections beyond the bound, which may only ask for a probe, and the seconds that each has to ask. If there
#: are more, the oldest is closed.
RESERVE = 32
RESERVE_S = 2

#: Seconds for which a refused caller can read the reason before its connection is closed.
LINGER_S = 1

#: What is answered however many connections there are. Metrics need the same key as everywhere, and an operator needs
#: them most when callers have taken all connections.
PROBES = frozenset({"/livez", "/readyz", "/metrics"})


class Bounds(NamedTuple):
    """How much all connections may take together."""

    connections: int
    per_address: int
    #: Bytes of bodies that have arrived and are not answered, beyond SMALL_BODY of each.
    body_bytes: int
    #: Bytes of answers that callers have not taken.
    unsent_bytes: int = 256 * 2**20


class Connections:
    """What all connections share. One object for each server, used in the event loop only."""

    def __init__(
        self,
        bounds: Bounds,
        clock: Callable[[], float],
        proxies: Collection[IPvAnyNetwork] = (),
        prefix: str = "",
    ) -> None:
        """`clock`: monotonic seconds. `proxies`: networks of proxies, whose addresses have no bound of their own.

        `prefix`: of the paths of this service, as `/imagegen`.
        """
        self.bounds = bounds
        self.clock = clock
        self.prefix = prefix
        self._proxies = tuple(proxies)
        self.body_bytes = 0
        self._all: set[BoundedProtocol] = set()
        self._addresses: Counter[str] = Counter()
        #: Those beyond the bound, the oldest first.
        self._reserve: dict[BoundedProtocol, None] = {}
        self.unsent_bytes = 0
        #: What callers have not taken, by address; the connections that wait the longest first.
        self._unsent: dict[str, dict[BoundedProtocol, int]] = {}

    def __repr__(self) -> str:
        reserve = len(self._reserve)
        return f"<Connections [{len(self._all)}], Reserve: {reserve}, Addresses: {len(self._addresses)}>"

    def add(self, connection: "BoundedProtocol") -> None:
        """Count a connection. One beyond the bounds can only ask for a probe."""
        self._all.add(connection)
        full = len(self._all) - len(self._reserve) > self.bounds.connections
        crowded = self._addresses[connection.address] >= self.bounds.per_address and not self._is_proxy(connection)
        if not (full or connection.probes_only or crowded):
            self._addresses[connection.address] += 1
            return
        connection.probes_only = True
        self._reserve[connection] = None
        if len(self._reserve) > RESERVE:
            next(iter(self._reserve)).drop()

    def _is_proxy(self, connection: "BoundedProtocol") -> bool:
        if not (self._proxies and connection.address):
            return False
        address = ipaddress.ip_address(connection.address)
        return any(address in network for network in self._proxies)

    def remove(self, connection: "BoundedProtocol") -> None:
        """Forget a connection. It may be unknown."""
        self.taken(connection)
        if connection not in self._all:
            return
        self._all.remove(connection)
        if connection.probes_only:
            del self._reserve[connection]
            return
        self._addresses[connection.address] -= 1
        if not self._addresses[connection.address]:
            del self._addresses[connection.address]

    def untaken(self, connection: "BoundedProtocol", size: int) -> None:
        """Count the bytes that a caller has not taken.

        Beyond the bound, connections of the address with the most of them are closed, the oldest first.
        """
        self.taken(connection)
        self._unsent.setdefault(connection.address, {})[connection] = size
        self.unsent_bytes += size
        while self.unsent_bytes > self.bounds.unsent_bytes:
            most = max(self._unsent.values(), key=lambda connections: sum(connections.values()))
            next(iter(most)).drop()

    def taken(self, connection: "BoundedProtocol") -> None:
        """The caller has taken its answer, or is gone."""
        if (connections := self._unsent.get(connection.address)) is not None:
            self.unsent_bytes -= connections.pop(connection, 0)
            if not connections:
                del self._unsent[connection.address]

    def check(self) -> None:
        """Close the connections that are late. To be called every second."""
        now = self.clock()
        for connection in list(self._all):
            connection.check(now)


class _Refused(Exception):
    """The request is refused; the parser stops."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds. A caller that is refused before there is a request gets problem details, too."""

    def __init__(self, *args: Any, shared: Connections, probes_only: bool = False, **options: Any) -> None:
        """`probes_only`: nothing but PROBES is answered."""
        super().__init__(*args, **options)
        self.probes_only = probes_only
        self.address = ""
        self._shared = shared
        self._refusal = ("malformed_request", "This is not an HTTP request.", 400)
        self._lingers = False
        self._fields = 0
        self._head_bytes = 0
        #: Bytes since the parser last reported the begin of a request, its whole head, a piece of its body or its end.
        self._unread = 0
        self._body = 0
        self._counted = 0
        #: `head` or `body`: what is awaited from the caller; None: nothing.
        self._awaits: str | None = "head"
        self._since = shared.clock()
        self._since_bytes = 0
        self._unsent = 0
        self._unsent_since: float | None = None

    # -- the connection -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._shared.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.remove(self)
        self._release()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._shared.untaken(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._shared.taken(self)
        super().resume_writing()

    def shutdown(self) -> None:
        """As in uvicorn, when the service ends; but it does not wait for the rest of a body."""
        if self._awaits == "body" and self.cycle is not None and not self.cycle.response_started:
            self._refusal = ("draining", "The service is stopping and accepts no new tasks.", 503)
            self.send_400_response("")
        else:
            super().shutdown()

    def drop(self) -> None:
        """Close the connection without an answer, and discard the bytes that are not sent yet."""
        self._shared.remove(self)
        self.transport.abort()

    def check(self, now: float) -> None:
        """Close the connection if the caller is late."""
        if self._awaits == "head":
            if now - self._since > (RESERVE_S if self.probes_only else HEAD_S):
                self._refuse_late("The request did not arrive in time.")
        elif self._awaits == "body":
            self._check_body(now)
        self._check_sending(now)

    def _check_body(self, now: float) -> None:
        if self.flow.read_paused or self._body - self._since_bytes >= BODY_BYTES:
            self._since, self._since_bytes = now, self._body
        elif now - self._since > BODY_S:
            self._refuse_late("The body did not arrive in time.")

    def _check_sending(self, now: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent or self._unsent_since is None:
            self._unsent_since = now
        elif now - self._unsent_since > STALLED_S:
            self.drop()
        self._unsent = unsent

    def _refuse_late(self, detail: str) -> None:
        idle = self._awaits == "head" and not self._head_bytes and not self._unread
        if idle or self._lingers:
            self.transport.close()
        else:
            self._refusal = ("request_timeout", detail, 408)
            self.send_400_response("")

    # -- the request --------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            return
        if self._awaits is None:  # the next request on the same connection
            self._await("head")
        self._unread += len(data)
        self._unset_keepalive_if_required()
        # As in uvicorn, but without a line in the log: a caller that sends garbage could fill the disk.
        assert self.parser is not None
        try:
            self.parser.feed_data(data)
        except HttpParserError:
            self.send_400_response("")
        except HttpParserUpgrade:  # no other protocol is supported: the request is answered over HTTP
            pass
        if self._unread > MAX_HEAD and not self._lingers and self.parser is not None:
            self._refusal = _HEAD_TOO_LARGE
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._fields = self._head_bytes = self._unread = 0
        if self._awaits != "head":
            self._await("head")
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD or self._fields > MAX_FIELDS:
            self._refuse(*_HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._unread = 0
        path = self.url.partition(b"?")[0].decode("latin-1").removeprefix(self._shared.prefix)
        if self.probes_only and path not in PROBES:
            self._refuse("too_many_connections", "There are too many connections; close some, or try later.", 503)
        if len(self.pipeline) >= MAX_AHEAD:
            self.pipeline.clear()
            self._refuse("malformed_request", "Too many requests were sent ahead of their answers.", 400)
        super().on_headers_complete()
        self._body = self._since_bytes = 0
        self._await("body")

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        self._body += len(body)
        beyond = max(0, self._body - SMALL_BODY) - self._counted
        if beyond > 0 and not self.cycle.response_complete:
            if self._shared.body_bytes + beyond > self._shared.bounds.body_bytes:
                self._refuse("too_many_uploads", "Too many bodies are arriving at once; try again soon.", 503)
            self._shared.body_bytes += beyond
            self._counted += beyond
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._awaits = None
        self._unread = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._release()
        super().on_response_complete()

    def _await(self, what: str) -> None:
        self._awaits, self._since = what, self._shared.clock()

    def _release(self) -> None:
        self._shared.body_bytes -= self._counted
        self._counted = 0

    # -- refusals -----------------------------------------------------------------------------------------------------

    def _refuse(self, code: str, detail: str, status: int) -> None:
        """Stop the parser: uvicorn then calls `send_400_response`."""
        self._refusal = (code, detail, status)
        raise _Refused

    def send_400_response(self, msg: str) -> None:
        """Answer with the refusal, and read on for a moment: a reset would take the answer from the caller."""
        self._lingers = True
        self._release()
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # in the middle of another answer
            return
        code, detail, status = self._refusal
        told = problem(code, detail, status=status)
        told.type = f"{self._shared.prefix}{told.type}"
        body = json.dumps(told.model_dump(exclude_none=True)).encode()
        lines = [f"content-type: {MEDIA_TYPE}", f"content-length: {len(body)}", "connection: close"]
        if status == 503:
            lines.append("retry-after: 1")
        head = [name + b": " + value for name, value in self.server_state.default_headers]
        head += [line.encode() for line in lines]
        self.transport.write(STATUS_LINE[status] + b"\r\n".join(head) + b"\r\n\r\n" + body)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # its answer would be a second one
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


_HEAD_TOO_LARGE = ("header_too_large", "The request line and the headers have more than 64 KiB or 100 fields.", 431)
