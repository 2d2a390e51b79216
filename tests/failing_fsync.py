"""Every fsync of a process fails, as on a broken disk: the kernel itself refuses (seccomp).

python -m tests.failing_fsync JOURNAL    # accepts one task, then is refused another
"""

import asyncio
import ctypes
import errno
import os
import platform
import sys
from pathlib import Path
from types import MappingProxyType

from imagegen.core.errors import JournalLost
from imagegen.core.task import InputPictures
from imagegen.storage.journal import TaskJournal
from tests.unit.conftest import task_of

#: The numbers of fsync, fdatasync and seccomp.
_CALLS = MappingProxyType({"x86_64": (74, 75, 317), "aarch64": (82, 83, 277)})

_NO_NEW_PRIVS, _SET_FILTER, _ALL_THREADS = 38, 1, 1


class _Step(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step)))


def fail() -> None:
    """From here on every fsync of this process answers EIO. There is no way back."""
    fsync, fdatasync, seccomp = _CALLS[platform.machine()]
    load, equals, answer = 0x20, 0x15, 0x06
    steps = (_Step * 5)(
        _Step(load, 0, 0, 0),  # the number of the call
        _Step(equals, 1, 0, fsync),
        _Step(equals, 0, 1, fdatasync),
        _Step(answer, 0, 0, 0x0005_0000 | errno.EIO),
        _Step(answer, 0, 0, 0x7FFF_0000),  # allowed
    )
    kernel = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(steps), steps)
    if kernel.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or kernel.syscall(
        seccomp, _SET_FILTER, _ALL_THREADS, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter")


async def main(path: Path) -> None:
    journal = TaskJournal(path)
    await journal.insert(task_of(1), InputPictures())
    fail()
    try:
        await journal.insert(task_of(2), InputPictures())
    except JournalLost as lost:
        sys.stdout.write(lost.detail)
        sys.stdout.flush()
        os._exit(74)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
