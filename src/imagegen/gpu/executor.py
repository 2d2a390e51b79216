"""GpuExecutor: the only door to the device. One thread runs every engine call, in the order of asking."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from imagegen.loaders.base import OnStep

T = TypeVar("T")


class GpuExecutor:
    """Awaitable engine calls. Made on the loop; the engine itself is touched by the one thread only."""

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._engine = make_engine()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpu")

    async def load(self, command: Load) -> Loaded | Failed:
        return await self._run(lambda: self._engine.load(command))

    async def unload(self, command: Unload) -> Unloaded | Failed:
        return await self._run(lambda: self._engine.unload(command))

    async def recycle(self) -> Measured | Failed:
        """Drop the engine with everything that it holds, and measure the one that comes after it."""
        await self._run(self._engine.close)
        return await self.measure()

    async def measure(self) -> Measured | Failed:
        return await self._run(self._engine.measure)

    async def generate(self, command: Generate, stop: threading.Event, on_step: OnStep) -> Generated | Stopped | Failed:
        """`on_step` is called on the loop."""
        loop = asyncio.get_running_loop()

        def tell(step: int, total: int, *preview: bytes) -> None:
            loop.call_soon_threadsafe(on_step, step, total, *preview)

        return await self._run(lambda: self._engine.generate(command, stop, tell))

    def abort(self) -> bool:
        """End the call under way; it then returns as Failed. False: this engine cannot."""
        return self._engine.abort()

    async def close(self, patience_s: float) -> None:
        """Wait for the call under way, then close the engine. After `patience_s` the thread is left to the process."""
        closing = asyncio.ensure_future(self._run(self._engine.close))
        await asyncio.wait([closing], timeout=patience_s)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
