"""Measures how much a process reads: the progress of a load, and a sign that a worker is alive."""

import resource
from contextlib import suppress
from pathlib import Path

#: Bytes that count as a sign of life. A worker in a deadlock may still read a few, for example from a pipe.
SIGN_BYTES = 2**20


class Reading:
    """The bytes that a process reads from now on, by the kernel's counters in /proc; always 0 without these.

    A new maximum of resident memory is a sign of life, too, because some file systems (FUSE) do not count reads of
    mapped files. CPU time is not a sign of life: a worker that spins in a deadlock uses it as well.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._first = self._sign = _counters(pid)

    @property
    def bytes(self) -> int:
        """Bytes read so far. From any thread.

        A mapped file counts only if it is read from storage; one in the page cache is read fast. Libraries that a load
        imports count as well.
        """
        by_calls, from_storage, _ = _counters(self._pid)
        return max(0, by_calls - self._first[0], from_storage - self._first[1])

    def grew(self) -> bool:
        """Whether there is a new sign of life: SIGN_BYTES more than at the previous one."""
        now = _counters(self._pid)
        grew = any(count >= before + SIGN_BYTES for count, before in zip(now, self._sign, strict=True))
        if grew:
            self._sign = tuple(map(max, now, self._sign))
        return grew


def _counters(pid: int) -> tuple[int, ...]:
    """Bytes read by system calls, bytes read from storage, bytes of resident memory; 0: unknown."""
    by_calls = from_storage = resident = 0
    process = Path("/proc") / str(pid)
    with suppress(OSError, KeyError):  # the process has ended, or the kernel has no such counters
        words = (process / "io").read_bytes().split()
        counts = dict(zip(words[::2], words[1::2], strict=True))
        by_calls, from_storage = int(counts[b"rchar:"]), int(counts[b"read_bytes:"])
    with suppress(OSError):
        resident = int((process / "statm").read_bytes().split()[1]) * resource.getpagesize()
    return by_calls, from_storage, resident
