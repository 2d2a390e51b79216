"""What NVML, the library behind nvidia-smi, says about the cards: memory of all processes, utilisation, temperature.

It needs no CUDA context. A call may take long or hang in a broken driver, so it is never made on the event loop.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from imagegen.core.value import Value

T = TypeVar("T")


class CardNow(Value):
    """A card at this moment. None: the card does not say it. Memory in bytes."""

    index: int
    name: str
    uuid: str
    memory_total: int | None = None
    memory_used: int | None = None
    #: What the given process holds. NVML does not know it in a container with process ids of its own.
    memory_ours: int | None = None
    #: Per cent of the last sampling period (about a second) in which a kernel ran.
    utilization: int | None = None
    #: Degrees Celsius.
    temperature: int | None = None
    #: Watts.
    power: float | None = None


def cards(pid: int | None = None) -> tuple[CardNow, ...] | None:
    """All cards of the machine; None: there is no NVML. `pid`: the process whose memory is counted."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return None
    try:
        return tuple(_card(pynvml, index, pid) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:  # a card that has fallen off the bus
        return ()
    finally:
        _known(pynvml, pynvml.nvmlShutdown)


def _card(nvml: Any, index: int, pid: int | None) -> CardNow:
    it = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = _known(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(it))
    rates = _known(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(it))
    milliwatts = _known(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(it))
    return CardNow(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(it)),
        uuid=_text(nvml.nvmlDeviceGetUUID(it)),
        memory_total=memory and memory.total,
        memory_used=memory and memory.used,
        memory_ours=_known(nvml, lambda: _held(nvml.nvmlDeviceGetComputeRunningProcesses(it), pid)),
        utilization=rates and rates.gpu,
        temperature=_known(nvml, lambda: nvml.nvmlDeviceGetTemperature(it, nvml.NVML_TEMPERATURE_GPU)),
        power=None if milliwatts is None else milliwatts / 1000,
    )


def _held(processes: list[Any], pid: int | None) -> int | None:
    """What our process holds; None: NVML does not say it."""
    # In a container NVML has the process ids of the host: ours is not among them, or is that of another process.
    if not all(os.path.exists(f"/proc/{it.pid}") for it in processes):
        return None
    sizes = [it.usedGpuMemory for it in processes if it.pid == pid]
    return None if None in sizes else sum(sizes)


def _known(nvml: Any, ask: Callable[[], T]) -> T | None:
    """The answer; None: this card or driver does not give it."""
    try:
        return ask()
    except nvml.NVMLError:
        return None


def _text(name: str | bytes) -> str:
    """Older bindings return bytes."""
    return name.decode(errors="replace") if isinstance(name, bytes) else name
