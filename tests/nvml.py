"""A stand-in of pynvml, the bindings of NVML: two cards whose answers a test sets."""

from types import SimpleNamespace
from typing import Any

GIB = 2**30


class NVMLError(Exception):
    """As pynvml's, without the number."""


class Nvml:
    """The functions of the module pynvml that imagegen calls."""

    NVML_TEMPERATURE_GPU = 0
    NVMLError = NVMLError

    def __init__(self) -> None:
        #: Whether there is a driver.
        self.driver = True
        #: Names of functions that a card does not answer.
        self.unsupported: set[str] = set()
        #: The processes on the first card: their ids, and what they hold; None: NVML does not know it.
        self.processes: dict[int, int | None] = {}
        self.open = 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        assert self.open
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"Card {handle}"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}000000-0000-0000-0000-000000000000"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return self._answer("Memory", SimpleNamespace(total=24 * GIB, free=14 * GIB, used=10 * GIB))

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._answer("Utilization", SimpleNamespace(gpu=97, memory=40))

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> Any:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self._answer("Temperature", 61)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> Any:
        return self._answer("Power", 212_500)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        found = self.processes.items() if handle == 0 else ()
        return self._answer("Processes", [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in found])

    def _answer(self, name: str, answer: Any) -> Any:
        if name in self.unsupported:
            raise NVMLError("Not Supported")
        return answer
