"""Traces: makes spans of what happens to a task, by taps of the event bus. Off unless OTLP is configured.

All spans of a task have one parent, the request that submitted it: the task keeps its traceparent, so that a later run
of the service goes on with the same trace. They are made in the service, from times that the worker sends, because the
worker has no network. They have no prompt, and no text of a caller.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import imagegen
from imagegen.core.events import (
    CallEnded,
    EventBus,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskFailed,
    TaskLoaded,
    TaskLoading,
    TaskQueued,
    TaskSaved,
    TaskStarted,
)
from imagegen.core.task import GenerationTask
from imagegen.tasks.life import LiveTask

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
    from opentelemetry.trace import TracerProvider as AnyProvider

#: Each of them turns traces on. The SDK reads them, and others that the specification has.
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

#: Characters of an attribute, unless the operator sets another limit: paths and host names are texts of callers.
_MOST = 512

#: Names of query parameters that may be in spans: those of all routes look like this, and no key does.
_PARAMETER = re.compile("[a-z_]{1,32}")

#: Seconds that the last spans have to be sent when the service ends.
_LAST_S = 2

#: These requests come every few seconds, and tell nothing.
_NOT_TRACED = frozenset({"/livez", "/readyz", "/metrics"})


def new_provider(environment: Mapping[str, str] = os.environ) -> "TracerProvider | None":
    """The provider that exports spans as the variables of OpenTelemetry say; None: traces are off."""
    off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    )
    if off or not any(environment.get(name) for name in ENDPOINTS):
        return None
    # Imported here, because it takes half a second, and memory that a service without traces need not have.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "imagegen"}
    given = any(
        environment.get(name)
        for name in ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT")
    )
    provider = TracerProvider(
        resource=Resource.create(named | {"service.version": imagegen.__version__}),
        span_limits=SpanLimits() if given else SpanLimits(max_span_attribute_length=_MOST),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(_without_values())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def http_options(provider: "AnyProvider | None") -> dict[str, Any]:
    """FastAPI's `telemetry=`: a span for each request if there is a provider, and nothing else."""
    return {
        "tracing": provider is not None,
        "tracer_provider": provider,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope["path"] in _NOT_TRACED,
    }


def end(provider: "TracerProvider") -> None:
    """Send the last spans. Blocks for at most _LAST_S; the SDK itself would wait half a minute for a dead collector."""
    last = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
    last.start()
    last.join(_LAST_S)


def _without_values() -> "SpanProcessor":
    from opentelemetry.sdk.trace import SpanProcessor

    class WithoutValues(SpanProcessor):
        """Keeps the names of query parameters only: values can be tokens of signed URLs and words of prompts."""

        def on_start(self, span: "Span", parent_context: "Context | None" = None) -> None:
            if query := (getattr(span, "attributes", None) or {}).get("url.query"):
                names = (part.partition("=")[0] for part in str(query).split("&"))
                kept = (f"{name if _PARAMETER.fullmatch(name) else 'other'}=REDACTED" for name in names)
                span.set_attribute("url.query", "&".join(kept))

        def on_end(self, span: "ReadableSpan") -> None:
            """Do nothing."""

    return WithoutValues()


@dataclass(slots=True)
class _Open:
    """The spans of a task that have not ended, by name."""

    parent: "Context"
    spans: dict[str, Span] = field(default_factory=dict)
    #: When its pictures were made, in nanoseconds of Unix time.
    made: int | None = None


