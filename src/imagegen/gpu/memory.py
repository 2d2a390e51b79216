"""Measures memory, gives it back, and tells what kind of failure an exception is."""

import ctypes
import gc
import resource
import sys
from pathlib import Path

from imagegen.core.errors import EngineError, FailureCode
from imagegen.gpu.protocol import DeviceMemory

#: Words of CUDA errors after which every later call in the process fails (CUDA runtime API, "sticky" errors).
STICKY = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ecc error",
    "launch timed out",
    "hardware stack error",
    "invalid program counter",
    "operation not supported on global/shared address space",
)

#: Words of allocators that found no memory: torch's on the GPU and on the CPU, cuBLAS's.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")


def measure(device: str) -> DeviceMemory:
    """The device's and this process's memory now."""
    if not device.startswith("cuda"):
        return DeviceMemory(host=_resident_bytes())
    import torch

    properties = torch.cuda.get_device_properties(device)
    return DeviceMemory(
        gpu_available=True,
        gpu_name=properties.name,
        allocated=torch.cuda.memory_allocated(device),
        cached=torch.cuda.memory_reserved(device),
        total=properties.total_memory,
        host=_resident_bytes(),
    )


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # no /proc: the peak is the best that there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


def give_back(device: str) -> None:
    """Return freed memory to the device and to the operating system."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # glibc keeps freed arenas; without this 996 MB stayed where 432 MB were in use.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def classify(error: BaseException, during: FailureCode) -> tuple[FailureCode, str]:
    """The code of an exception and a message that may reach a caller; `during` is the code of an unknown one."""
    if isinstance(error, EngineError):
        return error.failure, error.detail
    text = str(error).lower()
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(w in text for w in OUT_OF_MEMORY)
    ):
        return (
            FailureCode.OUT_OF_MEMORY,
            "Not enough memory: ask for a smaller picture or batch, or use a smaller model.",
        )
    if any(words in text for words in STICKY):
        return FailureCode.DEVICE_FAULT, "The GPU reported a fault that only a new process can clear."
    what = "loading the model" if during is FailureCode.LOAD_FAILED else "making the picture"
    return during, f"An unexpected {type(error).__name__} while {what}; the log has the details."
