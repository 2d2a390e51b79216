"""GuardedClient: posts only to allowed addresses, and connects to the address that it checked."""

import _thread
import asyncio
import socket
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from http import HTTPStatus
from typing import NamedTuple

import httpx
from ssrfguard import Policy, Resolver, SSRFGuardError
from ssrfguard.httpx import AsyncSafeTransport

import imagegen
from imagegen.core.errors import UrlNotAllowed
from imagegen.settings import Settings

USER_AGENT = f"imagegen/{imagegen.__version__}"

#: For plain HTTP, which needs no authorities.
_TRUSTS_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

#: A result of getaddrinfo: family, type, protocol, canonical name, address.
Found = tuple[int, int, int, str, tuple[object, ...]]


class Answer(NamedTuple):
    """The result of an attempt: the receiver's status, or status 0 and a stable code (`error`)."""

    status: int = 0
    error: str | None = None
    retry_after: str | None = None

    @property
    def arrived(self) -> bool:
        return 200 <= self.status < 300

    @property
    def gone(self) -> bool:
        """Whether the receiver answered 410 Gone."""
        return self.status == HTTPStatus.GONE

    @property
    def problem(self) -> str | None:
        """Why the attempt failed; None: it succeeded."""
        if self.error is not None or self.arrived:
            return self.error
        return "gone" if self.gone else f"status {self.status}"


def policy_of(settings: Settings) -> Policy:
    """The addresses that the settings allow."""
    return Policy(
        allowed_schemes=frozenset({"https", "http"} if settings.webhook_http else {"https"}),
        allowed_ports=settings.webhook_ports,
        allowed_hosts=settings.webhook_hosts,
        allowed_networks=settings.webhook_networks,
    )


class GuardedClient:
    """Posts webhooks. It resolves a name once, checks every address, and connects to one of those.

    Each attempt uses a new connection, so that no cookie passes from one to the next. It takes neither proxies
    nor credentials from the environment, and follows no redirects.
    """

    def __init__(self, policy: Policy, timeout_s: float, resolver: Resolver = socket.getaddrinfo) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._resolver = resolver

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """certifi's authorities, and those that the system trusts (SSL_CERT_FILE names another file)."""
        context = httpx.create_ssl_context(trust_env=False)
        context.load_default_certs()
        return context

    def check(self, url: str) -> None:
        """Check a URL without the network. Raises UrlNotAllowed."""
        try:
            self._checked(url)
        except (SSRFGuardError, httpx.InvalidURL, ValueError):
            raise UrlNotAllowed from None

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> Answer:
        """Make one attempt within the timeout. The body of the answer is not read."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(self._checked(url), body, headers)
        except (TimeoutError, httpx.TimeoutException):
            return Answer(error="timeout")
        except (SSRFGuardError, socket.gaierror, httpx.InvalidURL, ValueError):
            # The same code for a forbidden address and for an unknown name, so that it does not tell which names exist.
            return Answer(error="url_not_allowed")
        except httpx.ConnectError as error:
            return Answer(error="tls_failed" if _is_tls(error) else "refused")
        except (httpx.HTTPError, OSError):
            return Answer(error="broken_off")

    def _checked(self, url: str) -> httpx.URL:
        """The URL as the HTTP client parses it, so that the checked host is the host that is used."""
        parsed = httpx.URL(url)
        self._policy.check_url(str(parsed))
        return parsed

    async def _post(self, url: httpx.URL, body: str, headers: Mapping[str, str]) -> Answer:
        target = self._policy.check_url(str(url))
        found = await _look_up(self._resolver, target.host, target.port)
        own = {"content-type": "application/json", "user-agent": USER_AGENT}
        timeouts = httpx.Timeout(self._timeout_s, connect=self._timeout_s / 3).as_dict()  # time for a second address
        request = httpx.Request(
            "POST", url, headers=own | dict(headers), content=body.encode(), extensions={"timeout": timeouts}
        )
        # It takes a while to read all the authorities.
        tls = await asyncio.to_thread(lambda: self._tls) if url.scheme == "https" else _TRUSTS_NOBODY
        transport = AsyncSafeTransport(policy=self._policy, resolver=lambda *_: found, verify=tls, trust_env=False)
        async with transport:
            response = await transport.handle_async_request(request)
            await response.aclose()
        return Answer(response.status_code, retry_after=response.headers.get("retry-after"))


async def _look_up(resolver: Resolver, host: str, port: int) -> list[Found]:
    """Resolve a host in a daemon thread, because a lookup cannot be cancelled and must not delay a timeout or the exit.

    `threading.Thread` would block the event loop until the thread runs: for 8 ms, measured on two busy cores.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[Found]] = loop.create_future()

    def settle(found: Iterable[Found], error: Exception | None) -> None:
        if answer.done():  # the attempt has timed out
            return
        if error is None:
            answer.set_result(list(found))
        else:
            answer.set_exception(error)

    def work() -> None:
        found: Iterable[Found] = ()
        error: Exception | None = None
        try:
            found = resolver(host, port, 0, socket.SOCK_STREAM)
        except (OSError, ValueError) as raised:
            error = raised
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(settle, found, error)

    _thread.start_new_thread(work, ())
    return await answer


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
