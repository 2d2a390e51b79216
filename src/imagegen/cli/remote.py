"""Remote: the connection of the commands to a service. It uses the public HTTP API and nothing else."""

import json
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import httpx
import typer

from imagegen.cli.common import EX_CANTCREAT, EX_DATAERR, EX_NOPERM, EX_TEMPFAIL, EX_UNAVAILABLE, fail

Json = dict[str, Any]

#: Seconds without a byte after which a stream counts as broken. The service sends something every 15 seconds.
SILENCE_S = 45

#: Broken connections in a row after which a command gives up, and the seconds between two tries.
TRIES = 5
PAUSE_S = 1

#: The exit codes of refused requests by their HTTP status; 65 for other errors of the request.
_EXITS = {401: EX_NOPERM, 403: EX_NOPERM, 429: EX_TEMPFAIL, 503: EX_TEMPFAIL, 507: EX_CANTCREAT}


class Remote:
    """A service. Every method ends the command with a message and an exit code if the service refuses."""

    def __init__(self, url: str, key: str | None, transport: httpx.BaseTransport | None = None) -> None:
        """`transport`: of tests."""
        if not _is_address(url):
            raise typer.BadParameter(f"{url} is not an http or https URL", param_hint="--server")
        if key and not (key.isascii() and key.isprintable()):
            raise typer.BadParameter("keys have letters, digits and punctuation of ASCII only", param_hint="--key")
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=60, follow_redirects=True, transport=transport
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Json:
        given = {name: value for name, value in query.items() if value is not None}
        return self._object(self._send("GET", path, params=given))

    def post(self, path: str, body: Json | None = None) -> Json:
        return self._object(self._send("POST", path, json=body))

    def file(self, path: str) -> bytes:
        """The bytes of a picture."""
        return self._send("GET", path).content

    def events(self, path: str) -> Iterator[Json]:
        """The events of a stream until it ends for good. A broken stream is continued where it stopped."""
        after, tries = 0, 0
        while True:
            try:
                for event_id, event in self._stream(path, after):
                    after, tries = event_id, 0
                    if event["type"] == "closed":
                        break
                    yield event
                else:
                    return
            except httpx.TransportError as error:
                if tries >= TRIES:
                    self._give_up(error)
            tries += 1
            time.sleep(PAUSE_S)

    def _stream(self, path: str, after: int) -> Iterator[tuple[int, Json]]:
        headers = {"Last-Event-ID": str(after)}
        with self._http.stream("GET", path, headers=headers, timeout=httpx.Timeout(60, read=SILENCE_S)) as response:
            if response.is_error:
                response.read()
                refuse(response)
            data = "{}"
            for line in response.iter_lines():
                if line.startswith("data: "):
                    data = line.removeprefix("data: ")
                elif line.startswith("id: "):
                    yield int(line.removeprefix("id: ")), json.loads(data)

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **request)
        except httpx.RequestError as error:
            self._give_up(error)
        return response if response.is_success else refuse(response)

    def _object(self, response: httpx.Response) -> Json:
        try:
            return dict(response.json())
        except (ValueError, TypeError):
            fail(f"what answers at {self.url} is not imagegen: its answer is not a JSON object", EX_UNAVAILABLE)

    def _give_up(self, error: httpx.RequestError) -> NoReturn:
        reason = str(error) or type(error).__name__
        fail(f"cannot reach the service at {self.url}: {reason}", EX_UNAVAILABLE)


def _is_address(url: str) -> bool:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parts.scheme in ("http", "https") and bool(parts.host)


def connect(context: typer.Context, url: str, key: str | None) -> Remote:
    """The service at a URL, until the command ends."""
    remote = Remote(url, key)
    context.call_on_close(remote.close)
    return remote


def refuse(response: httpx.Response) -> NoReturn:
    """End the command with what a service answered."""
    try:
        problem = response.json()
        message = f"{problem['code']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        message = f"the service answered {response.status_code} {response.reason_phrase}"
    status = response.status_code
    usual = EX_UNAVAILABLE if status >= 500 else EX_DATAERR
    fail(message, _EXITS.get(status, usual))
