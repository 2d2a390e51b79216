"""Gauges: what is, read at each scrape from the objects that own it, and the text of a scrape."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

import imagegen
from imagegen.catalog.writer import CatalogWriter
from imagegen.core.events import EventBus
from imagegen.storage.images import ImageStore
from imagegen.storage.room import Room
from imagegen.tasks.device import Device
from imagegen.tasks.manager import TaskManager
from imagegen.telemetry.metrics import Metrics, priority_class
from imagegen.webhooks.sender import WebhookSender

#: A value with its labels.
Sample = tuple[Sequence[str], float]


@dataclass(frozen=True)
class Gauges:
    """Reads the state of a service. A read changes nothing: it loads no model, and counts as no use of one."""

    device: Device
    tasks: TaskManager
    images: ImageStore
    webhooks: WebhookSender
    writer: CatalogWriter
    room: Room
    bus: EventBus

    async def scrape(self, metrics: Metrics, accept: str) -> tuple[bytes, str]:
        """All metrics as text, and its media type. `accept`: the header of the request."""
        now = list(self.read())  # on the event loop, which owns this state
        try:
            encode, media_type = choose_encoder(accept)
        except TypeError:  # `version=x`: prometheus_client compares it with numbers
            encode, media_type = choose_encoder("")
        # In a thread: the text of fifty models takes tens of milliseconds. Counters may be read in any thread.
        text = await asyncio.to_thread(lambda: encode(_Scrape([*metrics.registry.collect(), *now])))
        return text, media_type

    def read(self) -> Iterator[Metric]:
        """Each gauge with its values."""
        yield _gauge("build_info", "The version of imagegen.", ["version"], [([imagegen.__version__], 1)])
        yield from self._tasks()
        yield from self._models()
        yield from self._memory()
        yield from self._service()

    def _tasks(self) -> Iterator[Metric]:
        call = self.device.call
        members = call.members if call is not None else []
        running = Counter((live.record.priority, live.record.model) for live in members)
        yield _by_class("requests_running", "Tasks that have the device: a load, or their pictures.", running)
        yield _by_class("requests_waiting", "Tasks in the queue.", self.tasks.waiting)
        yield _by_class("requests_parked", "Tasks that wait for the download of weights.", self.tasks.parked)
        yield _number("queue_limit", "Tasks that may wait before others are refused.", self.tasks.queue_limit)
        yield _number("draining", "1 while the service is stopping.", self.tasks.draining)
        yield _number(
            "event_subscribers", "Open event streams, and callers that wait for a task.", self.bus.subscribers
        )

    def _models(self) -> Iterator[Metric]:
        models = self.device.models
        states = {model: models.status(model) for model in models.catalog.models}
        places = ["model", "memory"]
        held = [(model, state.resident, state.host_bytes) for model, state in states.items()]
        yield _gauge(
            "model_resident",
            "1: its weights are in this memory.",
            places,
            [
                *(((model, "device"), resident is not None) for model, resident, _ in held),
                *(((model, "host"), bool(host)) for model, _, host in held),
            ],
        )
        yield _gauge(
            "model_bytes",
            "The weights of a model in this memory.",
            places,
            [
                *(((model, "device"), resident.device_bytes if resident else 0) for model, resident, _ in held),
                *(((model, "host"), host or 0) for model, _, host in held),
            ],
        )
        quarantined = [([model], models.quarantined(model)) for model in states]
        yield _gauge("model_quarantined", "1: it killed its workers and is not loaded.", ["model"], quarantined)

    def _memory(self) -> Iterator[Metric]:
        models, memory = self.device.models, self.device.models.memory
        yield _number("gpu_available", "1: models run on a GPU.", memory.gpu_available)
        device = {
            "allocated": memory.allocated,
            "cached": memory.cached,
            "outside": memory.outside,
            "free": memory.free,
            "foreign": memory.foreign,
            "total": memory.total,
        }
        yield _kinds("device_memory_bytes", "Memory of the GPU, as measured after the latest call.", device)
        host = {"worker": memory.host, "available": memory.host_available, "total": memory.host_total}
        yield _kinds("host_memory_bytes", "Memory of the machine, as measured after the latest call.", host)
        on_device = sum(it.device_bytes for it in models.residents)
        in_host = sum(models.status(model).host_bytes or 0 for model in models.catalog.models)
        gpu = memory.gpu_available
        residual = {
            "device": max(0, memory.cached + memory.outside - on_device) if gpu else 0,
            "host": max(0, memory.host - in_host - (0 if gpu else on_device)),
        }
        about = "What the process of the models holds beyond their weights: libraries, caches, leaks."
        yield _gauge("residual_bytes", about, ["memory"], (([name], size) for name, size in residual.items()))

    def _service(self) -> Iterator[Metric]:
        yield _number("config_ok", "0: models.yaml is invalid, and an older one is in force.", self.writer.ok)
        yield _number("store_reachable", "0: the store of pictures cannot be reached.", self.images.reachable)
        spool = self.images.spool
        yield _number("store_spool_images", "Pictures that wait for their upload.", spool.images)
        yield _number("store_spool_bytes", "Bytes of the pictures that wait for their upload.", spool.bytes)
        yield _number("webhooks_pending", "Webhooks that are not delivered yet.", self.webhooks.pending)
        with suppress(OSError, ValueError):  # the data directory is gone
            yield _number("disk_free_bytes", "Free bytes of the fullest disk of the data directory.", self.room.free())
        yield _number("disk_floor_bytes", "Free bytes below which new tasks are refused.", self.room.floor)


class _Scrape:
    """Stands for a registry, for the encoders."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Without the moment at which each series began, which would be a third of all samples."""
        for family in self._families:
            family.samples = [it for it in family.samples if not it.name.endswith("_created")]
            yield family


def _gauge(name: str, about: str, labels: Sequence[str], samples: Iterable[Sample]) -> Metric:
    gauge = GaugeMetricFamily(f"imagegen_{name}", about, labels=labels)
    for values, value in samples:
        gauge.add_metric(list(values), value)
    return gauge


def _by_class(name: str, about: str, numbers: Mapping[tuple[int, str], int]) -> Metric:
    """`numbers`: by priority and model."""
    summed = Counter[tuple[str, str]]()
    for (priority, model), number in numbers.items():
        summed[model, priority_class(priority)] += number
    return _gauge(name, about, ["model", "priority"], summed.items())


def _number(name: str, about: str, value: float) -> Metric:
    return _gauge(name, about, [], [([], value)])


def _kinds(name: str, about: str, values: dict[str, int]) -> Metric:
    return _gauge(name, about, ["kind"], (([kind], value) for kind, value in values.items()))
