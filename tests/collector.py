"""A collector of OpenTelemetry on a real socket: it receives spans over OTLP, HTTP and protobuf."""

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PATIENCE_S = 60


@dataclass(frozen=True)
class Received:
    """A span."""

    name: str
    trace: str
    id: str
    parent: str
    #: Nanoseconds of Unix time.
    begin: int
    end: int
    attributes: dict[str, Any]
    failed: bool


@dataclass
class Collector:
    """What has arrived."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def spans(self) -> list[Received]:
        return [span for body in list(self.bodies) for span in _spans(body)]

    def trace(self, trace: str) -> list[Received]:
        return [span for span in self.spans if span.trace == trace]

    @property
    def resource(self) -> dict[str, Any]:
        message = ExportTraceServiceRequest.FromString(self.bodies[0])
        return _values(message.resource_spans[0].resource.attributes)

    def until(self, name: str, trace: str) -> list[Received]:
        """The spans of a trace once one with this name has arrived."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = self.trace(trace)
            if any(span.name == name for span in found):
                return found
            time.sleep(0.02)
        raise AssertionError([span.name for span in self.trace(trace)])


def _values(attributes: Any) -> dict[str, Any]:
    return {it.key: getattr(it.value, it.value.WhichOneof("value")) for it in attributes}


def _spans(body: bytes) -> Iterator[Received]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            for it in scope.spans:
                ids = (it.trace_id.hex(), it.span_id.hex(), it.parent_span_id.hex())
                times = (it.start_time_unix_nano, it.end_time_unix_nano)
                yield Received(it.name, *ids, *times, _values(it.attributes), it.status.code == 2)


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector until the context ends."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            assert self.headers["content-type"] == "application/x-protobuf"
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            collector.bodies.append(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
