"""LiveTask: its methods agree with its table of transitions, and no other class writes a task's record or stage."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import imagegen
from imagegen.core.errors import FailureCode
from imagegen.core.task import MAX_ATTEMPTS, Failure, GenerationTask, StoredImage, TaskStatus
from imagegen.tasks import life
from imagegen.tasks.life import Ended, Ending, IllegalTransition, LiveTask, Queued, Saving, StopRequest
from imagegen.testing.engine import SCRIPTED
from tests.unit.conftest import MORNING, task_of

NOON = MORNING + timedelta(hours=4)
FAILURE = Failure(code=FailureCode.GENERATION_FAILED, message="broke")
IMAGES = (StoredImage(path="20261123/x-0.png", width=8, height=6, seed=7),)

#: What may happen to a task: the method, and the call.
EVENTS: dict[str, tuple[str, Callable[[LiveTask], object]]] = {
    "accepted": ("enqueue", lambda it: it.enqueue(2)),
    "other tasks were cancelled": ("note_position", lambda it: it.note_position(1)),
    "its weights are missing": ("park", lambda it: it.park()),
    "its weights are here": ("unpark", lambda it: it.unpark()),
    "taken from the queue": ("start", lambda it: it.start(NOON)),
    "its model is loaded": ("begin", lambda it: it.begin()),
    "its worker died": ("put_back", lambda it: it.put_back(counts=True)),
    "out of memory in a shared call": ("put_back", lambda it: it.put_back(counts=False)),
    "a shared call failed": ("put_back", lambda it: it.put_back(counts=False, alone=True)),
    "its pictures are made": ("save", lambda it: it.save(SCRIPTED)),
    "its pictures are spooled": ("store", lambda it: it.store(IMAGES)),
    "the store is down": ("wait_for_store", lambda it: it.wait_for_store()),
    "its pictures are stored": ("complete", lambda it: it.complete(IMAGES, NOON)),
    "it failed or missed its deadline": ("fail", lambda it: it.fail(FAILURE, NOON)),
    "cancelled": ("cancel", lambda it: it.cancel(NOON)),
    "its end is written": ("finish", lambda it: it.finish()),
}

#: The shortest way to each stage.
WAYS: dict[str, list[str]] = {
    "QUEUED": [],
    "PARKED": ["its weights are missing"],
    "LOADING": ["taken from the queue"],
    "RUNNING": ["taken from the queue", "its model is loaded"],
    "SAVING": ["taken from the queue", "its model is loaded", "its pictures are made"],
    "ENDING": ["cancelled"],
    "ENDED": ["cancelled", "its end is written"],
}

STATUSES = {
    "QUEUED": {TaskStatus.PENDING},
    "PARKED": {TaskStatus.PENDING},
    "LOADING": {TaskStatus.PROCESSING},
    "RUNNING": {TaskStatus.PROCESSING},
    "SAVING": {TaskStatus.PROCESSING},
    "ENDING": {TaskStatus.PENDING, TaskStatus.PROCESSING},
    "ENDED": {TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED},
}


def read_table() -> dict[str, tuple[set[str], str]]:
    """The table in LiveTask's docstring: for each method the stages it may start from, and the next stage."""
    rows = re.findall(r"^ +(\w+) +([A-Z]+(?:, [A-Z]+)*) +([A-Z]+)$", LiveTask.__doc__ or "", re.MULTILINE)
    return {method: (set(sources.split(", ")), target) for method, sources, target in rows}


TABLE = read_table()


def new(**changes: Any) -> LiveTask:
    return LiveTask(task_of(1, **changes), since=100)


def at(stage: str) -> LiveTask:
    live = new()
    for event in WAYS[stage]:
        EVENTS[event][1](live)
    return live


def name(live: LiveTask) -> str:
    return type(live.stage).__name__.upper()


def state(live: LiveTask) -> tuple[Any, ...]:
    return live.record, live.stage, live.stop_request, live.likeness, live.fetched


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_names_every_stage_and_every_method_that_changes_it() -> None:
    assert {method for method, _ in EVENTS.values()} == set(TABLE)
    assert {source for sources, _ in TABLE.values() for source in sources} | {"ENDED"} == set(WAYS)
    assert {stage.__name__.upper() for stage in life.Stage.__args__} == set(WAYS)
    methods = {it for it, _ in inspect.getmembers(LiveTask, inspect.isfunction) if not it.startswith("_")}
    assert methods - set(TABLE) == {"ticket", "is_late", "until_stop_requested", "request_stop", "charge"}


@pytest.mark.parametrize("stage", WAYS)
@pytest.mark.parametrize("event", EVENTS)
def test_each_method_follows_the_table_or_raises_and_changes_nothing(event: str, stage: str) -> None:
    live, (method, act) = at(stage), EVENTS[event]
    before = state(live)
    sources, target = TABLE[method]
    if stage in sources:
        act(live)
        assert name(live) == target
    else:
        with pytest.raises(IllegalTransition, match=live.record.id):
            act(live)
        assert state(live) == before


