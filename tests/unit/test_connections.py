"""Connections within bounds: what a hostile socket can send, hold and take, without a network and without waiting."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_network
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from imagegen.api import connections
from imagegen.api.connections import (
    BODY_BYTES,
    BODY_S,
    HEAD_S,
    MAX_AHEAD,
    MAX_FIELDS,
    MAX_HEAD,
    RESERVE,
    SMALL_BODY,
    STALLED_S,
    BoundedProtocol,
    Bounds,
    Connections,
)

Message = MutableMapping[str, Any]


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self, address: str = "10.0.0.1") -> None:
        super().__init__({"peername": (address, 1234), "sockname": ("10.0.0.9", 5050)})
        self.sent = b""
        self.open = True
        self.aborted = False
        self.unsent = 0
        self.paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.open = False

    def close(self) -> None:
        self.open = False

    def abort(self) -> None:
        self.open, self.aborted = False, True

    def is_closing(self) -> bool:
        return not self.open

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class House:
    """A server of one small application, and the clock of its connections."""

    def __init__(self, **bounds: int) -> None:
        self.now = 1000.0
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.shared = Connections(
            Bounds(**{"connections": 10, "per_address": 5, "body_bytes": 2**20} | bounds),
            lambda: self.now,
            (ip_network("10.8.0.0/16"),),
            "/imagegen",
        )
        self.config = uvicorn.Config(self.app, interface="asgi3", log_config=None, lifespan="off")
        self.state = ServerState()

    async def app(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        self.asked.append(scope["path"])
        body = b""
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
        self.bodies.append(body)
        await self.hold.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def connect(self, address: str = "10.0.0.1", **options: Any) -> tuple[BoundedProtocol, Wire]:
        wire = Wire(address)
        made = BoundedProtocol(shared=self.shared, config=self.config, server_state=self.state, app_state={}, **options)
        made.connection_made(wire)
        return made, wire

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.shared.check()


@pytest.fixture
async def house() -> House:
    return House()


async def turn() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def told(wire: Wire) -> tuple[int, str]:
    """Status and code of a refusal."""
    head, _, body = wire.sent.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    assert f"content-length: {len(body)}".encode() in head
    answer = json.loads(body)
    assert int(head.split()[1]) == answer["status"]
    return answer["status"], answer["code"]


GET = b"GET /tasks HTTP/1.1\r\nHost: x\r\n"


# -- the head ----------------------------------------------------------------------------------------------------------


async def test_a_request_is_answered(house: House) -> None:
    protocol, wire = house.connect()
    protocol.data_received(GET + b"\r\n")
    await turn()
    assert wire.sent.startswith(b"HTTP/1.1 200 OK")
    assert wire.open


@pytest.mark.parametrize(
    "endless",
    [b"a:b\r\n", b"a" * 1000, b"a: " + b"b" * 1000 + b"\r\n", b"a: " + b"b" * 1000],
    ids=["fields", "a name", "long fields", "a value"],
)
async def test_headers_without_end_are_cut_off(house: House, endless: bytes) -> None:
    protocol, wire = house.connect()
    protocol.data_received(GET)
    sent = 0
    while wire.open:
        protocol.data_received(endless)
        sent += len(endless)
        assert sent <= MAX_HEAD + 2000
    assert told(wire) == (431, "header_too_large")
    assert house.asked == []


async def test_as_many_headers_as_are_allowed_pass(house: House) -> None:
    protocol, wire = house.connect()
    protocol.data_received(GET + b"".join(b"a%d: b\r\n" % n for n in range(MAX_FIELDS - 1)) + b"\r\n")
    await turn()
    assert wire.sent.startswith(b"HTTP/1.1 200")


async def test_a_request_line_without_end_is_cut_off(house: House) -> None:
    protocol, wire = house.connect()
    protocol.data_received(b"GET /")
    while wire.open:
        protocol.data_received(b"a" * 1000)
    assert told(wire) == (431, "header_too_large")


async def test_a_large_head_in_one_piece_is_refused(house: House) -> None:
    protocol, wire = house.connect()
    protocol.data_received(GET + b"a: " + b"b" * MAX_HEAD + b"\r\n\r\n")
    assert told(wire) == (431, "header_too_large")
    assert house.asked == []


async def test_trailers_without_end_are_cut_off(house: House) -> None:
    protocol, wire = house.connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
    for _ in range(MAX_FIELDS + 1):
        protocol.data_received(b"a:b\r\n")
    assert told(wire) == (431, "header_too_large")


async def test_a_chunk_extension_without_end_is_cut_off(house: House) -> None:
    protocol, wire = house.connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    for _ in range(MAX_HEAD // 1000 + 1):
        protocol.data_received(b"x" * 1000)
    assert told(wire) == (431, "header_too_large")


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02", b"hello\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n", b"\0" * 9]
)
async def test_what_is_no_http_is_told_so_in_problem_details(house: House, nonsense: bytes) -> None:
    protocol, wire = house.connect()
    protocol.data_received(nonsense)
    assert told(wire) == (400, "malformed_request")


# -- deadlines ---------------------------------------------------------------------------------------------------------


async def test_an_idle_connection_is_closed(house: House) -> None:
    _, wire = house.connect()
    house.later(HEAD_S)
    assert wire.open
    house.later(1)
    assert not wire.open
    assert wire.sent == b""


async def test_half_a_head_is_given_up_however_often_it_grows(house: House) -> None:
    protocol, wire = house.connect()
    protocol.data_received(GET)
    for _ in range(HEAD_S):
        house.later(1)
        protocol.data_received(b"a:b\r\n")
        assert wire.open
    house.later(1)
    assert told(wire) == (408, "request_timeout")


async def test_the_next_head_on_a_connection_has_its_own_deadline(house: House) -> None:
    protocol, wire = house.connect()
    protocol.data_received(GET + b"\r\n")
    await turn()
    house.later(HEAD_S + 1)
    assert wire.open  # uvicorn's own time for an idle connection
    protocol.data_received(b"GET / ")
    house.later(HEAD_S)
    assert wire.open
    house.later(1)
    assert told_last(wire) == "request_timeout"


def told_last(wire: Wire) -> str:
    return str(json.loads(wire.sent.rpartition(b"\r\n\r\n")[2])["code"])


POST = b"POST /image2image HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"


async def test_a_body_that_stands_still_is_given_up(house: House) -> None:
    protocol, wire = house.connect()
    protocol.data_received(POST + b"x" * 1000)
    await turn()
    house.later(BODY_S)
    protocol.data_received(b"x")
    house.later(1)
    assert told(wire) == (408, "request_timeout")
    await turn()
    assert house.bodies == []


async def test_a_body_that_goes_on_is_waited_for(house: House) -> None:
    protocol, wire = house.connect()
    protocol.data_received(POST)
    for _ in range(10):
        await turn()
        house.later(BODY_S)
        assert wire.open
        protocol.data_received(b"x" * BODY_BYTES)


async def test_an_answer_that_takes_long_is_waited_for(house: House) -> None:
    house.hold.clear()
    protocol, wire = house.connect()
    protocol.data_received(GET + b"\r\n")
    await turn()
    house.later(3600)
    assert wire.open
    house.hold.set()
    await turn()
    assert wire.sent.startswith(b"HTTP/1.1 200")


async def test_a_caller_that_reads_nothing_is_disconnected_and_a_slow_one_is_not(house: House) -> None:
    _, stalled = house.connect()
    _, slow = house.connect()
    for protocol in list(house.shared._all):
        protocol.data_received(GET + b"\r\n")
    await turn()
    stalled.unsent = slow.unsent = 1000
    for _ in range(STALLED_S + 2):
        slow.unsent -= 1
        house.later(1)
    assert stalled.aborted
    assert slow.open


# -- how many ----------------------------------------------------------------------------------------------------------


async def test_a_connection_too_many_can_only_probe(house: House) -> None:
    kept = [house.connect(f"10.0.1.{n}")[1] for n in range(10)]
    late, wire = house.connect("10.0.2.1")
    late.data_received(GET + b"\r\n")
    assert told(wire) == (503, "too_many_connections")
    assert b"retry-after" in wire.sent
    probe, wire = house.connect("10.0.2.2")
    probe.data_received(b"GET /livez?a=b HTTP/1.1\r\nHost: x\r\n\r\n")
    await turn()
    assert wire.sent.startswith(b"HTTP/1.1 200")
    assert all(it.open for it in kept)
    assert house.asked == ["/livez"]


async def test_one_address_does_not_take_the_place_of_the_others(house: House) -> None:
    for _ in range(5):
        house.connect()
    sixth, refused = house.connect()
    sixth.data_received(GET + b"\r\n")
    assert told(refused) == (503, "too_many_connections")
    other, wire = house.connect("10.0.0.2")
    other.data_received(GET + b"\r\n")
    await turn()
    assert wire.sent.startswith(b"HTTP/1.1 200")


async def test_a_trusted_proxy_takes_the_connections_of_all_its_callers(house: House) -> None:
    for _ in range(9):
        protocol, wire = house.connect("10.8.0.1")
        protocol.data_received(GET + b"\r\n")
        await turn()
        assert wire.sent.startswith(b"HTTP/1.1 200")


async def test_a_probe_may_have_the_prefix(house: House) -> None:
    for path, answered in ((b"/imagegen/livez", True), (b"/imagegen/tasks", False)):
        protocol, wire = house.connect(probes_only=True)
        protocol.data_received(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        await turn()
        assert wire.sent.startswith(b"HTTP/1.1 200") == answered


async def test_a_refusal_of_the_connection_has_its_page_below_the_prefix(house: House) -> None:
    protocol, wire = house.connect()
    protocol.data_received(b"nonsense\r\n\r\n")
    assert b'"/imagegen/docs/errors/malformed_request"' in wire.sent


async def test_a_closed_connection_makes_room(house: House) -> None:
    protocols = [house.connect()[0] for _ in range(5)]
    protocols[0].connection_lost(None)
    protocol, wire = house.connect()
    protocol.data_received(GET + b"\r\n")
    await turn()
    assert wire.sent.startswith(b"HTTP/1.1 200")
    for it in [*protocols[1:], protocol]:
        it.connection_lost(None)
    assert repr(house.shared) == "<Connections [0], Reserve: 0, Addresses: 0>"


async def test_the_reserve_is_for_those_who_ask_at_once(house: House) -> None:
    for n in range(10):
        house.connect(f"10.0.1.{n}")
    idle = [house.connect()[1] for _ in range(RESERVE + 3)]
    assert [it.open for it in idle] == [False] * 3 + [True] * RESERVE
    probe, wire = house.connect()
    probe.data_received(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    await turn()
    assert wire.sent.startswith(b"HTTP/1.1 200")
    house.later(connections.RESERVE_S + 1)
    assert not any(it.open for it in idle)


async def test_the_port_for_probes_answers_metrics_and_nothing_else(house: House) -> None:
    protocol, wire = house.connect(probes_only=True)
    protocol.data_received(GET + b"\r\n")
    assert told(wire) == (503, "too_many_connections")
    protocol, wire = house.connect(probes_only=True)
    protocol.data_received(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    await turn()
    assert wire.sent.startswith(b"HTTP/1.1 200")


# -- bodies ------------------------------------------------------------------------------------------------------------


async def test_bodies_on_their_way_are_bounded_together_and_small_ones_pass() -> None:
    house = House(body_bytes=10 * SMALL_BODY)
    for _ in range(3):
        hanging, wire = house.connect()
        hanging.data_received(POST)
        for _ in range(4):
            hanging.data_received(b"x" * SMALL_BODY)
            await turn()
    assert house.shared.body_bytes == 9 * SMALL_BODY
    one_more, wire = house.connect()
    one_more.data_received(POST)
    for _ in range(4):
        if wire.open:
            one_more.data_received(b"x" * SMALL_BODY)
            await turn()
    assert told(wire) == (503, "too_many_uploads")
    small, wire = house.connect()
    small.data_received(b"POST /text2image HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000)
    await turn()
    assert wire.sent.startswith(b"HTTP/1.1 200")
    hanging.connection_lost(None)
    assert house.shared.body_bytes == 6 * SMALL_BODY


async def test_an_answered_body_no_longer_counts(house: House) -> None:
    protocol, wire = house.connect()
    size = 4 * SMALL_BODY
    protocol.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    assert house.shared.body_bytes == 3 * SMALL_BODY
    await turn()
    assert wire.sent.startswith(b"HTTP/1.1 200")
    assert house.bodies == [b"x" * size]
    assert house.shared.body_bytes == 0


async def test_some_requests_ahead_of_their_answers_are_answered_in_order(house: House) -> None:
    protocol, wire = house.connect()
    paths = [f"/{number}" for number in range(1 + MAX_AHEAD)]
    protocol.data_received(b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode() for path in paths))
    for _ in range(1 + MAX_AHEAD):
        await turn()
    assert house.asked == paths
    assert wire.sent.count(b"HTTP/1.1 200") == 1 + MAX_AHEAD


async def test_requests_far_ahead_of_their_answers_are_refused_and_forgotten(house: House) -> None:
    house.hold.clear()
    protocol, wire = house.connect()
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
    await turn()
    assert told(wire) == (400, "malformed_request")
    house.hold.set()
    await turn()
    assert house.asked == ["/"]
    assert len(protocol.pipeline) == 0


async def test_answers_that_callers_do_not_take_are_bounded_together() -> None:
    house = House(unsent_bytes=1000, per_address=100)
    slow, slow_wire = house.connect("10.0.0.2")
    slow_wire.unsent = 300
    slow.pause_writing()
    hoarders = [house.connect("10.0.0.1") for _ in range(8)]
    for protocol, wire in hoarders:
        wire.unsent = 200
        protocol.pause_writing()
    assert [wire.aborted for _, wire in hoarders] == [True] * 5 + [False] * 3
    assert slow_wire.open  # of another address, which has less
    assert house.shared.unsent_bytes == 900
    slow.resume_writing()
    assert house.shared.unsent_bytes == 600
    for protocol, _ in hoarders:
        protocol.connection_lost(None)
    assert house.shared.unsent_bytes == 0
    assert not house.shared._unsent


async def test_a_service_that_ends_does_not_wait_for_a_body(house: House) -> None:
    hanging, wire = house.connect()
    hanging.data_received(POST)
    hanging.data_received(b"x")
    await turn()
    hanging.shutdown()
    assert told(wire) == (503, "draining")
    house.hold.clear()
    whole, answered = house.connect()
    whole.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
    await turn()
    whole.shutdown()
    assert not answered.sent  # its answer is waited for
    house.hold.set()
    await turn()
    assert answered.sent.startswith(b"HTTP/1.1 200")
