"""TaskManager and DynamicModelManager against a simple model of both, with a scripted engine.

Rules submit, cancel, clear, delete, load, unload, let the engine answer well or badly, kill the worker while it loads
or runs, pass time and deadlines, and restart the whole service over the same journal, in any order. What must hold
after each of them stands in the invariants.
"""

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from imagegen.catalog.catalog import GlobalSettings
from imagegen.core.errors import FailureCode, ModelQuarantined, QueueFull, TaskFinished, TaskNotFinished, TaskNotFound
from imagegen.core.task import MAX_ATTEMPTS, GenerationTask, TaskStatus, TaskType
from imagegen.gpu.protocol import Failed
from imagegen.storage.journal import TaskFilter
from imagegen.tasks.admission import Limits, TaskDraft
from imagegen.tasks.batching import likeness
from imagegen.tasks.life import Loading, Running
from imagegen.testing.clock import Clock
from imagegen.testing.engine import BROKEN, CRASHED, OUT_OF_MEMORY, ScriptedEngine
from imagegen.testing.managers import Managers
from tests.conftest import fake_catalog, request_for

T = TypeVar("T")

MODELS = ("a", "b", "c")
LIMITS = Limits(max_queue=6, max_batch_size=2, max_pixels=10_000)


#: The most pictures of one call of `a`.
MAX_BATCH = 4