class Life(RuleBasedStateMachine):
    """A task on which the methods are called in any order."""

    @initialize(attempt=st.integers(0, MAX_ATTEMPTS - 1), spooled=st.booleans())
    def begin(self, attempt: int, spooled: bool) -> None:
        if spooled:
            left = task_of(1, status=TaskStatus.PROCESSING, attempt=attempt + 1, storing=IMAGES)
            self.live = LiveTask.recovered(left, 100, None, spooled=True)
        else:
            self.live = new(attempt=attempt)
        self.ends: list[GenerationTask] = []
        self.ended: GenerationTask | None = None

    def happen(self, event: str) -> None:
        method, act = EVENTS[event]
        sources, target = TABLE[method]
        before, stage = state(self.live), name(self.live)
        no_attempt_left = event == "its worker died" and self.live.record.attempt >= MAX_ATTEMPTS
        if stage not in sources or no_attempt_left:
            with pytest.raises(IllegalTransition):
                act(self.live)
            assert state(self.live) == before
            return
        result = act(self.live)
        assert name(self.live) == target
        if isinstance(result, GenerationTask):
            self.ends.append(result)
        if target == "ENDED":
            self.ended = self.live.record

    @precondition(lambda self: self.ended is None)
    @rule(data=st.data())
    def something_possible_happens(self, data: st.DataObject) -> None:
        stage = name(self.live)
        possible = [event for event, (method, _) in EVENTS.items() if stage in TABLE[method][0]]
        self.happen(data.draw(st.sampled_from(possible)))

    @precondition(lambda self: name(self.live) == "QUEUED")
    @rule()
    def its_pictures_are_begun(self) -> None:
        for event in WAYS["RUNNING"]:
            self.happen(event)

    @precondition(lambda self: name(self.live) == "RUNNING")
    @rule(event=st.sampled_from([event for event, (method, _) in EVENTS.items() if "RUNNING" in TABLE[method][0]]))
    def its_call_ends(self, event: str) -> None:
        self.happen(event)

    @rule(event=st.sampled_from(list(EVENTS)))
    def something_happens_that_may_be_impossible(self, event: str) -> None:
        self.happen(event)

    @rule(request=st.sampled_from(StopRequest))
    def somebody_asks_it_to_stop(self, request: StopRequest) -> None:
        before = self.live.stop_request
        self.live.request_stop(request)
        assert self.live.stop_request is max(before, request)

    @invariant()
    def it_ends_once(self) -> None:
        assert len(self.ends) == self.live.ending
        assert self.live.record == (self.ended or self.live.record)
        if self.ended is not None:
            assert self.ends == [self.ended]

    @invariant()
    def the_record_agrees_with_the_stage(self) -> None:
        task = self.live.record
        assert task.status in STATUSES[name(self.live)]
        assert (task.failure is not None) == (task.status is TaskStatus.FAILED)
        assert (task.completed_at is not None) == task.status.finished
        if task.status is TaskStatus.COMPLETED:
            assert (task.images, task.storing) == (IMAGES, ())

    @invariant()
    def it_is_attempted_at_most_twice(self) -> None:
        assert 0 <= self.live.record.attempt <= MAX_ATTEMPTS


Life.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestLife = Life.TestCase


# -- what a stage carries ----------------------------------------------------------------------------------------------


def test_an_attempt_counts_from_the_end_of_the_load() -> None:
    live = at("LOADING")
    assert (live.record.attempt, live.record.started_at) == (0, NOON)
    live.begin()
    assert live.record.attempt == 1
    live.put_back(counts=False)
    assert (live.record.attempt, live.record.started_at) == (0, None)
    live.start(NOON)
    live.put_back(counts=False)
    assert live.record.attempt == 0


def test_a_task_without_an_attempt_left_is_not_put_back() -> None:
    live = new(attempt=1)
    live.start(NOON)
    live.begin()
    with pytest.raises(IllegalTransition, match="no attempt left"):
        live.put_back(counts=True)
    live.put_back(counts=False)  # a drain
    assert live.record.attempt == 1


def test_a_task_runs_alone_after_an_attempt_that_counted_or_a_shared_call_that_failed() -> None:
    live = new()
    assert live.likeness is not None
    live.start(NOON)
    live.put_back(counts=False)
    assert live.likeness is not None
    live.start(NOON)
    live.put_back(counts=False, alone=True)
    assert live.likeness is None
    live.start(NOON)
    live.put_back(counts=False)
    assert live.likeness is None
    assert at("RUNNING").likeness is None