class Traces:
    """Makes the spans of tasks: `queue`, `load`, `encode`, `denoise`, `decode`, `save`, and `task` for all of them."""

    def __init__(
        self, provider: "AnyProvider", live: Mapping[str, LiveTask], now: Callable[[], int] = time.time_ns
    ) -> None:
        """`live`: the tasks that have not ended, by id. `now`: nanoseconds of Unix time."""
        self._tracer = provider.get_tracer("imagegen", imagegen.__version__)
        self._live = live
        self._now = now
        self._open: dict[str, _Open] = {}

    def __repr__(self) -> str:
        return f"<Traces [Tasks: {len(self._open)}]>"

    def attach(self, bus: EventBus) -> None:
        """Make spans from now on."""
        bus.tap(TaskQueued, self._queued)
        bus.tap(TaskStarted, lambda event: self._end(event.task_id, "queue"))
        bus.tap(TaskLoading, lambda event: self._begin(event.task_id, "load"))
        bus.tap(TaskLoaded, lambda event: self._end(event.task_id, "load"))
        bus.tap(CallEnded, self._call_ended)
        bus.tap(TaskSaved, self._saved)
        bus.tap(TaskCompleted, self._ended)
        bus.tap(TaskFailed, self._ended)
        bus.tap(TaskCancelled, self._ended)

    def _queued(self, event: TaskQueued) -> None:
        again = event.task_id in self._open
        if (task := self._traced(event.task_id)) is None:
            return
        self._end(event.task_id, "load", "interrupted")
        # After a restart of the service the wait goes on, unless the task had begun.
        waits_since = self._now() if again or task.attempt else _nanoseconds(task.created_at.timestamp())
        self._begin(event.task_id, "queue", waits_since)

    def _call_ended(self, event: CallEnded) -> None:
        now, seconds = self._now(), event.seconds
        for task_id in event.task_ids:
            if self._traced(task_id) is None:
                continue
            if not event.stages:
                self._whole(task_id, "generate", now - _nanoseconds(seconds), now, event.code)
            for stage, begin_s, stage_s in event.stages:
                begin = now - _nanoseconds(seconds - begin_s)
                self._whole(task_id, stage, begin, begin + _nanoseconds(stage_s))
            self._open[task_id].made = now if event.made else None

    def _saved(self, event: TaskSaved) -> None:
        if self._traced(event.task_id) is not None and (made := self._open[event.task_id].made) is not None:
            self._open[event.task_id].made = None
            self._whole(event.task_id, "save", made, self._now())

    def _ended(self, event: TaskEvent) -> None:
        task = self._traced(event.task_id)
        if task is None:
            return
        it, now = self._open[event.task_id], self._now()
        code = task.failure.code if task.failure else None
        for name in list(it.spans):
            self._end(event.task_id, name, code or task.status)
        if it.made is not None:
            self._whole(event.task_id, "save", it.made, now, code or task.status)
        begin = min(now, _nanoseconds(task.created_at.timestamp()))
        self._whole(event.task_id, "task", begin, now, code, _about(task))
        del self._open[event.task_id]

    # -- spans --------------------------------------------------------------------------------------------------------

    def _traced(self, task_id: str) -> GenerationTask | None:
        """The record of a task that has a trace; None: it has none."""
        live = self._live.get(task_id)
        if live is None or not live.record.traceparent:
            return None
        if task_id not in self._open:
            parent = TraceContextTextMapPropagator().extract({"traceparent": live.record.traceparent})
            self._open[task_id] = _Open(parent)
        return live.record

    def _span(self, task_id: str, name: str, begin: int, more: Mapping[str, Any]) -> Span:
        model = self._live[task_id].record.model
        return self._tracer.start_span(
            name,
            self._open[task_id].parent,
            SpanKind.INTERNAL,
            {"imagegen.task_id": task_id, "imagegen.model": model, **more},
            start_time=begin,
        )

    def _begin(self, task_id: str, name: str, at: int | None = None) -> None:
        if self._traced(task_id) is not None:
            self._open[task_id].spans[name] = self._span(task_id, name, at or self._now(), {})

    def _end(self, task_id: str, name: str, problem: str | None = None) -> None:
        it = self._open.get(task_id)
        if it is not None and (span := it.spans.pop(name, None)) is not None:
            _finish(span, self._now(), problem)

    def _whole(
        self,
        task_id: str,
        name: str,
        begin: int,
        finish: int,
        problem: str | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        _finish(self._span(task_id, name, begin, more or {}), finish, problem)


def _finish(span: Span, at: int, problem: str | None) -> None:
    if problem is not None:
        span.set_attribute("error.type", problem)
        span.set_status(Status(StatusCode.ERROR))
    span.end(at)


def _about(task: GenerationTask) -> dict[str, Any]:
    request = task.request
    return {
        "imagegen.type": task.type.value,
        "imagegen.status": task.status.value,
        "imagegen.attempts": task.attempt,
        "imagegen.priority": task.priority,
        "imagegen.request_id": task.request_id,
        "imagegen.pictures": request.batch_size,
        "imagegen.width": request.width,
        "imagegen.height": request.height,
        "imagegen.steps": request.steps,
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
