"""Measures memory, returns freed memory, and classifies exceptions."""

import ctypes
import gc
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from imagegen.core.errors import EngineError, FailureCode
from imagegen.core.wording import THE_LOG
from imagegen.gpu.protocol import DeviceMemory
from imagegen.loaders.host_memory import available_bytes, machine_bytes
from imagegen.loaders.memory_errors import out_of_memory

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
    "cuda error: unknown error",
)

BROKEN_CONTEXT = "The GPU reported a fault that only a new process can clear."

#: How torch's allocator reports the size that it could not allocate.
_TRIED = re.compile(r"Tried to allocate ([\d.]+) ([KMG]iB)")
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def measure(device: str) -> DeviceMemory:
    """The present memory of the device and of this process."""
    if not device.startswith("cuda"):
        return DeviceMemory(host=_resident_bytes(), host_total=machine_bytes(), host_available=available_bytes())
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(
        gpu_available=True,
        gpu_name=torch.cuda.get_device_name(device),
        gpu_uuid=_uuid(device),
        capability=torch.cuda.get_device_capability(device),
        allocated=torch.cuda.memory_allocated(device),
        cached=torch.cuda.memory_reserved(device),
        free=free,
        total=total,
        host=_resident_bytes(),
        host_total=machine_bytes(),
        host_available=available_bytes(),
    )


def _uuid(device: str) -> str | None:
    """The card's UUID; None: this build of torch does not say it, as those for AMD."""
    import torch

    found = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return str(found) if found else None


def limit(device: str, fraction: float) -> None:
    """Limit this process to that share of the device's memory."""
    if device.startswith("cuda"):
        import torch

        # torch takes an index or None. It refuses a torch.device that has no index.
        torch.cuda.set_per_process_memory_fraction(fraction, torch.device(device).index)


def forget_peak(device: str) -> None:
    """Reset the peak of device memory."""
    if device.startswith("cuda"):
        import torch

        # Before CUDA is initialised, torch rejects the device as an invalid argument.
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: str) -> int:
    """The peak of device memory in use since `forget_peak`, in bytes; 0: unknown."""
    if not device.startswith("cuda"):
        return 0
    import torch

    return torch.cuda.max_memory_allocated(device)


def needed(device: str, error: str) -> int:
    """The least bytes that the failed work needs: the peak, and the size in the error message; 0: unknown."""
    tried = _TRIED.search(error)
    if not device.startswith("cuda") or tried is None:
        return 0
    return peak(device) + int(float(tried[1]) * _UNITS[tried[2]])


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # no /proc: the peak is the best available value
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


def give_back(device: str, *, switching: bool = False) -> None:
    """Return freed memory to the device and to the operating system.

    `switching`: torch's allocator keeps the device memory for the next model. If it is not enough, the allocator frees
    its cache itself and retries.
    """
    gc.collect()
    if device.startswith("cuda") and not switching:
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.accelerator.empty_host_cache()  # pinned memory
    if sys.platform == "linux":
        # glibc keeps freed arenas: measured 996 MB with 432 MB in use.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def run_kernel(device: str) -> None:
    """Run one tiny kernel and synchronize. Raises RuntimeError, also for an earlier asynchronous error."""
    import torch

    torch.ones(1, device=device).add_(1)
    torch.cuda.synchronize(device)


def context_works(device: str) -> bool:
    """Whether the device still runs kernels. After some errors every later call of the process fails."""
    if not device.startswith("cuda"):
        return True
    try:
        run_kernel(device)
    except RuntimeError as error:
        return any(map(out_of_memory, causes(error)))
    return True


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and its causes and contexts, because libraries wrap CUDA's errors."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def classify(error: BaseException, during: FailureCode) -> tuple[FailureCode, str]:
    """The code of an exception, and a message for the caller. `during`: the code of an unknown exception."""
    if any(words in str(cause).lower() for cause in causes(error) for words in STICKY):
        return FailureCode.DEVICE_FAULT, BROKEN_CONTEXT
    if any(map(out_of_memory, causes(error))):
        return (
            FailureCode.OUT_OF_MEMORY,
            "Not enough memory: ask for a smaller picture or batch, or use a smaller model.",
        )
    if isinstance(error, EngineError):
        return error.failure, error.detail
    what = "loading the model" if during is FailureCode.LOAD_FAILED else "making the picture"
    return during, f"An unexpected {type(error).__name__} while {what}; {THE_LOG} has the details."
