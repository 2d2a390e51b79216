"""PictureChecks: checks input pictures in processes of their own, whose time and memory are limited.

A kilobyte can decode to 100 MB and take minutes. In a thread of the service it would delay every other request.
"""

import asyncio
import json
import os
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, BinaryIO

from imagegen.core.children import ignore_signals
from imagegen.core.errors import ImagegenError, ImageTooLarge, InvalidImage, TooManyUploads
from imagegen.core.sizes import Size

#: Processes, each of which checks one picture at a time.
PROCESSES = 2

#: Seconds that a picture waits for a process before its request is refused.
WAIT_S = 60

#: Seconds of CPU time that any picture may take. The check of 24 megapixels takes 1 to 3.
CPU_S = 10

#: A higher limit of pixels adds a second of CPU time for each of this number.
PIXELS_PER_CPU_S = 2_400_000

#: Seconds after which a process that does not answer is killed.
LATE_S = 60

#: Seconds without a picture after which a process ends, so that its memory is free.
IDLE_S = 60

#: Bytes that a process may take: for Python with its libraries, and for each pixel. A 16-bit mask needs the most.
MEMORY = 512 * 2**20
MEMORY_PER_PIXEL = 32

_TOO_SLOW = "The image takes longer to read than any image of a camera or an editor."
_TOO_MUCH = "The image takes more memory to read than its number of pixels allows."

#: The environment variables that a process needs to start. It gets no others, and so no secret.
_VARIABLES = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "TZ")


class PictureChecks:
    """Starts the processes when they are needed, replaces those that die, and ends those that are idle for `idle_s`."""

    def __init__(self, processes: int = PROCESSES, idle_s: float = IDLE_S) -> None:
        self._free = asyncio.Semaphore(processes)
        self._idle_s = idle_s
        #: The processes that wait, each with the timer that ends it.
        self._idle: dict[asyncio.subprocess.Process, asyncio.TimerHandle] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<PictureChecks [{len(self._idle)} idle]>"

    async def check(self, data: bytes, max_pixels: int, *, mask: bool = False) -> Size:
        """Check a picture or a mask; returns the size of the upright picture in pixels.

        Raises InvalidImage or ImageTooLarge as `check_picture` and `check_mask` do, and also if the check takes too
        much time or memory. Raises TooManyUploads if other pictures occupy all processes.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                await self._free.acquire()
        except TimeoutError:
            raise TooManyUploads(retry_after=WAIT_S // 2) from None
        try:
            return await self._check_in_process(data, max_pixels, mask)
        finally:
            self._free.release()

    async def _check_in_process(self, data: bytes, max_pixels: int, mask: bool) -> Size:
        process = await self._take_process()
        answer: dict[str, Any] | None = None
        try:
            async with asyncio.timeout(LATE_S):
                answer = await _ask(process, data, max_pixels, mask)
        except (TimeoutError, OSError, ValueError):  # too late, or killed by the kernel because of its CPU time
            raise InvalidImage(_TOO_SLOW) from None
        finally:
            if answer is None:  # also after a cancellation, because the next caller must not get this answer
                await _end(process)
        assert answer is not None
        self._idle[process] = asyncio.get_running_loop().call_later(self._idle_s, self._retire, process)
        match answer:
            case {"size": [width, height]}:
                return Size(width, height)
            case {"code": "image_too_large", "detail": detail}:
                raise ImageTooLarge(detail)
            case _:
                raise InvalidImage(answer.get("detail"))

    async def _take_process(self) -> asyncio.subprocess.Process:
        while self._idle:
            process, timer = self._idle.popitem()
            timer.cancel()
            if process.returncode is None:
                return process
            await _end(process)
        return await _start()

    def _retire(self, process: asyncio.subprocess.Process) -> None:
        del self._idle[process]
        ending = asyncio.create_task(_end(process), name="end of a picture check")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def aclose(self) -> None:
        """End the idle processes."""
        while self._idle:
            process, timer = self._idle.popitem()
            timer.cancel()
            await _end(process)
        await asyncio.gather(*self._ending)


def environment(parent: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that checks pictures."""
    kept = {name: parent[name] for name in _VARIABLES if name in parent}
    return kept | {"OPENBLAS_NUM_THREADS": "1"}  # each of its threads reserves memory


async def _start() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        # -P: import no module from the current folder.
        *(sys.executable, "-P", "-m", "imagegen.tasks.checking"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(os.environ),
    )


async def _ask(process: asyncio.subprocess.Process, data: bytes, max_pixels: int, mask: bool) -> dict[str, Any]:
    """The answer of a process. Raises OSError or ValueError if it died."""
    assert process.stdin is not None
    assert process.stdout is not None
    question = {"bytes": len(data), "max_pixels": max_pixels, "mask": mask}
    process.stdin.write(json.dumps(question).encode() + b"\n")
    process.stdin.write(data)
    await process.stdin.drain()
    answer: dict[str, Any] = json.loads(await process.stdout.readline())
    return answer


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.communicate()


# -- the process -------------------------------------------------------------------------------------------------------


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Check one picture after the other until the service closes the pipe."""
    while line := questions.readline():
        question = json.loads(line)
        data = questions.read(question["bytes"])
        answers.write(json.dumps(_answer(data, question["max_pixels"], question["mask"])).encode() + b"\n")
        answers.flush()


def _answer(data: bytes, max_pixels: int, mask: bool) -> dict[str, Any]:
    # Imported here, because the service needs neither Pillow nor these modules for a request without a picture.
    from imagegen.loaders.pictures import picture_size
    from imagegen.tasks.inputs import check_mask, check_picture

    _limit(max_pixels)
    try:
        (check_mask if mask else check_picture)(data, max_pixels)
        return {"size": picture_size(data)}
    except ImagegenError as error:
        return {"code": error.code, "detail": error.detail}
    except MemoryError:
        return {"code": "image_too_large", "detail": _TOO_MUCH}


def _limit(max_pixels: int) -> None:
    """Limit the CPU time and the memory of the next picture. The kernel kills a process that takes more CPU time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_S + max_pixels // PIXELS_PER_CPU_S
    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_DATA, MEMORY + MEMORY_PER_PIXEL * max_pixels)):
        _, hard = resource.getrlimit(kind)
        with suppress(ValueError, OSError):  # the system's limit is lower
            resource.setrlimit(kind, (most, hard))


if __name__ == "__main__":
    ignore_signals()
    os.nice(5)  # requests go first
    serve(sys.stdin.buffer, sys.stdout.buffer)
