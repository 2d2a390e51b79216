"""A receiver of webhooks on a real socket: it verifies with the official library, and answers as a test sets it."""

import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from standardwebhooks import Webhook

PATIENCE_S = 60

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLDER_SECRET = "whsec_bGV0IG1lIGJlIHRoZSBvbGRlciBvZiB0aGUgdHdv"


@dataclass(frozen=True)
class Received:
    """One attempt as the receiver saw it."""

    path: str
    headers: dict[str, str]
    body: str

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str = SECRET) -> dict[str, Any]:
        """The content. Raises WebhookVerificationError."""
        return dict(Webhook(secret).verify(self.body, self.headers))


#: What is answered: a status; one with headers; or a fault.
Reply = int | tuple[int, dict[str, str]] | str


@dataclass
class Receiver:
    """Answers 200, or the `replies` of the path one after the other; the last one is repeated."""

    port: int = 0
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    replies: dict[str, list[Reply]] = field(default_factory=lambda: defaultdict(list))
    #: Let go what hangs.
    over: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def replies_with(self, path: str, *replies: Reply) -> None:
        self.replies[path] = list(replies)

    def next_reply(self, path: str) -> Reply:
        left = self.replies[path]
        return (left.pop(0) if len(left) > 1 else left[0]) if left else 200

    def at(self, path: str) -> list[Received]:
        return [each for each in self.received if each.path == path]

    def until(self, path: str, number: int = 1) -> list[Received]:
        """Wait until a path has had this many attempts."""
        deadline = time.monotonic() + PATIENCE_S
        while len(found := self.at(path)) < number:
            assert time.monotonic() < deadline, f"{len(found)} of {number} at {path}"
            time.sleep(0.005)
        return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    receiver: ClassVar[Receiver]

    def get_request(self) -> tuple[socket.socket, Any]:
        self.receiver.connections += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error of a sender that disconnected."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        announced = int(self.headers["content-length"])
        body = self.rfile.read(announced).decode()
        if len(body.encode()) < announced:
            return  # the sender was killed
        headers = {name.lower(): value for name, value in self.headers.items()}
        receiver = self.server.receiver
        reply = receiver.next_reply(self.path)
        receiver.received.append(Received(self.path, headers, body))
        if reply == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
        elif reply == "hang":
            receiver.over.wait(PATIENCE_S)
        elif reply == "drip":
            self._drip(receiver.over)
        else:
            self._answer(reply)

    def _answer(self, reply: Reply) -> None:
        status, headers = reply if isinstance(reply, tuple) else (int(reply), {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def _drip(self, over: threading.Event) -> None:
        """Send one header after the other, slowly and without end."""
        self.send_response(200)
        while not over.wait(0.05):
            self.wfile.write(b"x-drip: 1\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing to stderr."""


@contextmanager
def receiving(port: int = 0, address: str = "127.0.0.1") -> Iterator[Receiver]:
    """A receiver in a thread."""
    receiver = Receiver()
    server = type("Server", (_Server,), {"receiver": receiver})((address, port), _Handler)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def hooks(*receivers: Receiver, secrets: Sequence[str] = (SECRET,), delays_s: str = "0.05,0.05,0.05") -> dict[str, str]:
    """Settings of a service that may send to these receivers, by field names."""
    return {
        "webhook_secrets": ",".join(secrets),
        "webhook_networks": "127.0.0.0/8,::1/128",
        "webhook_ports": ",".join(str(receiver.port) for receiver in receivers) or "443",
        "webhook_http": "true",
        "webhook_timeout_s": "5",
        "webhook_delays_s": delays_s,
    }


def as_variables(settings: dict[str, str]) -> dict[str, str]:
    """The same settings as environment variables."""
    return {f"IMAGEGEN_{name.upper()}": value for name, value in settings.items()}


def bodies(received: Sequence[Received]) -> list[dict[str, Any]]:
    return [dict(json.loads(each.body)) for each in received]
