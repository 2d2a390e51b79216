"""DynamicModelManager and its policy, against a small engine with the same guarantees as the real one.

Rules ask for models, run them, unload them and let time pass, with troubles on the way: a worker that dies, memory that
does not suffice or does not come back, weights that are not there. What must hold after each stands in the invariants.
One machine keeps one model resident, the others keep two and three on a device that does not hold all of them.
"""

import asyncio
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import contextmanager
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
from imagegen.loaders.base import Family, OnStep, StopFlag
from imagegen.models.manager import DynamicModelManager
from imagegen.models.residency import ModelState
from imagegen.testing.clock import Clock
from imagegen.testing.engine import SCRIPTED
from imagegen.testing.fake import FakeModelLoader, FakeSpec
from tests.conftest import fake_catalog, request_for

T = TypeVar("T")

#: Bytes of each; of these, what two have alike; what a picture takes beside them. `bare` has no weights on the disk:
#: it is loaded before anybody leaves. The host has no room for `never`, and nobody for `vast`.
SIZES = {"usual": 40, "never": 80, "short": 20, "bare": 10, "vast": 1000}
SHARED = {"usual": {"t5": 10}, "short": {"t5": 10}}
WORKING = {"usual": 30}
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
    """The faults of one rule: often none, otherwise in the first calls of these kinds."""
    each = st.sampled_from([(call, trouble) for call in calls for trouble in TROUBLES[call]])
    return st.just([]) | st.lists(each, min_size=1, max_size=2)


