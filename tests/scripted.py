"""For tests of the managers without a device: an executor that answers when it is told to, and a clock."""

import asyncio
from collections.abc import Callable

from imagegen.core.errors import FailureCode
from imagegen.core.task import Pixels
from imagegen.gpu.executor import GpuExecutor
from imagegen.gpu.protocol import (
    DeviceMemory,
    Failed,
    Generate,
    Generated,
    Load,
    Loaded,
    Measured,
    Stopped,
    Unload,
    Unloaded,
)
from imagegen.loaders.base import OnStep, StopFlag
from tests.conftest import SCRIPTED

CRASH = Failed(code=FailureCode.WORKER_CRASHED, message="died")
BROKEN = Failed(code=FailureCode.GENERATION_FAILED, message="broke")
FULL = Failed(code=FailureCode.OUT_OF_MEMORY, message="full")
#: The most pictures of one call, of the one model that makes several.
MAX_BATCH = 4


class Clock:
    """Advances only when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class ScriptedExecutor(GpuExecutor):
    """Has no engine: each call waits until the test answers it. Only model `a` makes several pictures in a call."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.most_loaded = 0
        self.asked: tuple[Generate, StopFlag, asyncio.Future[Generated | Stopped | Failed]] | None = None
        #: Whether the next load waits for `end_load`.
        self.holds = False
        self.loading: asyncio.Future[Failed | None] | None = None
        #: Of each request of the next call.
        self.warnings: tuple[tuple[str, ...], ...] = ()
        self._called = asyncio.Event()

    @property
    def busy(self) -> bool:
        return self.asked is not None or self.loading is not None

    async def measure(self) -> Measured:
        return Measured(memory=DeviceMemory())

    async def load(self, command: Load, on_read: Callable[[int], object]) -> Loaded | Failed:
        if self.holds:
            self.holds, self.loading = False, asyncio.get_running_loop().create_future()
            self._called.set()
            if (failed := await self.loading) is not None:
                return failed
        self.loaded.add(command.model)
        self.most_loaded = max(self.most_loaded, len(self.loaded))
        return Loaded(seconds=1, weight_bytes=1, memory=DeviceMemory())

    async def unload(self, command: Unload) -> Unloaded:
        assert not self.busy, "unloaded under a running task"
        self.loaded.discard(command.model)
        return Unloaded(memory=DeviceMemory())

    async def generate(self, command: Generate, stop: StopFlag, on_step: OnStep) -> Generated | Stopped | Failed:
        assert command.model in self.loaded, "ran a model that is not resident"
        assert self.asked is None, "two at once"
        pictures = sum(request.batch_size for request in (command.request, *command.companions))
        assert command.together or not command.companions
        assert not command.together or (command.model == "a" and 1 < pictures <= MAX_BATCH)
        self.asked, self._on_step = (command, stop, asyncio.get_running_loop().create_future()), on_step
        self._called.set()
        return await self.asked[2]

    async def until_loading(self) -> None:
        """Return once a load waits for its answer."""
        while self.loading is None:
            self._called.clear()
            await self._called.wait()

    async def until_generating(self) -> Generate:
        """The call that waits for its answer, once there is one."""
        while self.asked is None:
            self._called.clear()
            await self._called.wait()
        return self.asked[0]

    @property
    def told_to_stop(self) -> bool:
        """Whether the call under way should end between two steps."""
        return self.asked is not None and self.asked[1].is_set()

    def step(self, step: int, total: int) -> None:
        """Report a step of the call under way."""
        assert self.asked is not None
        self._on_step(step, total)

    def end_load(self, outcome: Failed | None) -> None:
        """Let the load that waits succeed (None) or fail."""
        assert self.loading is not None
        if outcome is CRASH:
            self.loaded.clear()
        self.loading.set_result(outcome)
        self.loading = None

    def abort(self) -> bool:
        assert self.loading is not None, "killed a worker that was not loading"
        self.end_load(CRASH)
        return True

    def answer(self, outcome: Failed | None) -> None:
        """End the call under way: with the failure given; as Stopped if it was told to stop; else with pictures."""
        assert self.asked is not None
        (command, stop, future), self.asked = self.asked, None
        if outcome is CRASH:
            self.loaded.clear()
        if outcome is not None:
            future.set_result(outcome)
        elif stop.is_set():
            future.set_result(Stopped())
        else:
            seeds = [seed for request in (command.request, *command.companions) for seed in request.seeds]
            pixels = [Pixels(width=2, height=1, seed=seed, rgb=b"abcdef") for seed in seeds]
            made_by = SCRIPTED.evolve(call_pictures=len(seeds) if command.together else 1)
            made = Generated(images=tuple(pixels), memory=DeviceMemory(), provenance=made_by, warnings=self.warnings)
            future.set_result(made)
