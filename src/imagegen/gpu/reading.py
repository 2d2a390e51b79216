"""How much a process reads: how far its load is, and the sign that it still works."""

import resource
from contextlib import suppress
from pathlib import Path

#: Bytes that count as a sign of life. A worker in a deadlock may still read a few from time to time: a timer, a pipe.
SIGN_BYTES = 2**20


class Reading:
    """What a process reads from here on, by the kernel's counters in /proc. A kernel that does not tell counts nothing.

    Memory counts as a sign of life, too, as far as it is more than ever before: some file systems (FUSE) do not count
    what is read through a mapped file. CPU time does not count: a worker that spins in a deadlock has it as well.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._first = self._sign = _counters(pid)

    @property
    def bytes(self) -> int:
        """Bytes read since then. May be asked from any thread.

        A mapped file counts only as far as it comes from storage, and not where the page cache has it: that takes
        seconds. Libraries that a load imports count as well.
        """
        asked, fetched, _ = _counters(self._pid)
        return max(0, asked - self._first[0], fetched - self._first[1])

    def grew(self) -> bool:
        """Whether there is a new sign of life: SIGN_BYTES more than at the last one."""
        now = _counters(self._pid)
        grew = any(count >= before + SIGN_BYTES for count, before in zip(now, self._sign, strict=True))
        if grew:
            self._sign = tuple(map(max, now, self._sign))
        return grew


def _counters(pid: int) -> tuple[int, ...]:
    """Bytes read by system calls, bytes fetched from storage, bytes of resident memory; 0 where that is not known."""
    asked = fetched = resident = 0
    process = Path("/proc") / str(pid)
    with suppress(OSError, KeyError):  # it is gone, or the kernel keeps no such account
        words = (process / "io").read_bytes().split()
        counts = dict(zip(words[::2], words[1::2], strict=True))
        asked, fetched = int(counts[b"rchar:"]), int(counts[b"read_bytes:"])
    with suppress(OSError):
        resident = int((process / "statm").read_bytes().split()[1]) * resource.getpagesize()
    return asked, fetched, resident
