"""GuardedClient: sends to where it may, at the address that it has checked, and with nothing that was not given."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple

import httpx
from ssrfguard import Policy, Resolver, SSRFGuardError
from ssrfguard.httpx import AsyncSafeTransport

import imagegen
from imagegen.core.errors import UrlNotAllowed
from imagegen.settings import Settings

USER_AGENT = f"imagegen/{imagegen.__version__}"


#: As getaddrinfo gives it: family, type, protocol, canonical name, address.
Found = tuple[int, int, int, str, tuple[object, ...]]


class Answer(NamedTuple):
    """What became of an attempt: the receiver's status, or 0 and a stable word for why there is none."""

    status: int = 0
    error: str | None = None
    retry_after: str | None = None

    @property
    def arrived(self) -> bool:
        return 200 <= self.status < 300

    @property
    def gone(self) -> bool:
        """Whether the receiver wants nothing more at this URL."""
        return self.status == HTTPStatus.GONE

    @property
    def word(self) -> str | None:
        """Why the attempt failed; None: it did not."""
        if self.error is not None or self.arrived:
            return self.error
        return "gone" if self.gone else f"status {self.status}"


def policy_of(settings: Settings) -> Policy:
    """Where the settings let us send to."""
    return Policy(
        allowed_schemes=frozenset({"https", "http"} if settings.webhook_http else {"https"}),
        allowed_ports=settings.webhook_ports,
        allowed_hosts=settings.webhook_hosts,
        allowed_networks=settings.webhook_networks,
    )


class GuardedClient:
    """Posts. It looks a name up once, checks every address that it has, and connects to one of those.

    Each attempt has a connection of its own: no cookie, and nothing else, passes from one to the next. Neither proxies
    nor credentials are taken from the environment, and redirects are not followed.
    """

    def __init__(self, policy: Policy, timeout_s: float, resolver: Resolver = socket.getaddrinfo) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._resolver = resolver
        # The usual authorities, and what the system trusts (SSL_CERT_FILE names another file of those).
        self._tls = httpx.create_ssl_context(trust_env=False)
        self._tls.load_default_certs()

    def check(self, url: str) -> None:
        """Whether one may send there, as far as can be told without the network. Raises UrlNotAllowed."""
        try:
            self._checked(url)
        except (SSRFGuardError, httpx.InvalidURL, ValueError):
            raise UrlNotAllowed from None

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> Answer:
        """One attempt, within the timeout. Nothing of the answer's body is read."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(self._checked(url), body, headers)
        except (TimeoutError, httpx.TimeoutException):
            return Answer(error="timeout")
        except (SSRFGuardError, socket.gaierror, httpx.InvalidURL, ValueError):
            # One word for a forbidden address and for none at all: it is no telling what names there are.
            return Answer(error="url_not_allowed")
        except httpx.ConnectError as error:
            return Answer(error="tls_failed" if _is_tls(error) else "refused")
        except (httpx.HTTPError, OSError):
            return Answer(error="broken_off")

    def _checked(self, url: str) -> httpx.URL:
        """The URL as the client reads it: what is checked must be what is sent to."""
        parsed = httpx.URL(url)
        self._policy.check_url(str(parsed))
        return parsed

    async def _post(self, url: httpx.URL, body: str, headers: Mapping[str, str]) -> Answer:
        target = self._policy.check_url(str(url))
        found = await _look_up(self._resolver, target.host, target.port)
        own = {"content-type": "application/json", "user-agent": USER_AGENT}
        timeouts = httpx.Timeout(self._timeout_s, connect=self._timeout_s / 3).as_dict()  # room for a second address
        request = httpx.Request(
            "POST", url, headers=own | dict(headers), content=body.encode(), extensions={"timeout": timeouts}
        )
        transport = AsyncSafeTransport(
            policy=self._policy, resolver=lambda *_: found, verify=self._tls, trust_env=False
        )
        async with transport:
            response = await transport.handle_async_request(request)
            await response.aclose()
        return Answer(response.status_code, retry_after=response.headers.get("retry-after"))


async def _look_up(resolver: Resolver, host: str, port: int) -> list[Found]:
    """The addresses of a host.

    In a thread that nobody waits for: a lookup cannot be cancelled, and must hold neither an attempt nor the exit.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[Found]] = loop.create_future()

    def settle(found: Iterable[Found], error: Exception | None) -> None:
        if answer.done():  # nobody wants it any more
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
        with suppress(RuntimeError):  # the service has left meanwhile
            loop.call_soon_threadsafe(settle, found, error)

    threading.Thread(target=work, name="webhook lookup", daemon=True).start()
    return await answer


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
