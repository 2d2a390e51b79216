"""DynamicModelManager and its policy alone, against an engine in miniature that keeps the real one's promises.

Rules ask for models, run them, unload them and let time pass, with troubles on the way: a worker that dies, memory that
does not suffice or does not come back, weights that are not there. What must hold after each stands in the invariants.
"""

import asyncio
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from imagegen.catalog.catalog import Catalog, GlobalSettings
from imagegen.catalog.sources import Folders
from imagegen.core.errors import FailureCode
from imagegen.core.events import Event, EventBus, ModelCooled, ModelLoaded, ModelUnloaded
from imagegen.core.task import InputPictures
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
from imagegen.loaders.base import OnStep
from imagegen.models.manager import DynamicModelManager
from imagegen.models.residency import ModelState
from tests.conftest import SCRIPTED, fake_catalog, request_for

T = TypeVar("T")

#: Bytes of each. `bare` has no weights on the disk: it is loaded before anybody leaves. The host has no room for
#: `never`, and nobody for `vast`.
SIZES = {"usual": 40, "never": 80, "short": 20, "bare": 10, "vast": 1000}
MINUTES = {"usual": 30, "never": 0, "short": 1, "bare": 30, "vast": 30}
BUDGET = 60
LIMIT = 2**20
MODELS = st.sampled_from([model for model in SIZES if model != "vast"])

Troubles = list[tuple[str, str]]

#: What can go wrong in each call, and how the engine then answers; `short_of_memory` succeeds at the price of the warm.
FAILURES = {
    "crash": FailureCode.WORKER_CRASHED,
    "hang": FailureCode.WORKER_HUNG,
    "out_of_memory": FailureCode.OUT_OF_MEMORY,
    "missing": FailureCode.WEIGHTS_MISSING,
    "broken": FailureCode.LOAD_FAILED,
}
SHORT = ("out_of_memory", "short_of_memory", "short_and_stopped")
TROUBLES = {
    "load": ("crash", "hang", "out_of_memory", "short_of_memory", "missing", "broken"),
    "unload": ("crash", "hang", "broken", "leak", "cannot_stay"),
    "generate": ("crash", "crash", "out_of_memory", "short_of_memory", "broken", "stop", "short_and_stopped"),
    "measure": ("crash",),
}


def troubles(*calls: str) -> st.SearchStrategy[Troubles]:
    """What goes wrong in one rule: often nothing, else the first calls of these kinds."""
    each = st.sampled_from([(call, trouble) for call in calls for trouble in TROUBLES[call]])
    return st.just([]) | st.lists(each, min_size=1, max_size=2)


class Engine(GpuExecutor):
    """Holds names instead of weights, and has the troubles that it is given."""

    def __init__(self) -> None:
        self.loaded: dict[str, int] = {}
        #: Of those, the ones that keep a copy in host memory since they came back from there.
        self.copies: dict[str, int] = {}
        self.warm: dict[str, int] = {}
        self.troubles: dict[str, deque[str]] = {call: deque() for call in TROUBLES}
        self.calls: list[str] = []
        #: Bytes that nobody accounts for, until the process is another one.
        self.residue = 0
        self.told = DeviceMemory()
        self.deaths: Counter[str] = Counter()
        #: Loads that were a copy from host memory.
        self.comebacks = 0

    def _measure(self) -> DeviceMemory:
        held = sum(self.loaded.values()) + self.residue
        # A host that differs each time: no two measurements are the same.
        self.told = DeviceMemory(gpu_available=True, allocated=held, cached=held, host=len(self.calls), total=999)
        return self.told

    def _trouble(self, call: str, model: str = "") -> str:
        """The next one. A death takes everything along."""
        self.calls.append(f"{call} {model}")
        trouble = self.troubles[call].popleft() if self.troubles[call] else ""
        if trouble in ("crash", "hang"):
            self._die()
            self.deaths[model] += call in ("load", "generate")
        if trouble in SHORT:
            self.warm.clear()
        return trouble

    def _die(self) -> None:
        self.loaded.clear()
        self.copies.clear()
        self.warm.clear()
        self.residue = 0
        self.told = self.told.evolve(allocated=0, cached=0, free=self.told.total, host=0)

    async def measure(self) -> Measured | Failed:
        failed = failure(self._trouble("measure"))
        return failed or Measured(memory=self._measure())

    async def recycle(self) -> Measured | Failed:
        self._die()
        return await self.measure()

    async def load(self, command: Load, on_read: Callable[[int], object]) -> Loaded | Failed:
        model = command.model
        assert model not in self.loaded, "loaded twice"
        assert not self.loaded or (model == "bare" and model not in self.warm), "two at once"
        trouble = self._trouble("load", model)
        warm = self.warm.pop(model, None) is not None
        if failed := failure(trouble):
            return failed
        self.loaded[model] = size = SIZES[model]
        self.comebacks += warm
        copy = size if warm else 0
        if warm:
            self.copies[model] = copy
        return Loaded(
            seconds=1,
            warm=warm,
            weight_bytes=size,
            host_bytes=copy,
            memory=self._measure(),
            made_room=trouble in SHORT,
        )

    async def unload(self, command: Unload) -> Unloaded | Failed:
        trouble = self._trouble("unload", command.model)
        failed = failure(trouble)
        size = self.loaded.pop(command.model, 0) or self.warm.pop(command.model, 0)
        self.copies.pop(command.model, None)
        if failed:
            return failed
        if command.keep_warm and size and trouble != "cannot_stay":
            self.warm[command.model] = size
            assert sum((self.warm | self.copies).values()) <= BUDGET, "more in host memory than may be"
        self.residue += 2 * LIMIT * (trouble == "leak")
        return Unloaded(warm=command.model in self.warm, memory=self._measure())

    async def generate(self, command: Generate, stop: threading.Event, on_step: OnStep) -> Generated | Stopped | Failed:
        assert list(self.loaded) == [command.model], "ran what is not resident"
        trouble = self._trouble("generate", command.model)
        made_room = trouble in SHORT
        if trouble in ("stop", "short_and_stopped"):
            return Stopped(made_room=made_room)
        return failure(trouble) or Generated(
            images=(), memory=self._measure(), provenance=SCRIPTED, made_room=made_room
        )


