"""Input pictures are checked in processes of their own, which may die, hang, and take no more than they are given."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from imagegen.core.errors import ImageTooLarge, InvalidImage, TooManyUploads
from imagegen.tasks import checking
from imagegen.tasks.checking import CPU_S, PictureChecks, environment

MAX_PIXELS = 24_000_000


def picture(size: tuple[int, int] = (33, 17), **options: object) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, "JPEG", **options)
    return file.getvalue()


@pytest.fixture
async def checks() -> AsyncIterator[PictureChecks]:
    checks = PictureChecks(1)
    yield checks
    await checks.aclose()


def pid_of(checks: PictureChecks) -> int:
    """The only process, which waits."""
    (process,) = checks._idle
    return process.pid


async def test_a_picture_has_its_upright_size_and_the_process_stays(checks: PictureChecks) -> None:
    assert repr(checks) == "<PictureChecks [0 idle]>"  # nothing starts before there is a picture
    assert await checks.check(picture(), MAX_PIXELS) == (33, 17)
    first = pid_of(checks)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    assert await checks.check(picture(exif=sideways), MAX_PIXELS) == (17, 33)
    assert pid_of(checks) == first != os.getpid()


async def test_what_is_wrong_is_told_as_ever(checks: PictureChecks) -> None:
    with pytest.raises(InvalidImage) as invalid:
        await checks.check(b"no picture\n", MAX_PIXELS)
    assert invalid.value.detail == InvalidImage().detail
    with pytest.raises(ImageTooLarge, match="more than 560 pixels"):
        await checks.check(picture(), 560)
    black = io.BytesIO()
    Image.new("L", (8, 8)).save(black, "PNG")
    with pytest.raises(InvalidImage, match="selects nothing"):
        await checks.check(black.getvalue(), MAX_PIXELS, mask=True)
    assert await checks.check(picture(), MAX_PIXELS, mask=True) == (33, 17)


async def test_a_process_that_died_while_it_waited_is_replaced(checks: PictureChecks) -> None:
    await checks.check(picture(), MAX_PIXELS)
    (process,) = checks._idle
    process.kill()
    await process.wait()
    assert await checks.check(picture(), MAX_PIXELS) == (33, 17)


async def test_a_picture_that_takes_too_long_is_refused_and_its_process_killed(
    checks: PictureChecks, monkeypatch: pytest.MonkeyPatch
) -> None:
    await checks.check(picture(), MAX_PIXELS)
    pid = pid_of(checks)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(checking, "LATE_S", 0.05)
    with pytest.raises(InvalidImage, match="takes longer to read"):
        await checks.check(picture(), MAX_PIXELS)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    monkeypatch.undo()
    assert await checks.check(picture(), MAX_PIXELS) == (33, 17)


async def test_a_process_that_the_kernel_ends_refuses_its_picture_only(checks: PictureChecks) -> None:
    await checks.check(picture(), MAX_PIXELS)
    pid = pid_of(checks)
    os.kill(pid, signal.SIGSTOP)
    asked = asyncio.create_task(checks.check(picture(), MAX_PIXELS))
    while checks._idle:
        await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)  # as by RLIMIT_CPU, or out of memory
    with pytest.raises(InvalidImage, match="takes longer to read"):
        await asked
    assert await checks.check(picture(), MAX_PIXELS) == (33, 17)


async def test_a_caller_that_goes_leaves_no_answer_for_the_next(checks: PictureChecks) -> None:
    await checks.check(picture(), MAX_PIXELS)
    pid = pid_of(checks)
    os.kill(pid, signal.SIGSTOP)
    gone = asyncio.create_task(checks.check(picture((8, 8)), MAX_PIXELS))
    while checks._idle:
        await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await checks.check(picture(), MAX_PIXELS) == (33, 17)
    assert pid_of(checks) != pid


async def test_each_process_has_one_picture_at_a_time(checks: PictureChecks, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = await asyncio.gather(*(checks.check(picture((n, 8)), MAX_PIXELS) for n in range(8, 16)))
    assert sizes == [(n, 8) for n in range(8, 16)]
    pid = pid_of(checks)
    os.kill(pid, signal.SIGSTOP)
    first = asyncio.create_task(checks.check(picture(), MAX_PIXELS))
    while checks._idle:
        await asyncio.sleep(0)
    monkeypatch.setattr(checking, "WAIT_S", 0.05)
    with pytest.raises(TooManyUploads):
        await checks.check(picture(), MAX_PIXELS)
    os.kill(pid, signal.SIGCONT)
    assert await first == (33, 17)


async def test_a_process_that_has_been_idle_for_a_while_ends_and_its_memory_is_free() -> None:
    checks = PictureChecks(1, idle_s=0.01)
    assert await checks.check(picture(), MAX_PIXELS) == (33, 17)
    pid = pid_of(checks)
    while Path(f"/proc/{pid}").exists():  # not even a zombie stays
        await asyncio.sleep(0.01)
    assert repr(checks) == "<PictureChecks [0 idle]>"
    assert await checks.check(picture(), MAX_PIXELS) == (33, 17)
    await checks.aclose()


async def test_a_process_that_is_used_again_is_not_ended_meanwhile(checks: PictureChecks) -> None:
    await checks.check(picture(), MAX_PIXELS)
    (timer,) = checks._idle.values()
    await checks.check(picture(), MAX_PIXELS)
    assert timer.cancelled()


LIMITED = """
import resource
from imagegen.tasks.checking import _limit
_limit(1_000_000)
try:
    bytearray(2**30)
except MemoryError:
    print("limited", resource.getrlimit(resource.RLIMIT_CPU)[0])
"""


def test_the_memory_and_the_time_of_a_process_are_limited() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    word, seconds = done.stdout.split()
    assert word == "limited"
    assert CPU_S <= int(seconds) <= 2 * CPU_S


def test_a_process_is_told_no_secret() -> None:
    told = environment({"HF_TOKEN": "a", "AWS_SECRET_ACCESS_KEY": "b", "IMAGEGEN_X": "c", "PATH": "/bin"})
    assert told == {"PATH": "/bin", "OPENBLAS_NUM_THREADS": "1"}
