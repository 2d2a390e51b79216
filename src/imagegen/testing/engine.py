"""ScriptedEngine: replaces the device, records the calls, and returns the answers that a test sets."""

import asyncio
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, cast

from imagegen.core.errors import FailureCode
from imagegen.core.provenance import Provenance
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
from imagegen.testing.clock import Clock

Kind = Literal["load", "unload", "generate", "measure"]
Answer = Loaded | Unloaded | Generated | Stopped | Measured | Failed
AnswerT = TypeVar("AnswerT", bound=Answer)

#: The provenance of its pictures.
SCRIPTED = Provenance(loader="fake", pipeline="FakePipeline", dtype="uint8", device="none", versions={"imagegen": "0"})

CRASHED = Failed(code=FailureCode.WORKER_CRASHED, message="The worker process died.")
HUNG = Failed(code=FailureCode.WORKER_HUNG, message="The worker process stopped answering.")
BROKEN = Failed(code=FailureCode.GENERATION_FAILED, message="The model failed.")
OUT_OF_MEMORY = Failed(code=FailureCode.OUT_OF_MEMORY, message="Not enough memory.")
MISSING = Failed(code=FailureCode.WEIGHTS_MISSING, message="The weights are not here.")


class Call(NamedTuple):
    """A Generate that waits for its answer."""

    command: Generate
    stop: StopFlag
    on_step: OnStep
    outcome: asyncio.Future[Failed | None]


