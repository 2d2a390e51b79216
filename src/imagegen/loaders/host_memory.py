"""The host memory of the machine, and the share that weights may take. Linux only; nothing here imports torch."""

import os
from contextlib import suppress
from pathlib import Path

PROC, GROUP = Path("/proc"), Path("/sys/fs/cgroup")

#: Weights leave one tenth of the machine's memory free, because pinned memory is never swapped and other processes
#: grow.
_RESERVE = 10


def machine_bytes(group: Path = GROUP) -> int:
    """The memory that this process may use: the machine's, or the limit of its control group if that is lower."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no such limit
        return min(whole, int((group / "memory.max").read_text()))
    return whole


def available_bytes(proc: Path = PROC, group: Path = GROUP) -> int:
    """The memory that this process can take without swapping; page cache counts as free. 0: unknown."""
    try:
        free = 1024 * _field(proc / "meminfo", "MemAvailable:")
    except (OSError, ValueError):
        return 0
    with suppress(OSError, ValueError):  # no such limit
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text()) - _field(group / "memory.stat", "inactive_file")
        free = min(free, max(0, limit - used))
    return free


def room() -> int:
    """The bytes that weights may take in addition to their present ones."""
    return max(0, available_bytes() - machine_bytes() // _RESERVE)


def _field(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise ValueError(name)