class Service(RuleBasedStateMachine):
    """The rules. `self.known` is the simple model: the last seen status of every accepted task."""

    #: Models that may be resident.
    most = 1

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.known: dict[str, TaskStatus] = {}
        self.deleted: list[str] = []
        #: Of tasks that have one: when it passes.
        self.deadlines: dict[str, float] = {}
        self.clock = Clock()
        entries: dict[str, dict[str, Any]] = {model: {"auto_unload_minutes": 1} for model in MODELS}
        entries["a"]["max_batch"] = MAX_BATCH
        self.catalog = fake_catalog(**entries).evolve(settings=GlobalSettings(max_resident=self.most))
        self._open()

    def _open(self) -> None:
        root = Path(self.folder.name)
        self.executor = ScriptedEngine(waits=True)
        self.managers = Managers(root, self.executor, self.catalog, limits=LIMITS, clock=self.clock, cancel_grace_s=0)
        self.bus, self.journal, self.images = self.managers.bus, self.managers.journal, self.managers.images
        self.device, self.models, self.tasks = self.managers.device, self.managers.models, self.managers.tasks
        self._learn_what_pays()
        self.running = self.loop.create_task(self.tasks.run())
        self.do(self.tasks.between_tasks(self.journal.count))  # what an earlier run left is queued by then
        self.settle()

    def _learn_what_pays(self) -> None:
        alike = likeness(TaskType.TEXT2IMAGE, request_for(guidance_scale=3.5), 0)
        assert alike is not None
        for pictures in (1, 1, 2, 2, 4, 4):
            self.device.measurements.payoffs.learn("a", alike.kind, pictures, 1 / pictures)

    def _close(self) -> None:
        self.do(self.managers.close(self.running))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def settle(self) -> None:
        """Wait until the run loop waits for the engine or for a task."""

        def settled() -> bool:
            live, busy = self.tasks.records.live.values(), self.executor.busy
            on_gpu = sum(isinstance(it.stage, Loading | Running) for it in live)
            return len(live) == self.tasks.queue_size + (on_gpu if busy else 0) and (busy or not self.tasks.queue_size)

        async def quiet() -> None:
            await self.journal.count()  # behind everything that was written before
            while not (settled() or self.running.done()):
                await asyncio.sleep(0.001)

        self.do(asyncio.wait_for(quiet(), 20))

    # -- what may happen ----------------------------------------------------------------------------------------------

    @rule(
        model=st.sampled_from(MODELS),
        priority=st.integers(-1, 1),
        batch=st.integers(1, 2),
        deadline_s=st.sampled_from([None, None, 20.0]),
    )
    def submit(self, model: str, priority: int, batch: int, deadline_s: float | None) -> None:
        draft = TaskDraft(
            type=TaskType.TEXT2IMAGE,
            model=model,
            prompt="x",
            priority=priority,
            batch_size=batch,
            deadline_s=deadline_s,
        )
        full, left_alone = self.tasks.queue_size >= LIMITS.max_queue, self.models.quarantined(model)
        if full or left_alone:
            with pytest.raises(QueueFull if full else ModelQuarantined):
                self.do(self.tasks.submit(draft))
            return
        task = self.do(self.tasks.submit(draft))
        assert task.id not in self.known
        self.known[task.id] = TaskStatus.PENDING
        if deadline_s is not None:
            self.deadlines[task.id] = self.clock.now + deadline_s
        self.settle()

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        # By number: the ids are random, and a repeated run must be able to make the same choice.
        task_id = list(self.known)[data.draw(st.integers(0, len(self.known) - 1))]
        before = self.known[task_id]
        if before in (TaskStatus.COMPLETED, TaskStatus.FAILED):
            with pytest.raises(TaskFinished):
                self.do(self.tasks.cancel(task_id))
            return
        call = self.executor.call
        in_company = call is not None and bool(call.command.companions)
        at_once = before is TaskStatus.PENDING or self.executor.loading is not None or in_company
        self.do(self.tasks.cancel(task_id))
        if at_once:
            assert self.record(task_id).status is TaskStatus.CANCELLED
        self.settle()

    @rule()
    def clear(self) -> None:
        waiting = [task_id for task_id, status in self.known.items() if status is TaskStatus.PENDING]
        assert self.do(self.tasks.clear()) == len(waiting)
        assert all(self.record(task_id).status is TaskStatus.CANCELLED for task_id in waiting)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        task_id = list(self.known)[data.draw(st.integers(0, len(self.known) - 1))]
        files = [Path(self.folder.name) / "images" / image.path for image in self.record(task_id).images]
        assert all(file.is_file() for file in files)
        if not self.known[task_id].finished:
            with pytest.raises(TaskNotFinished):
                self.do(self.tasks.records.delete(task_id))
            return
        self.do(self.tasks.records.delete(task_id))
        assert not any(file.exists() for file in files)
        del self.known[task_id]
        self.deleted.append(task_id)

    @precondition(lambda self: not self.executor.busy)
    @rule()
    def the_next_load_takes_its_time(self) -> None:
        self.executor.holds = True

    @precondition(lambda self: self.executor.loading)
    @rule(outcome=st.sampled_from([None, None, CRASHED, BROKEN]))
    def load_ends(self, outcome: Failed | None) -> None:
        self.executor.end_load(outcome)
        self.settle()

    @precondition(lambda self: not self.executor.busy and not self.executor.holds)
    @rule(model=st.sampled_from(MODELS))
    def load(self, model: str) -> None:
        assert self.do(self.tasks.between_tasks(lambda: self.models.load(model))) is None
        assert self.models.current is not None
        assert self.models.current.model == model
        assert not self.models.quarantined(model)

    @precondition(lambda self: self.executor.call)
    @rule(outcome=st.sampled_from([None, None, None, CRASHED, BROKEN, OUT_OF_MEMORY]))
    def engine_answers(self, outcome: Failed | None) -> None:
        self.executor.answer(outcome)
        self.settle()

    @precondition(lambda self: not self.executor.busy)
    @rule()
    def unload(self) -> None:
        self.do(self.tasks.between_tasks(self.models.unload_all))
        assert self.models.current is None

    @precondition(lambda self: not self.executor.busy)
    @rule(minutes=st.sampled_from([0.5, 2]))
    def time_passes(self, minutes: float) -> None:
        resident = self.models.current
        self.clock.now += minutes * 60
        self.do(self.tasks.between_tasks(self.models.evict_idle))
        if resident is not None and self.clock.now - resident.last_used >= 60:
            assert self.models.current is None
        else:
            assert (self.models.current is None) == (resident is None)

    @rule(seconds=st.sampled_from([5, 30]))
    def deadlines_pass(self, seconds: float) -> None:
        self.clock.now += seconds
        waiting = [task_id for task_id, status in self.known.items() if status is TaskStatus.PENDING]
        self.do(self.tasks.fail_late())
        for task_id in waiting:
            task, deadline = self.record(task_id), self.deadlines.get(task_id, self.clock.now + 1)
            late = deadline <= self.clock.now and task.attempt == 0
            assert task.status is (TaskStatus.FAILED if late else TaskStatus.PENDING)
            if task.failure is not None:
                assert task.failure.code is FailureCode.DEADLINE_EXCEEDED

    @rule()
    def restart(self) -> None:
        """Like after kill -9: nothing is closed."""
        self._close()
        # What was waited for is read off the wall clock, and in this test that has hardly moved.
        self.deadlines = dict.fromkeys(self.deadlines, self.clock.now + 20)
        self._open()

    # -- what must hold -----------------------------------------------------------------------------------------------

    def record(self, task_id: str) -> GenerationTask:
        return self.do(self.tasks.records.get(task_id))

    @invariant()
    def no_task_is_lost_and_an_end_is_final(self) -> None:
        for task_id, before in self.known.items():
            task = self.record(task_id)
            if before.finished:
                assert task.status is before
            assert task.attempt <= MAX_ATTEMPTS
            assert bool(task.images) == (task.status is TaskStatus.COMPLETED)
            assert (task.failure is not None) == (task.status is TaskStatus.FAILED)
            assert (task.completed_at is not None) == task.status.finished
            self.known[task_id] = task.status
        assert self.do(self.journal.count()) == len(self.known)
        for task_id in self.deleted:
            with pytest.raises(TaskNotFound):
                self.record(task_id)

    @invariant()
    def the_queue_is_what_is_pending(self) -> None:
        pending = [task_id for task_id, status in self.known.items() if status is TaskStatus.PENDING]
        assert self.tasks.queue_size == len(pending)
        for task_id in self.known:
            outlook = self.tasks.outlook(self.record(task_id))
            assert (outlook is not None and outlook.position is not None) == (task_id in pending)

    @invariant()
    def the_journal_says_the_same(self) -> None:
        for task in self.do(self.journal.page(TaskFilter(), 1000)).tasks:
            assert task.status is self.known[task.id]

    @invariant()
    def no_more_models_are_resident_than_may_be_and_the_manager_knows_which(self) -> None:
        assert self.executor.most_loaded <= self.most
        assert {resident.model for resident in self.models.residents} == self.executor.loaded.keys()
        assert not self.executor.aborted_calls

    @invariant()
    def the_run_loop_is_alive_and_never_idle_while_something_waits(self) -> None:
        assert not self.running.done()
        assert self.executor.busy or self.tasks.queue_size == 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            while self.executor.busy:
                end = self.executor.end_load if self.executor.loading else self.executor.answer
                end(None)
                self.settle()
            assert all(self.record(task_id).status.finished for task_id in self.known)
            self._close()
            self.loop.close()
            self.folder.cleanup()


class TwoResidents(Service):
    most = 2


for machine in (Service, TwoResidents):
    machine.TestCase.settings = settings(
        max_examples=25 if machine is Service else 10,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )

TestService = pytest.mark.timeout(600)(Service.TestCase)
TestTwoResidents = pytest.mark.timeout(600)(TwoResidents.TestCase)