class ScriptedEngine(GpuExecutor):
    """Has no thread, no process and no models: it answers each call on the event loop like a real engine.

    `instead["load"] = CRASHED` is the answer to the next call of that kind, `always` to each. With `waits`, a Generate
    ends when the test calls `answer()`; after `holds = True` the next Load ends when it calls `end_load()`. It asserts
    that the managers make one call at a time, and generate only with a loaded model.
    """

    def __init__(
        self,
        *,
        waits: bool = False,
        full: DeviceMemory | None = None,
        empty: DeviceMemory | None = None,
        clock: Clock | None = None,
        work_s: float = 0,
    ) -> None:
        """`full`, `empty`: the memory that it reports with and without a model. A call advances `clock` by `work_s`."""
        self.waits = waits
        self.full, self.empty = full or DeviceMemory(), empty or DeviceMemory()
        self._clock = clock or Clock()
        self._work_s = work_s
        #: The calls so far: `load a`, `unload a`, `generate a`, `recycle`.
        self.asked: list[str] = []
        self.commands: list[Load | Unload | Generate] = []
        self.instead: dict[Kind, Answer] = {}
        self.always: dict[Kind, Answer] = {}
        #: The bytes that loads report as read.
        self.reads: list[int] = []
        #: Called during each load, unload and picture, with `load a`.
        self.on_call: Callable[[str], object] = lambda call: None
        #: The models in memory, and their entries.
        self.loaded: dict[str, dict[str, Any]] = {}
        self.most_loaded = 0
        #: Whether the next load waits for `end_load`.
        self.holds = False
        self.loading: asyncio.Future[Failed | None] | None = None
        #: The running Generate, if it waits for `answer`.
        self.call: Call | None = None
        #: The warnings of each request of the next Generate.
        self.warnings: tuple[tuple[str, ...], ...] = ()
        #: How often the worker was killed in the middle of a picture.
        self.aborted_calls = 0
        self._called = asyncio.Event()

    def __repr__(self) -> str:
        return f"<ScriptedEngine [{'ACTIVE' if self.busy else 'IDLE'}, Models: {', '.join(self.loaded) or None}]>"

    @property
    def pid(self) -> int | None:
        return None

    @property
    def busy(self) -> bool:
        """Whether a call waits for the test."""
        return self.call is not None or self.loading is not None

    # -- controlled by the test ----------------------------------------------------------------------------------------

    async def until_loading(self) -> None:
        """Wait until a load waits for `end_load`."""
        while self.loading is None:
            self._called.clear()
            await self._called.wait()

    async def until_generating(self) -> Generate:
        """Wait until a call waits for `answer`, and return it."""
        while self.call is None:
            self._called.clear()
            await self._called.wait()
        return self.call.command

    @property
    def told_to_stop(self) -> bool:
        """Whether the running call should end before its next step."""
        return self.call is not None and self.call.stop.is_set()

    def step(self, step: int, total: int) -> None:
        """Report a step of the running call."""
        assert self.call is not None
        self.call.on_step(step, total)

    def end_load(self, failed: Failed | None) -> None:
        """End the waiting load: with success (None) or with a failure."""
        assert self.loading is not None
        loading, self.loading = self.loading, None
        loading.set_result(failed)

    def answer(self, failed: Failed | None) -> None:
        """End the running call with a failure. None: with Stopped if a stop was requested, and else with pictures."""
        assert self.call is not None
        call, self.call = self.call, None
        call.outcome.set_result(failed)

    # -- called by the service -----------------------------------------------------------------------------------------

    async def load(self, command: Load, on_read: Callable[[int], object]) -> Loaded | Failed:
        for read in self.reads:
            on_read(read)
        self._begin("load", command)
        failed = None
        if self.holds:
            self.holds, self.loading = False, asyncio.get_running_loop().create_future()
            self._called.set()
            failed = await self.loading
        usual: Loaded | Failed = failed or Loaded(seconds=3.5, weight_bytes=30, memory=self.full)
        answer = self._answer("load", usual)
        if isinstance(answer, Loaded):
            self.loaded[command.model] = command.spec
            self.most_loaded = max(self.most_loaded, len(self.loaded))
        return answer

    async def unload(self, command: Unload) -> Unloaded | Failed:
        assert not self.busy, "unloaded under a running task"
        self._begin("unload", command)
        self.loaded.pop(command.model, None)
        usual: Unloaded | Failed = Unloaded(warm=command.keep_warm, memory=self.empty)
        return self._answer("unload", usual)

    async def generate(self, command: Generate, stop: StopFlag, on_step: OnStep) -> Generated | Stopped | Failed:
        assert command.model in self.loaded, "ran a model that is not resident"
        assert self.call is None, "two at once"
        seeds = [seed for request in (command.request, *command.companions) for seed in request.seeds]
        most = self.loaded[command.model]["max_batch"] if command.together else 1
        assert 1 < len(seeds) <= most if command.together else not command.companions
        self._begin("generate", command)
        failed = None
        if self.waits:
            self.call = Call(command, stop, on_step, asyncio.get_running_loop().create_future())
            self._called.set()
            failed = await self.call.outcome
        self._clock.now += self._work_s
        made_by = SCRIPTED.evolve(call_pictures=len(seeds) if command.together else 1)
        images = tuple(Pixels(width=2, height=1, seed=seed, rgb=b"abcdef") for seed in seeds)
        made = Generated(images=images, memory=self.full, provenance=made_by, warnings=self.warnings)
        usual: Generated | Stopped | Failed = made
        if failed is not None or stop.is_set():
            usual = failed or Stopped()
        return self._answer("generate", usual)

    async def measure(self) -> Measured | Failed:
        usual: Measured | Failed = Measured(memory=self.empty)
        return self._answer("measure", usual)

    async def recycle(self) -> Measured | Failed:
        self.asked.append("recycle")
        self.loaded.clear()
        return await self.measure()

    def abort(self) -> bool:
        if self.loading is not None:
            self.end_load(CRASHED)
        elif self.call is not None:
            self.aborted_calls += 1
            self.answer(CRASHED)
        return True

    async def close(self, patience_s: float) -> None:
        """Do nothing: there is nothing to close."""

    def _begin(self, kind: Kind, command: Load | Unload | Generate) -> None:
        self.asked.append(f"{kind} {command.model}")
        self.commands.append(command)
        self.on_call(self.asked[-1])

    def _answer(self, kind: Kind, usual: AnswerT) -> AnswerT:
        """The answer that the test has set, or the usual one. If the worker dies, no model stays loaded."""
        answer = self.instead.pop(kind, None) or self.always.get(kind) or usual
        if isinstance(answer, Failed) and answer.worker_died:
            self.loaded.clear()
        return cast(AnswerT, answer)
