"""The executor brings every step to the loop, in order, before the call ends."""

import asyncio
import threading
from typing import Any

import pytest

from imagegen.gpu.executor import GpuExecutor
from imagegen.gpu.protocol import DeviceMemory, Generate, Generated
from imagegen.loaders.base import OnStep
from tests.conftest import SCRIPTED, request_for


class Stepping:
    """An engine that tells so many steps, all at once or each when it is let."""

    def __init__(self, steps: int, between: threading.Semaphore | None) -> None:
        self._steps = steps
        self._between = between

    def generate(self, command: Generate, stop: threading.Event, on_step: OnStep) -> Generated:
        for step in range(self._steps):
            on_step(step + 1, self._steps, *([b"jpeg"] if step == 1 else []))
            if self._between is not None:
                self._between.acquire()
        return Generated(images=(), memory=DeviceMemory(), provenance=SCRIPTED)

    def close(self) -> None:
        """Nothing to drop."""


@pytest.mark.parametrize("steps", [1, 2, 3, 1000])
@pytest.mark.parametrize("at_once", [True, False])
async def test_every_step_is_heard_in_order_before_the_end(steps: int, at_once: bool) -> None:
    between = None if at_once else threading.Semaphore(0)
    executor = GpuExecutor(lambda: Stepping(steps, between))  # type: ignore[arg-type]
    heard: list[tuple[Any, ...]] = []

    def on_step(step: int, total: int, *preview: bytes) -> None:
        heard.append((step, total, *preview))
        if between is not None:  # the next step comes only once this one was heard
            between.release()

    async with asyncio.timeout(60):
        await executor.generate(Generate(model="m", request=request_for()), threading.Event(), on_step)
        assert heard == [(n, steps, b"jpeg") if n == 2 else (n, steps) for n in range(1, steps + 1)]
        await executor.close(1)