class Engine(GpuExecutor):
    """Holds names instead of weights, and fails as the test sets it."""

    def __init__(self, most: int, total: int) -> None:
        """It holds at most this many models, and `total` bytes."""
        self.most = most
        self.total = total
        #: The model that a rule wants: it must not leave.
        self.wanted = ""
        #: Those whose pictures have been measured.
        self.measured: set[str] = set()
        #: Whether models ran out of memory together.
        self.crowded = False
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
        held = weights(self.loaded) + self.residue
        # A host that differs each time: no two measurements are the same.
        memory = DeviceMemory(gpu_available=True, allocated=held, cached=held, free=self.total - held, total=self.total)
        self.told = memory.evolve(host=len(self.calls))
        return self.told

    def _trouble(self, call: str, model: str = "") -> str:
        """The next fault. If the worker dies, all models are lost."""
        self.calls.append(f"{call} {model}")
        trouble = self.troubles[call].popleft() if self.troubles[call] else ""
        if trouble in ("crash", "hang"):
            self._die()
            self.deaths[model] += call in ("load", "generate")
        if trouble in SHORT:
            self.warm.clear()
        self.crowded |= trouble == "out_of_memory" and bool(self.loaded.keys() - {model})
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
        if model != "bare" or model in self.warm:
            assert self.fits({*self.loaded, model}), "more than the device holds"
        trouble = self._trouble("load", model)
        warm = self.warm.pop(model, None) is not None
        if failed := failure(trouble):
            return failed
        self.loaded[model] = size = SIZES[model]
        self.comebacks += warm
        made_room, copy = trouble in SHORT, size if warm else 0
        if warm:
            self.copies[model] = copy
        memory = self._measure()
        answer = Loaded(seconds=1, warm=warm, weight_bytes=size, host_bytes=copy, memory=memory, made_room=made_room)
        return answer.evolve(shared=SHARED.get(model, {}))

    def fits(self, models: Collection[str]) -> bool:
        """The known needs: an unmeasured picture takes a quarter of the weights."""
        if len(models) > self.most:
            return False
        work = (WORKING.get(it, 0) if it in self.measured else 0 for it in models)
        room = max(taken or SIZES[it] // 4 for it, taken in zip(models, work, strict=True))
        return len(models) == 1 or weights(models) + room <= int(self.total * 0.9)

    async def unload(self, command: Unload) -> Unloaded | Failed:
        assert command.model != self.wanted, "evicted what is to work"
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

    async def generate(self, command: Generate, stop: StopFlag, on_step: OnStep) -> Generated | Stopped | Failed:
        assert command.model in self.loaded, "ran what is not resident"
        trouble = self._trouble("generate", command.model)
        made_room = trouble in SHORT
        if trouble in ("stop", "short_and_stopped"):
            return Stopped(made_room=made_room)
        if failed := failure(trouble):
            return failed
        self.measured.add(command.model)
        working_bytes, memory = WORKING.get(command.model, 0), self._measure()
        made = Generated(images=(), memory=memory, provenance=SCRIPTED, working_bytes=working_bytes)
        return made.evolve(made_room=made_room)


def weights(models: Iterable[str]) -> int:
    """Shared parts count once."""
    shared = {name: size for model in models for name, size in SHARED.get(model, {}).items()}
    own = (SIZES[model] - sum(SHARED.get(model, {}).values()) for model in models)
    return sum(own) + sum(shared.values())


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


def catalog(max_resident: int) -> Catalog:
    entries: dict[str, dict[str, Any]] = {model: {"auto_unload_minutes": minutes} for model, minutes in MINUTES.items()}
    entries["bare"]["local_path"] = "nowhere"
    entries["vast"]["memory_mb"] = 1
    limits = GlobalSettings(host_cache_gb=BUDGET / 2**30, residual_limit_mb=LIMIT // 2**20, max_resident=max_resident)
    return fake_catalog(**entries).evolve(settings=limits)


class Residency(RuleBasedStateMachine):
    """The rules. `self.forgiven`: deaths by a model up to its last picture, or its last load by hand.

    `self.used` are the resident models, the least recently used first.
    """

    most = 1
    total = 999

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.engine, self.bus, self.clock = Engine(self.most, self.total), Bus(), Clock()
        root = Path(self.folder.name)
        folders = Folders(root, root)
        sizes = {model: size for model, size in SIZES.items() if model != "vast"}
        families = {"fake": Family(FakeSpec, FakeModelLoader(sizes))}
        self.models = DynamicModelManager(catalog(self.most), self.engine, self.bus, folders, families, self.clock)
        for model in sizes:
            self.do(self.models.check_fits(model))
        self.used: list[str] = []
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
        if self._bring(model, self.models.load(model), troubles) is None:
            self.uses(model)

    @contextmanager
    def wanting(self, model: str) -> Iterator[None]:
        self.engine.wanted = model
        yield
        self.engine.wanted = ""

    def uses(self, model: str) -> None:
        self.used = [*(it for it in self.used if it != model), model]

    def who_left_was_used_least(self, before: list[str], model: str) -> None:
        others = [it for it in before if it != model]
        left = [it for it in others if it not in self.engine.loaded]
        assert left == others[: len(left)]

    def nobody_left_for_nothing(self, before: list[str], model: str) -> None:
        """With the last evicted model there would have been too many, or too many known bytes."""
        left = [it for it in before if it not in self.engine.loaded and it != model]
        if left and model in self.engine.loaded and self.engine.fits({*self.engine.loaded, left[-1]}):
            assert SHARED.get(model)  # what it shares was not known yet

    def _bring(self, model: str, work: Coroutine[Any, Any, Failed | None], troubles: Troubles) -> Failed | None:
        resident, asked, before = model in self.engine.loaded, len(self.engine.calls), [*self.used]
        is_warm, comebacks = model in self.engine.warm, self.engine.comebacks
        with self.wanting(model):
            failed = self.do(work, troubles)
        assert (failed is None) == (model in self.engine.loaded)
        self.used = [it for it in self.used if it in self.engine.loaded]
        if failed is None and not resident:
            self.uses(model)
        self.who_left_was_used_least(before, model)
        if not resident and not troubles and not self.engine.crowded:
            self.nobody_left_for_nothing(before, model)
        if resident:
            assert len(self.engine.calls) == asked
        if is_warm and not troubles and failed is None:
            assert self.engine.comebacks == comebacks + 1
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

    @rule(model=MODELS, again=st.booleans(), troubles=troubles("load", "unload", "generate"))
    def work(self, model: str, again: bool, troubles: Troubles) -> None:
        """Do what the run loop does for a task; a request that killed its worker may be repeated."""
        self.requests += not again
        self.ensure(model, [it for it in troubles if it[0] == "load"])
        if model in self.engine.loaded:
            request = request_for(prompt=str(self.requests))
            work = self.models.generate(model, request, InputPictures(), threading.Event(), lambda *step: None)
            self.uses(model)
            before = [*self.used]
            with self.wanting(model):
                outcome = self.do(work, [it for it in troubles if it[0] != "load"])
            if isinstance(outcome, Generated):
                self.forgiven[model] = self.engine.deaths[model]
            self.who_left_was_used_least(before, model)
            if not troubles:
                assert before == [it for it in before if it in self.engine.loaded]

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
        since |= {resident.model: resident.last_used for resident in self.models.residents}
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
        """While nothing is loaded, the memory is free, if necessary by a new worker."""
        if not self.engine.loaded and not self.engine.warm:
            assert self.models.memory.held <= LIMIT

    @invariant()
    def what_the_manager_says_is_what_the_engine_holds(self) -> None:
        assert {it.model: it.weight_bytes for it in self.models.residents} == self.engine.loaded
        says = {model: size for model in SIZES if (size := self.models.status(model).host_bytes) is not None}
        assert says == self.engine.warm | self.engine.copies

    @invariant()
    def no_more_are_resident_than_may_be_and_fit(self) -> None:
        """Except for the memory of a picture that was made beside other models: the next load frees it."""
        assert len(self.engine.loaded) <= self.most
        assert len(self.engine.loaded) < 2 or weights(self.engine.loaded) <= int(self.total * 0.9)

    @invariant()
    def residents_are_told_in_the_order_of_their_use(self) -> None:
        self.used = [model for model in self.used if model in self.engine.loaded]
        assert [it.model for it in self.models.residents] == self.used[::-1]
        assert (self.models.current.model if self.models.current else None) == next(reversed(self.used), None)

    @invariant()
    def every_model_is_in_one_state(self) -> None:
        for model in SIZES:
            error = self.models.status(model).error
            there = {
                ModelState.RESIDENT: model in self.engine.loaded,
                ModelState.WARM: model in self.engine.warm,
                ModelState.ERROR: error is not None and not {model} & {*self.engine.loaded, *self.engine.warm},
            }
            assert self.models.status(model).state is next(
                (s for s, is_there in there.items() if is_there), ModelState.COLD
            )
            assert (error is not None and error.code is FailureCode.MODEL_QUARANTINED) == self.models.quarantined(model)
            assert (self.models.status(model).unloads_at is not None) <= (model in self.engine.loaded)

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


class TwoResidents(Residency):
    most = 2
    total = 150


class ThreeResidents(Residency):
    most = 3
    total = 150


for machine in (Residency, TwoResidents, ThreeResidents):
    machine.TestCase.settings = settings(
        max_examples=150 if machine is Residency else 60,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )

TestResidency = Residency.TestCase
TestTwoResidents = TwoResidents.TestCase
TestThreeResidents = ThreeResidents.TestCase
