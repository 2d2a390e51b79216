"""Addresses of webhooks: a server on this machine checks that no forbidden request arrives."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Network
from itertools import cycle
from typing import Any

import pytest
from ssrfguard import Policy

from imagegen.core.errors import UrlNotAllowed
from imagegen.settings import Settings
from imagegen.webhooks.client import Answer, GuardedClient, policy_of
from tests.receiver import Receiver, receiving

#: `{port}` is the canary's. With a list of allowed ports that has it, and plain http, only the address is in the way.
ADDRESSES = [
    "http://127.0.0.1:{port}/",
    "http://127.0.0.2:{port}/",
    "http://127.1:{port}/",
    "http://2130706433:{port}/",
    "http://017700000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0:{port}/",
    "http://0.0.0.0:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://127。0。0。1:{port}/",
    "http://169.254.169.254:{port}/latest/meta-data/",
    "http://10.0.0.1:{port}/",
    "http://192.168.0.1:{port}/",
    "http://172.16.0.1:{port}/",
    "http://100.64.0.1:{port}/",
    "http://[fd00::1]:{port}/",
    "http://224.0.0.1:{port}/",
    "http://255.255.255.255:{port}/",
]
#: How the two readers of a URL might be made to disagree, and what is no URL of ours.
SHAPES = [
    "http://example.com@127.0.0.1:{port}/",
    "http://user:password@example.com/",
    "http://127.0.0.1:{port}\\@example.com/",
    "http:\\\\127.0.0.1:{port}/",
    "http://example.com\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@example.com/",
    "http://exa\tmple.com/",
    "http://127.0.0.1%2f:{port}/",
    "http://localhost%00.example.com/",
    "http:///127.0.0.1:{port}/",
    "http://",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/",
    "ftp://127.0.0.1:{port}/",
    "http://example.com:22/",
    "http://example.com:0/",
    "http://example.com:99999/",
    "http://\ud800.example.com/",
    "http://[::1",
    "http://a..b/",
    "http://ⓛocalhost:{port}/",
]
#: Names are not looked up before the first attempt; then each of these leads here.
NAMES = [
    "http://localhost:{port}/",
    "http://LOCALHOST.:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
]


@pytest.fixture
def canary() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def client_for(*ports: int, timeout_s: float = 5, resolver: Any = socket.getaddrinfo, **policy: Any) -> GuardedClient:
    return GuardedClient(Policy(allowed_ports=frozenset({80, 443, *ports}), **policy), timeout_s, resolver)


def answering(*addresses: str) -> Any:
    """A resolver that returns each address in turn, in a cycle, and counts its calls."""
    given = cycle(addresses)

    def resolve(host: str, port: int, *_: object) -> Any:
        resolve.calls += 1  # type: ignore[attr-defined]
        found = next(given).split()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    resolve.calls = 0  # type: ignore[attr-defined]
    return resolve


async def test_the_canary_sings_when_it_is_reached(canary: Receiver) -> None:
    client = client_for(canary.port, allowed_networks=(IPv4Network("127.0.0.0/8"),))
    assert await client.post(canary.url(), "{}", {}) == Answer(200)
    assert canary.connections == 1


@pytest.mark.parametrize("url", ADDRESSES + SHAPES)
async def test_a_url_that_leads_inside_is_refused_at_once_and_sent_nothing(canary: Receiver, url: str) -> None:
    client, url = client_for(canary.port), url.format(port=canary.port)
    with pytest.raises(UrlNotAllowed) as refused:
        client.check(url)
    assert refused.value.detail == UrlNotAllowed().detail  # the same for all, so that it is no scanner
    assert await client.post(url, "{}", {}) == Answer(error="url_not_allowed")
    assert canary.connections == 0


@pytest.mark.parametrize("url", NAMES)
async def test_a_name_that_leads_inside_is_sent_nothing(canary: Receiver, url: str) -> None:
    client, url = client_for(canary.port), url.format(port=canary.port)
    client.check(url)
    assert await client.post(url, "{}", {}) == Answer(error="url_not_allowed")
    assert canary.connections == 0


async def test_a_name_is_looked_up_once_and_the_address_that_was_checked_is_the_one_that_is_reached(
    canary: Receiver,
) -> None:
    resolve = answering("127.0.0.1", "127.0.0.2")
    with receiving(canary.port, "127.0.0.2") as inside:
        client = client_for(canary.port, resolver=resolve, allowed_networks=(IPv4Network("127.0.0.1/32"),))
        url = f"http://rebinding.example:{canary.port}/"
        assert await client.post(url, "{}", {}) == Answer(200)
        assert (resolve.calls, canary.connections, inside.connections) == (1, 1, 0)
        assert canary.received[0].headers["host"] == f"rebinding.example:{canary.port}"
        assert await client.post(url, "{}", {}) == Answer(error="url_not_allowed")
        assert (resolve.calls, canary.connections, inside.connections) == (2, 1, 0)


async def test_a_name_with_an_address_outside_and_one_inside_is_sent_nothing(canary: Receiver) -> None:
    resolve = answering("127.0.0.1 127.0.0.2")
    client = client_for(canary.port, resolver=resolve, allowed_networks=(IPv4Network("127.0.0.1/32"),))
    answer = await client.post(f"http://both.example:{canary.port}/", "{}", {})
    assert (answer, canary.connections) == (Answer(error="url_not_allowed"), 0)


async def test_a_redirect_to_the_inside_is_a_failure_and_is_not_followed(canary: Receiver) -> None:
    with receiving(0, "127.0.0.2") as inside:
        canary.replies_with("/", (302, {"location": inside.url().replace("127.0.0.1", "127.0.0.2")}))
        ports = (canary.port, inside.port)
        client = client_for(*ports, allowed_networks=(IPv4Network("127.0.0.0/8"),))
        answer = await client.post(canary.url(), "{}", {})
        assert (answer.status, answer.arrived, answer.problem, inside.connections) == (302, False, "status 302", 0)


async def test_a_host_without_an_address_is_not_allowed() -> None:
    def unknown(*_: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    client = client_for(resolver=unknown)
    assert await client.post("https://no.example/", "{}", {}) == Answer(error="url_not_allowed")


async def test_a_lookup_that_hangs_fails_one_attempt_and_delays_no_other() -> None:
    let = threading.Event()

    def hang(*_: object) -> Any:
        let.wait(60)
        return []

    client = client_for(resolver=hang, timeout_s=0.1)
    try:
        assert await client.post("https://slow.example/", "{}", {}) == Answer(error="timeout")
    finally:
        let.set()


async def test_a_port_that_nothing_listens_on_is_refused() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        client = client_for(port, allowed_networks=(IPv4Network("127.0.0.0/8"),))
        assert await client.post(f"http://127.0.0.1:{port}/", "{}", {}) == Answer(error="refused")


async def test_a_server_without_tls_gets_nothing(canary: Receiver) -> None:
    client = client_for(canary.port, allowed_networks=(IPv4Network("127.0.0.0/8"),))
    answer = await client.post(canary.url().replace("http:", "https:"), "{}", {})
    assert (answer, canary.received) == (Answer(error="tls_failed"), [])


async def test_an_answer_of_any_length_is_not_read(canary: Receiver) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b"10000\r\n" + bytes(65_536) + b"\r\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = client_for(port, allowed_networks=(IPv4Network("127.0.0.0/8"),))
    assert await client.post(f"http://127.0.0.1:{port}/", "{}", {}) == Answer(200)
    server.close()


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "settings", "allowed"),
    [
        ("https://example.com/hook?a=b", {}, True),
        ("https://example.com:8443/", {}, False),
        ("https://example.com:8443/", {"webhook_ports": "443,8443"}, True),
        ("http://example.com/", {}, False),
        ("http://example.com/", {"webhook_http": "true"}, True),
        ("https://10.1.2.3/", {}, False),
        ("https://10.1.2.3/", {"webhook_networks": "10.1.0.0/16"}, True),
        ("https://10.2.2.3/", {"webhook_networks": "10.1.0.0/16"}, False),
        ("https://example.com/", {"webhook_hosts": "example.org"}, False),
        ("https://hooks.example.com/", {"webhook_hosts": "*.Example.com"}, True),
        ("https://evil-example.com/", {"webhook_hosts": "*.example.com,example.com"}, False),
        ("https://93.184.216.34/", {"webhook_hosts": "*.example.com"}, False),
    ],
)
def test_the_operator_sets_the_hosts_of_webhooks(url: str, settings: dict[str, str], allowed: bool) -> None:
    client = GuardedClient(policy_of(Settings(**settings)), 1)  # type: ignore[arg-type]
    if allowed:
        client.check(url)
    else:
        with pytest.raises(UrlNotAllowed):
            client.check(url)
