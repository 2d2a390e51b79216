"""The whole service with a card, which only the worker process pretends to have."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pretend_cuda import GIB, MIB, Card, environment_of_workers
from tests.server import Server

CARD = Card(name="Pretended 24 GB card", total=24 * GIB, foreign=3 * GIB)


class Service(Server):
    """A service whose worker can be made to fail at its next calls."""

    def __init__(self, folder: Path) -> None:
        self._faults = folder / "faults.json"
        variables = environment_of_workers(CARD, self._faults)
        super().__init__(folder / "data", None, IMAGEGEN_DEVICE="auto", **variables)

    def fail(self, **fault: Any) -> None:
        """The arguments of `Cuda.fail`."""
        written = self._faults.with_suffix(".new")
        written.write_text(json.dumps(fault))
        written.rename(self._faults)

    def draw(self) -> dict[str, Any]:
        return self.until(self.submit(steps=2, seed=7))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("card")) as service:
        yield service


def test_the_card_is_found_and_draws(service: Service) -> None:
    assert service.draw()["status"] == "completed"
    model = service.http.get("/models/tiny").raise_for_status().json()
    assert model["state"] == "resident"
    gpu = service.http.get("/health").raise_for_status().json()["gpu_info"]
    assert (gpu["gpu_available"], gpu["gpu_name"]) == (True, CARD.name)
    assert gpu["gpu_memory_allocated"] >= round(model["device_bytes"] / GIB, 2) > 0
    assert (gpu["gpu_memory_total"], round(gpu["gpu_memory_foreign"], 1)) == (24, 3)


def test_a_full_card_fails_one_task_with_the_numbers_and_the_next_one_runs(service: Service) -> None:
    # Twice: the first time, the engine drops what it keeps for speed and tries again.
    service.fail(error="out_of_memory", call="scaled_dot_product_attention", skip=3, times=2, tried=900 * MIB)
    failed = service.draw()
    assert (failed["status"], failed["error_code"]) == ("failed", "out_of_memory")
    assert "24.0 GiB" in failed["error_message"]
    assert "other processes hold about 3.0" in failed["error_message"]
    assert service.draw()["status"] == "completed"


def test_a_broken_context_replaces_the_worker_and_loses_no_task(service: Service) -> None:
    expected, worker = service.pictures(service.draw()), service.worker()
    service.fail(error="illegal_access", call="linear", skip=5)
    task = service.draw()
    assert (task["status"], task["attempt"]) == ("completed", 2)
    assert service.pictures(task) == expected
    assert service.worker() != worker
