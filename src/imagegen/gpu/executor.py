"""GpuExecutor: the only access to the device. One thread runs all engine calls, in order of arrival."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from imagegen.gpu.engine import Engine
from imagegen.gpu.protocol import (
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

T = TypeVar("T")

#: Seconds between two looks at how far a load is.
LOOK_EVERY_S = 0.5

#: Seconds after a delivery of steps before the next one. A real step takes longer; each wake-up of the loop by the
#: thread costs both of them about 0.05 ms.
PAUSE_S = 0.005


class GpuExecutor:
    """Awaitable engine calls. Only its one thread calls the engine, except for `abort`, `bytes_read` and `pid`."""

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._engine = make_engine()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpu")
        #: Calls that have not returned.
        self._calls = 0

    def __repr__(self) -> str:
        state = "ACTIVE" if self._calls else "IDLE"
        return f"<GpuExecutor [{state}, Calls: {self._calls}, Engine: {type(self._engine).__name__}]>"

    async def load(self, command: Load, on_read: Callable[[int], object]) -> Loaded | Failed:
        """Load a model. `on_read` is called on the loop every LOOK_EVERY_S, with the bytes read so far."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            on_read(self._engine.bytes_read)
            timer = loop.call_later(LOOK_EVERY_S, look)

        timer = loop.call_later(LOOK_EVERY_S, look)
        try:
            return await self._run(lambda: self._engine.load(command))
        finally:
            timer.cancel()

    async def unload(self, command: Unload) -> Unloaded | Failed:
        return await self._run(lambda: self._engine.unload(command))

    async def recycle(self) -> Measured | Failed:
        """Close the engine with everything that it holds, start it again, and measure it."""
        await self._run(self._engine.close)
        return await self.measure()

    async def measure(self) -> Measured | Failed:
        return await self._run(self._engine.measure)

    async def generate(self, command: Generate, stop: StopFlag, on_step: OnStep) -> Generated | Stopped | Failed:
        """Run a loaded model. `on_step` is called on the loop."""
        relay = _Relay(asyncio.get_running_loop(), on_step)
        try:
            return await self._run(lambda: self._engine.generate(command, stop, relay.tell))
        finally:
            relay.deliver_all()
            await asyncio.sleep(0)

    @property
    def pid(self) -> int | None:
        """The process that holds the models; None: there is none now."""
        return self._engine.pid

    def abort(self) -> bool:
        """End the running call, which then returns Failed. False: this engine cannot do that."""
        return self._engine.abort()

    async def close(self, patience_s: float) -> None:
        """Wait for the running call, then close the engine. After `patience_s` the thread is abandoned."""
        closing = asyncio.ensure_future(self._run(self._engine.close))
        await asyncio.wait([closing], timeout=patience_s)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, call: Callable[[], T]) -> T:
        self._calls += 1
        try:
            # In the caller's context, so that the lines of the log have the ids of its task.
            run = copy_context().run
            return await asyncio.get_running_loop().run_in_executor(self._thread, run, call)
        finally:
            self._calls -= 1


class _Relay:
    """Passes steps from the thread to the loop, in order. Steps that come fast are delivered together."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_step: OnStep) -> None:
        self._loop = loop
        self._on_step = on_step
        self._waiting: deque[tuple[int, int, bytes]] = deque()
        #: Whether a delivery is scheduled.
        self._scheduled = False

    def tell(self, step: int, total: int, preview: bytes = b"") -> None:
        """Queue a step for the loop. Called in the thread."""
        self._waiting.append((step, total, preview))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        """Deliver what waits, and what comes until the end of a pause after it."""
        if not self._waiting:
            self._scheduled = False
            if not self._waiting:  # a step that came before that line would have no delivery
                return
            self._scheduled = True
        self._loop.call_later(PAUSE_S, self._deliver)
        self.deliver_all()

    def deliver_all(self) -> None:
        """Deliver what waits, in this turn of the loop or the next one. An error of one step holds up no other."""
        while self._waiting:
            self._loop.call_soon(self._on_step, *self._waiting.popleft())
