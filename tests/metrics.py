"""What a scrape says, and the files that name metrics."""

import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from imagegen.testing.service import new_service

#: What the text format adds to the name of a metric.
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


class Scrape:
    """The samples of one answer."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        #: The names with their labels, without those of the process.
        self.series = {
            (it.name, tuple(sorted(it.labels.items()))) for it in self._samples if it.name.startswith("imagegen_")
        }

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels; 0: there is none."""
        found = [it for it in self._samples if it.name == f"imagegen_{name}"]
        return sum(it.value for it in found if labels.items() <= it.labels.items())


def families(folder: Path) -> Iterator[Metric]:
    """All metrics of a service that does not run, with what is in them then."""
    (folder / "data").mkdir()
    service = new_service(folder).services
    yield from service.metrics.registry.collect()
    yield from service.gauges.read()


def names_in(text: str) -> set[str]:
    """The names of metrics in a PromQL expression or a page."""
    return set(re.findall(r"\b(?:imagegen_[a-z0-9_]+|process_[a-z_]+)", text))