def test_the_higher_stop_request_stays_until_the_task_is_put_back() -> None:
    live = at("RUNNING")
    assert (live.stop_request, live.told_to_stop) == (StopRequest.NONE, False)
    live.request_stop(StopRequest.STORE_LATER)
    assert not live.told_to_stop
    live.request_stop(StopRequest.CANCEL)
    live.request_stop(StopRequest.PUT_BACK)
    assert (live.stop_request, live.told_to_stop) == (StopRequest.CANCEL, True)
    live.put_back(counts=False)
    assert (live.stop_request, live.told_to_stop) == (StopRequest.NONE, False)


def test_a_position_is_reported_once() -> None:
    live = new()
    live.enqueue(3)
    assert live.stage == Queued(position=3, published=3)
    assert not live.note_position(3)
    assert live.note_position(2)
    assert not live.note_position(2)
    assert live.stage == Queued(position=3, published=2)


def test_a_store_that_is_down_is_reported_once() -> None:
    live = at("SAVING")
    assert live.wait_for_store()
    assert not live.wait_for_store()
    assert live.stage == Saving(waits_for_store=True)


def test_an_end_is_not_in_the_record_before_it_is_written() -> None:
    live = at("RUNNING")
    ended = live.fail(FAILURE, NOON)
    assert (ended.status, ended.failure, ended.completed_at) == (TaskStatus.FAILED, FAILURE, NOON)
    assert live.record.status is TaskStatus.PROCESSING
    assert (live.stage, live.ending) == (Ending(ended), True)
    live.finish()
    assert (live.record, live.stage) == (ended, Ended())


def test_stored_pictures_are_in_the_record_before_its_end_is_written() -> None:
    live = at("SAVING")
    live.store(IMAGES)
    assert (live.record.storing, live.record.provenance) == (IMAGES, SCRIPTED)
    ended = live.complete(IMAGES, NOON)
    assert (live.record.status, live.record.images, live.record.storing) == (TaskStatus.PROCESSING, IMAGES, ())
    assert (ended.status, ended.images, ended.storing) == (TaskStatus.COMPLETED, IMAGES, ())


@pytest.mark.parametrize(
    ("left", "spooled", "stage", "attempt"),
    [
        ({"attempt": 1}, False, "QUEUED", 1),
        ({"attempt": 1, "status": TaskStatus.PROCESSING}, False, "QUEUED", 1),
        ({"attempt": 2, "status": TaskStatus.PROCESSING, "storing": IMAGES}, False, "QUEUED", 1),
        ({"attempt": 2, "status": TaskStatus.PROCESSING, "storing": IMAGES}, True, "SAVING", 2),
    ],
)
def test_a_task_that_an_earlier_run_left_waits_or_saves_its_pictures(
    left: dict[str, Any], spooled: bool, stage: str, attempt: int
) -> None:
    live = LiveTask.recovered(task_of(1, **left), 100, 160, spooled=spooled)
    assert (name(live), live.record.attempt) == (stage, attempt)
    assert live.record.status in STATUSES[stage]
    assert live.record.storing == (IMAGES if spooled else ())


def test_a_deadline_holds_until_the_first_attempt() -> None:
    live = LiveTask(task_of(1), since=100, deadline=160)
    assert (live.is_late(159), live.is_late(160)) == (False, True)
    live.start(NOON)
    live.begin()
    live.put_back(counts=True)
    assert not live.is_late(160)
    assert not new().is_late(10_000)


def test_its_repr_shows_its_progress() -> None:
    live = at("RUNNING")
    assert repr(live) == f"<LiveTask [{live.record.id}, RUNNING, Model: fake, Attempt: 1]>"


# -- one writer --------------------------------------------------------------------------------------------------------

#: Attributes and properties of LiveTask.
OWN = set(vars(new())) | {it for it, value in vars(LiveTask).items() if isinstance(value, property)}


def foreign_writes(source: str) -> Iterator[int]:
    """Lines that write an attribute of a LiveTask from outside, or make another version of a record."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del) and node.attr in OWN:
            if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called in ("evolve", "model_copy", "setattr", "__setattr__"):
                yield node.lineno


@pytest.mark.parametrize(
    "line",
    [
        "live._record = ended",
        "call.first._stage = Ended()",
        "live.record, x = ended, 1",
        "live.deadline += 1",
        "self.live[task_id].record = ended",
        "del live._stage",
        "setattr(live, '_record', ended)",
        "ended = live.record.evolve(status=status)",
        "ended = record.model_copy(update={})",
    ],
)
def test_the_check_for_foreign_writes_finds_one(line: str) -> None:
    assert list(foreign_writes(line)) == [1]


def test_no_other_class_writes_a_task_s_record_or_stage() -> None:
    folder = Path(imagegen.__file__).parent / "tasks"
    files = [path for path in sorted(folder.rglob("*.py")) if path.name != "life.py"]
    assert len(files) > 10
    for path in files:
        assert list(foreign_writes(path.read_text())) == [], path.name
    with pytest.raises(AttributeError):
        new().record = task_of(2)  # type: ignore[misc]
