"""The executor delivers every step to the event loop, in order, before the call ends."""

import asyncio
import threading
from typing import Any

import pytest

from imagegen.gpu import executor
from imagegen.gpu.executor import GpuExecutor
from imagegen.gpu.protocol import DeviceMemory, Generate, Generated, Load, Loaded
from imagegen.loaders.base import OnStep
from imagegen.testing.engine import SCRIPTED
from tests.conftest import fake_catalog, load_command, request_for


class Stepping:
    """An engine that reports this many steps, all at once or each when the test allows it."""

    def __init__(self, steps: int, between: threading.Semaphore | None) -> None:
        self._steps = steps
        self._between = between

    def generate(self, command: Generate, stop: threading.Event, on_step: OnStep) -> Generated:
        for step in range(self._steps):
            on_step(step + 1, self._steps, b"jpeg" if step == 1 else b"")
            if self._between is not None:
                self._between.acquire()
        return Generated(images=(), memory=DeviceMemory(), provenance=SCRIPTED)

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("steps", [1, 2, 3, 1000])
@pytest.mark.parametrize("at_once", [True, False])
async def test_every_step_is_delivered_in_order_before_the_end(
    steps: int, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "PAUSE_S", 0.0001)
    between = None if at_once else threading.Semaphore(0)
    gpu = GpuExecutor(lambda: Stepping(steps, between))  # type: ignore[arg-type,return-value]
    heard: list[tuple[Any, ...]] = []

    def on_step(step: int, total: int, preview: bytes = b"") -> None:
        heard.append((step, total, preview))
        if between is not None:  # the next step comes only once this one was heard
            between.release()

    async with asyncio.timeout(60):
        await gpu.generate(Generate(model="m", request=request_for()), threading.Event(), on_step)
        assert heard == [(n, steps, b"jpeg" if n == 2 else b"") for n in range(1, steps + 1)]
        await gpu.close(1)


async def test_a_step_that_cannot_be_handled_is_reported_and_the_next_ones_come() -> None:
    gpu = GpuExecutor(lambda: Stepping(3, None))  # type: ignore[arg-type,return-value]
    heard, reported = list[int](), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def on_step(step: int, total: int, preview: bytes = b"") -> None:
        heard.append(step)
        if step < 3:
            raise ValueError(step)

    await gpu.generate(Generate(model="m", request=request_for()), threading.Event(), on_step)
    assert heard == [1, 2, 3]
    assert [it.args for it in reported] == [(1,), (2,)]
    await gpu.close(1)


class Reading:
    """An engine whose load reads a byte at each check, and ends when the test allows it."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self._bytes = 0

    @property
    def bytes_read(self) -> int:
        self._bytes += 1
        return self._bytes

    def load(self, command: Load) -> Loaded:
        self.let.wait()
        return Loaded(seconds=1, weight_bytes=1, memory=DeviceMemory())

    def close(self) -> None:
        """Do nothing."""


async def test_the_bytes_of_a_load_are_reported_only_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "LOOK_EVERY_S", 0)
    engine, told = Reading(), list[int]()
    gpu = GpuExecutor(lambda: engine)  # type: ignore[arg-type,return-value]

    def on_read(read: int) -> None:
        told.append(read)
        if read == 3:
            engine.let.set()

    async with asyncio.timeout(60):
        assert isinstance(await gpu.load(load_command(fake_catalog(), "fake"), on_read), Loaded)
        heard = list(told)
        assert heard[:3] == [1, 2, 3]
        for _ in range(10):
            await asyncio.sleep(0)
        assert told == heard
        await gpu.close(1)