def failure(trouble: str) -> Failed | None:
    return Failed(code=FAILURES[trouble], message=trouble, made_room=trouble in SHORT) if trouble in FAILURES else None


class Bus(EventBus):
    """Remembers."""

    def __init__(self) -> None:
        super().__init__(first_id=1)
        self.published: list[Event] = []

    def publish(self, event: Event) -> None:
        self.published.append(event)
        super().publish(event)


class Clock:
    """Passes when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def catalog() -> Catalog:
    entries: dict[str, dict[str, Any]] = {model: {"auto_unload_minutes": minutes} for model, minutes in MINUTES.items()}
    entries["bare"]["local_path"] = "nowhere"
    entries["vast"]["memory_mb"] = 1
    limits = GlobalSettings(host_cache_gb=BUDGET / 2**30, residual_limit_mb=LIMIT // 2**20)
    return fake_catalog(**entries).evolve(settings=limits)


class Residency(RuleBasedStateMachine):
    """The rules. `self.forgiven`: deaths by a model up to its last picture, or its last load by hand."""

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.engine, self.bus, self.clock = Engine(), Bus(), Clock()
        root = Path(self.folder.name)
        self.models = DynamicModelManager(catalog(), self.engine, self.bus, Folders(root, root), self.clock)
        self.forgiven: Counter[str] = Counter()
        self.requests = 0
        self.do(self.models.warm_up())

    def do(self, work: Coroutine[Any, Any, T], troubles: Troubles | None = None) -> T:
        for call, trouble in troubles or ():
            self.engine.troubles[call].append(trouble)
        try:
            return self.loop.run_until_complete(work)
        finally:
            for left in self.engine.troubles.values():
                left.clear()

    # -- what may happen ----------------------------------------------------------------------------------------------

    @rule(model=MODELS, troubles=troubles("load", "unload", "measure"))
    def ensure(self, model: str, troubles: Troubles) -> None:
        left_alone, asked = self.models.quarantined(model), len(self.engine.calls)
        failed = self._bring(model, self.models.ensure(model), troubles)
        if left_alone:
            assert failed is not None
            assert failed.code is FailureCode.MODEL_QUARANTINED
            assert len(self.engine.calls) == asked

    @rule(model=MODELS, troubles=troubles("load", "unload", "measure"))
    def load(self, model: str, troubles: Troubles) -> None:
        self.forgiven[model] = self.engine.deaths[model]
        self._bring(model, self.models.load(model), troubles)

    def _bring(self, model: str, work: Coroutine[Any, Any, Failed | None], troubles: Troubles) -> Failed | None:
        resident, asked = model in self.engine.loaded, len(self.engine.calls)
        is_warm, before = model in self.engine.warm, self.engine.comebacks
        failed = self.do(work, troubles)
        assert (failed is None) == (model in self.engine.loaded)
        if resident:
            assert len(self.engine.calls) == asked
        if is_warm and not troubles and failed is None:
            assert self.engine.comebacks == before + 1
        if len(self.engine.calls) > asked:
            self.nothing_much_stays()
        return failed

    @rule()
    def ask_for_what_can_never_fit(self) -> None:
        asked, known = len(self.engine.calls), self.models.memory.total
        failed = self.do(self.models.ensure("vast"))
        if known:
            assert failed is not None
            assert (failed.code, len(self.engine.calls)) == (FailureCode.OUT_OF_MEMORY, asked)

    @rule(model=MODELS, again=st.booleans(), troubles=troubles("load", "generate"))
    def work(self, model: str, again: bool, troubles: Troubles) -> None:
        """What the run loop does for a task; a request that has killed its worker may come again."""
        self.requests += not again
        self.ensure(model, [it for it in troubles if it[0] == "load"])
        if model in self.engine.loaded:
            request = request_for(prompt=str(self.requests))
            work = self.models.generate(model, request, InputPictures(), threading.Event(), lambda step, total: None)
            if isinstance(self.do(work, [it for it in troubles if it[0] == "generate"]), Generated):
                self.forgiven[model] = self.engine.deaths[model]

    @rule(models=st.lists(MODELS, unique=True, max_size=3), troubles=troubles("unload", "measure"))
    def unload(self, models: list[str], troubles: Troubles) -> None:
        before = [model for model in models if model in self.engine.loaded or model in self.engine.warm]
        report = self.do(self.models.unload(*models), troubles)
        assert report.models == before
        assert report.left == self.models.memory.held
        assert not {*models} & {*self.engine.loaded, *self.engine.warm}
        self.nothing_much_stays()

    @rule(troubles=troubles("unload", "measure"))
    def unload_all(self, troubles: Troubles) -> None:
        self.do(self.models.unload_all(), troubles)
        assert not self.engine.loaded
        assert not self.engine.warm
        self.nothing_much_stays()

    @rule(
        minutes=st.sampled_from([0.5, 1, 29.5, 30]),
        wanted=st.sets(MODELS, max_size=2),
        troubles=troubles("unload", "measure"),
    )
    def time_passes(self, minutes: float, wanted: set[str], troubles: Troubles) -> None:
        self.clock.now += minutes * 60
        since = {model: kept.since for model, kept in self.models._warm.items()}
        if current := self.models.current:
            since[current.model] = current.last_used
        resident, warm = {*self.engine.loaded}, {*self.engine.warm}
        self.do(self.models.evict_idle(wanted), troubles)
        late = {model for model, moment in since.items() if self._is_late(model, moment)} - wanted
        assert not late & self.engine.loaded.keys()
        assert not late & warm & self.engine.warm.keys()
        if not troubles and not resident & late:
            assert (resident | warm) - late == self.engine.loaded.keys() | self.engine.warm.keys()

    def _is_late(self, model: str, since: float) -> bool:
        return bool(MINUTES[model]) and self.clock.now - since >= MINUTES[model] * 60

    # -- what must hold -----------------------------------------------------------------------------------------------

    def nothing_much_stays(self) -> None:
        """Once nothing is loaded, the memory is back: if need be, with another worker."""
        if not self.engine.loaded and not self.engine.warm:
            assert self.models.memory.held <= LIMIT

    @invariant()
    def what_the_manager_says_is_what_the_engine_holds(self) -> None:
        current = self.models.current
        assert len(self.engine.loaded) <= 1
        assert ({current.model: current.weight_bytes} if current else {}) == self.engine.loaded
        says = {model: size for model in SIZES if (size := self.models.host_bytes(model)) is not None}
        assert says == self.engine.warm | self.engine.copies

    @invariant()
    def every_model_is_in_one_state(self) -> None:
        for model in SIZES:
            error = self.models.error(model)
            there = {
                ModelState.RESIDENT: model in self.engine.loaded,
                ModelState.WARM: model in self.engine.warm,
                ModelState.ERROR: error is not None and not {model} & {*self.engine.loaded, *self.engine.warm},
            }
            assert self.models.state(model) is next((s for s, is_there in there.items() if is_there), ModelState.COLD)
            assert (error is not None and error.code is FailureCode.MODEL_QUARANTINED) == self.models.quarantined(model)
            assert (self.models.unloads_at(model) is not None) <= (model in self.engine.loaded)

    @invariant()
    def the_host_holds_no_more_than_it_may(self) -> None:
        assert sum((self.engine.warm | self.engine.copies).values()) <= BUDGET

    @invariant()
    def the_memory_is_what_was_measured_last(self) -> None:
        assert self.models.memory == self.engine.told

    @invariant()
    def who_is_quarantined_has_killed_twice_since_it_was_forgiven(self) -> None:
        for model in SIZES:
            deaths = self.engine.deaths[model] - self.forgiven[model]
            assert not self.models.quarantined(model) or deaths >= 2

    @invariant()
    def whoever_only_listens_knows_where_each_model_is(self) -> None:
        device: set[str] = set()
        host: set[str] = set()
        for event in self.bus.published:
            match event:
                case ModelLoaded():
                    assert event.model not in device
                    device.add(event.model)
                    host.discard(event.model)
                case ModelUnloaded():
                    device.remove(event.model)
                    host |= {event.model} if event.warm else set()
                case ModelCooled():
                    host.remove(event.model)
        assert (device, host) == ({*self.engine.loaded}, {*self.engine.warm})

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.folder.cleanup()


Residency.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TestResidency = Residency.TestCase
