"""Metrics: counts and times what happens, by taps of the event bus, in the form that Prometheus reads."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from imagegen.core.errors import FailureCode
from imagegen.core.events import (
    CallEnded,
    ConfigChanged,
    ConfigRejected,
    EventBus,
    ModelFailed,
    ModelLoaded,
    ModelUnloaded,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskQueued,
    TaskSaved,
    TaskStarted,
    WorkerEnd,
    WorkerReplaced,
)
from imagegen.storage.journal import TaskJournal
from imagegen.storage.outbox import Outcome
from imagegen.tasks.device import Device
from imagegen.tasks.life import LiveTask

M = TypeVar("M", Counter, Histogram)

#: Upper bounds of buckets, in seconds: of waits and whole tasks, of stages and loads, of steps, of the disk, of HTTP.
_TASK_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_STAGE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 900)
_STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_DISK_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_HTTP_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 10, 30, 60)

#: The label of all models that are not configured any more. No model can have this id.
REMOVED = "(removed)"

#: The label of all requests without a route, and of methods that HTTP does not have.
OTHER = "other"

_SOURCES = ("start", "file", "signal", "rest", "rollback")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def priority_class(priority: int) -> str:
    """The label of a priority: callers choose any number, and a label must not."""
    if priority == 0:
        return "normal"
    return "high" if priority < 0 else "low"


@dataclass(slots=True)
class _Seen:
    """Moments of a task that has not ended, in seconds of the clock."""

    queued: float | None = None
    made: float | None = None


class Metrics:
    """Owns the counters and histograms. Event loop only.

    The labels of all of them come from the configuration or from fixed sets, never from a caller's text: a model that
    is not configured counts as `(removed)`, and the series of a model go when its entry does.
    """

    def __init__(
        self, device: Device, live: Mapping[str, LiveTask], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`live`: the tasks that have not ended, by id. `clock`: seconds."""
        self._models = device.models
        self._queue = device.queue
        self._live = live
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        #: Whether a model has left the device to make room for the one that is loaded next.
        self._made_room = False
        self._known: dict[tuple[Any, tuple[str, ...]], Any] = {}
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"imagegen_{name}", about, labels, registry=registry)

        def histogram(name: str, about: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"imagegen_{name}_seconds", about, labels, registry=registry, buckets=bounds)

        self._tasks = counter("tasks", "Tasks that have ended.", "model", "end", "code")
        self._images = counter("images", "Pictures of completed tasks.", "model")
        self._swaps = counter("swaps", "Loads for which another model had to leave the device.", "model")
        self._avoided = counter(
            "swaps_avoided",
            "Tasks that ran on a model in device memory while the first task in line waited for a model that was not.",
            "model",
        )
        self._unloads = counter("unloads", "Models that left the device.", "model", "reason")
        self._quarantines = counter("quarantines", "Quarantines of models.", "model")
        self._restarts = counter("worker_restarts", "Worker processes that were replaced.", "reason")
        self._reloads = counter("config_reloads", "Configurations that came in force.", "source")
        self._rejections = counter("config_rejections", "Configuration files that were invalid.", "source")
        self._webhooks = counter("webhook_attempts", "Attempts to deliver a webhook.", "outcome")
        self._requests = counter("http_requests", "HTTP requests that were answered.", "method", "route", "status")
        self._wait_s = histogram("queue_wait", "From the queue to the start.", _TASK_S, "model", "priority")
        self._e2e_s = histogram("e2e", "From the acceptance of a task to its completion.", _TASK_S, "model")
        self._load_s = histogram("load", "Loads; tasks whose model was resident waited 0.", _STAGE_S, "model", "tier")
        self._stage_s = histogram("stage", "A stage of a picture or of a shared call.", _STAGE_S, "model", "stage")
        self._step_s = histogram("step", "The mean denoising step of a call.", _STEP_S, "model")
        self._commit_s = histogram("journal_commit", "Commits of the journal.", _DISK_S, "durable")
        self._request_s = histogram("http_request", "HTTP requests, without streams.", _HTTP_S, "method", "route")
        # A series that is there from the start has 0 to grow from; `increase` misses the first step of any other.
        for metric, labels in (
            (self._restarts, get_args(WorkerEnd)),
            (self._webhooks, get_args(Outcome)),
            (self._reloads, _SOURCES),
            (self._rejections, _SOURCES),
        ):
            for label in labels:
                metric.labels(label)
        self._of_models = (
            *(self._tasks, self._images, self._swaps, self._avoided, self._unloads, self._quarantines),
            *(self._wait_s, self._e2e_s, self._load_s, self._stage_s, self._step_s),
        )

    def __repr__(self) -> str:
        return f"<Metrics [Live: {len(self._seen)}]>"

    def attach(self, bus: EventBus, journal: TaskJournal) -> None:
        """Count from now on."""
        bus.tap(TaskQueued, self._queued)
        bus.tap(TaskStarted, self._started)
        bus.tap(CallEnded, self._call_ended)
        bus.tap(TaskSaved, self._saved)
        bus.tap(TaskCompleted, self._completed)
        bus.tap(TaskFailed, self._failed)
        bus.tap(TaskCancelled, self._cancelled)
        bus.tap(ModelLoaded, self._loaded)
        bus.tap(ModelUnloaded, self._unloaded)
        bus.tap(ModelFailed, self._model_failed)
        bus.tap(WorkerReplaced, lambda it: self._series(self._restarts, it.reason).inc())
        bus.tap(ConfigChanged, self._config_changed)
        bus.tap(ConfigRejected, lambda it: self._series(self._rejections, it.source).inc())
        journal.on_commit(self._committed)
        journal.outbox.on_outcome = lambda outcome, number: self._series(self._webhooks, outcome).inc(number)

    def answered(self, method: str, route: str | None, status: int, seconds: float | None) -> None:
        """Count an HTTP request. `route`: the template of its path; `seconds`: None for a stream."""
        method, route = method if method in _METHODS else OTHER, route or OTHER
        self._series(self._requests, method, route, str(status)).inc()
        if seconds is not None:
            self._series(self._request_s, method, route).observe(seconds)

    def _series(self, metric: M, *labels: str) -> M:
        """The series with these labels. prometheus_client itself takes five times as long to find one."""
        key = (metric, labels)
        if key not in self._known:
            self._known[key] = metric.labels(*labels)
        known: M = self._known[key]
        return known

    # -- tasks --------------------------------------------------------------------------------------------------------

    def _queued(self, event: TaskQueued) -> None:
        if event.task_id in self._live:
            self._seen[event.task_id] = _Seen(queued=self._clock())

    def _started(self, event: TaskStarted) -> None:
        live, seen = self._live.get(event.task_id), self._seen.get(event.task_id)
        if live is None or seen is None or seen.queued is None:
            return
        record, model = live.record, self._label(live.record.model)
        self._series(self._wait_s, model, priority_class(record.priority)).observe(self._clock() - seen.queued)
        if self._models.resident(record.model) is None:
            return
        self._series(self._load_s, model, "resident").observe(0)
        first = self._queue.lanes.front
        passed_over = first is not None and first.place < (record.priority, record.sequence)
        if first is not None and passed_over and self._models.resident(first.model) is None:
            self._series(self._avoided, model).inc()

    def _call_ended(self, event: CallEnded) -> None:
        if not event.made:
            return
        model, now = self._label(event.model), self._clock()
        for task_id in event.task_ids:
            if (seen := self._seen.get(task_id)) is not None:
                seen.made = now
        for stage, _, seconds in event.stages:
            self._series(self._stage_s, model, stage).observe(seconds)
        denoised = sum(it.seconds for it in event.stages if it.stage == "denoise")
        if event.steps and event.stages:
            self._series(self._step_s, model).observe(denoised / event.steps)

    def _saved(self, event: TaskSaved) -> None:
        live, seen = self._live.get(event.task_id), self._seen.get(event.task_id)
        if live is not None and seen is not None and seen.made is not None:
            self._series(self._stage_s, self._label(live.record.model), "save").observe(self._clock() - seen.made)

    def _completed(self, event: TaskCompleted) -> None:
        live = self._live.get(event.task_id)
        self._ended(event.task_id, "completed")
        if live is None:
            return
        record, model = live.record, self._label(live.record.model)
        self._series(self._images, model).inc(len(event.images))
        if record.completed_at is not None:
            # By the wall clock, because the task may be of an earlier run of the service.
            seconds = (record.completed_at - record.created_at).total_seconds()
            self._series(self._e2e_s, model).observe(max(0.0, seconds))

    def _failed(self, event: TaskFailed) -> None:
        self._ended(event.task_id, "failed", event.failure.code)

    def _cancelled(self, event: TaskCancelled) -> None:
        self._ended(event.task_id, "cancelled")

    def _ended(self, task_id: str, end: str, code: str = "") -> None:
        self._seen.pop(task_id, None)
        if (live := self._live.get(task_id)) is not None:
            series = self._series(self._tasks, self._label(live.record.model), end, code)
            # Those who scrape OpenMetrics see which task was the latest one with this code.
            series.inc(1, {"task_id": task_id} if code else None)

    # -- models -------------------------------------------------------------------------------------------------------

    def _label(self, model: str) -> str:
        return model if model in self._models.catalog.models else REMOVED

    def _loaded(self, event: ModelLoaded) -> None:
        model = self._label(event.model)
        self._series(self._load_s, model, "warm" if event.warm else "cold").observe(event.seconds)
        if self._made_room:
            self._series(self._swaps, model).inc()
        self._made_room = False

    def _unloaded(self, event: ModelUnloaded) -> None:
        self._series(self._unloads, self._label(event.model), event.reason).inc()
        self._made_room = self._made_room or event.reason == "switch"

    def _model_failed(self, event: ModelFailed) -> None:
        self._made_room = False
        if event.failure.code is FailureCode.MODEL_QUARANTINED:
            self._series(self._quarantines, self._label(event.model)).inc()

    # -- everything else ----------------------------------------------------------------------------------------------

    def _config_changed(self, event: ConfigChanged) -> None:
        self._series(self._reloads, event.source).inc()
        for model in event.removed:
            for metric in self._of_models:
                metric.remove_by_labels({"model": model})
        self._known.clear()

    def _committed(self, seconds: float, durable: bool) -> None:
        self._series(self._commit_s, "yes" if durable else "no").observe(seconds)
