"""Which tasks share a call, and how many pictures of a call pay."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.core.task import GenerationRequest, GenerationTask, Lora, Replay, TaskType
from imagegen.tasks.batching import MARGIN, TRY_AGAIN, TRY_AGAIN_IN_MEMORY, Payoffs, calls, companions, likeness
from imagegen.tasks.estimates import Now, forecast
from imagegen.tasks.lanes import Lanes
from imagegen.tasks.life import LiveTask
from imagegen.tasks.scheduling import USUAL, Costs, Current, Fairness
from imagegen.tasks.tickets import Likeness, TaskTicket
from imagegen.testing.engine import SCRIPTED
from tests.conftest import request_for

ALIKE = Likeness(64, 64, 4, 0.0, False)
OTHER = ALIKE._replace(width=128)
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def ticket(
    sequence: int, pictures: int = 1, alike: Likeness | None = ALIKE, model: str = "a", priority: int = 0
) -> TaskTicket:
    return TaskTicket(priority, sequence, f"task-{sequence}", model, 0, alike, pictures)


def along(first: TaskTicket, *waiting: TaskTicket, most: int = 8, now: float = 0) -> list[int]:
    return [it.sequence for it in companions(first, Lanes(waiting).companions(first, now, USUAL), most)]


def task(request: GenerationRequest | None = None, **fields: object) -> GenerationTask:
    given = {"id": "1", "type": TaskType.TEXT2IMAGE, "model": "a", "request": request or request_for()}
    return GenerationTask.model_validate(given | {"created_at": NOON} | fields)


# -- who goes along ----------------------------------------------------------------------------------------------------


def test_similar_tasks_join_a_call_in_order_of_arrival() -> None:
    assert along(ticket(3), ticket(9), ticket(4), ticket(7)) == [4, 7, 9]


def test_a_task_of_another_model_kind_or_rank_does_not_join_a_call() -> None:
    others = [ticket(2, model="b"), ticket(3, alike=OTHER), ticket(4, alike=None), ticket(5, priority=1)]
    assert along(ticket(1), *others, ticket(6)) == [6]


def test_a_task_that_runs_alone_shares_no_call_with_similar_tasks() -> None:
    assert along(ticket(1, alike=None), ticket(2, alike=None)) == []


def test_waiting_that_raises_a_rank_raises_it_here_as_well() -> None:
    now = USUAL.ageing_s
    assert along(ticket(1), ticket(2, priority=1), now=now - 1) == []
    assert along(ticket(1), ticket(2, priority=1), now=now) == [2]


def test_a_task_joins_a_call_with_all_its_pictures_or_not_at_all() -> None:
    assert along(ticket(1), ticket(2, 2), ticket(3, 2), ticket(4), most=4) == [2, 4]
    assert along(ticket(1, 4), ticket(2), most=4) == []
    assert along(ticket(1, 5), ticket(2), most=4) == []


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([ALIKE, OTHER, None])), min_size=1), st.integers(1, 16))
def test_calls_take_every_ticket_once_and_keep_within_the_most(wanted: list[tuple[int, Likeness]], most: int) -> None:
    tickets = [ticket(number, pictures, alike) for number, (pictures, alike) in enumerate(wanted)]
    shared = list(calls(tickets, lambda ticket: most))
    assert sorted(it.sequence for call in shared for it in call) == list(range(len(tickets)))
    for call in shared:
        assert len(call) == 1 or sum(it.pictures for it in call) <= most
        assert len({it.likeness for it in call}) == 1
        assert len(call) == 1 or call[0].likeness is not None


@pytest.mark.parametrize(
    "alone",
    [
        task(type=TaskType.IMAGE2IMAGE),
        task(request_for(loras=(Lora(path="a.safetensors", scale=1),))),
        task(previews=1),
        task(attempt=1),
        task(replay=Replay(of="0", pixels_sha256=(), provenance=SCRIPTED)),
    ],
)
def test_a_task_that_cannot_share_a_call_runs_alone(alone: GenerationTask) -> None:
    assert LiveTask(alone, 0).likeness is None


def test_words_and_seeds_may_differ_and_nothing_else() -> None:
    first = LiveTask(task(), 0).likeness
    assert first is not None
    assert LiveTask(task(request_for("else", seed=1, batch_size=3)), 0).likeness == first
    for other in ({"width": 128}, {"steps": 5}, {"guidance_scale": 1.0}, {"negative_prompt": "blur"}):
        assert likeness(TaskType.TEXT2IMAGE, request_for(**other), 0) != first


# -- what pays ---------------------------------------------------------------------------------------------------------


def learned(payoffs: Payoffs, *runs: tuple[int, float]) -> Payoffs:
    for pictures, pace in runs:
        payoffs.learn("a", ALIKE.kind, pictures, pace)
    return payoffs


def most(payoffs: Payoffs, max_batch: int = 8) -> int:
    return payoffs.most("a", ALIKE.kind, max_batch)


def test_before_one_by_one_was_measured_there_is_nothing_to_beat() -> None:
    payoffs = Payoffs()
    assert most(payoffs) == 1
    assert most(learned(payoffs, (1, 9.0))) == 1  # the first one may have had the device to warm up
    assert most(learned(payoffs, (1, 1.0))) == 2


def test_it_grows_by_doubling_as_long_as_that_pays() -> None:
    payoffs, seen = learned(Payoffs(), (1, 1.0), (1, 1.0)), list[int]()
    for _ in range(4):
        seen.append(most(payoffs, 24))
        learned(payoffs, (seen[-1], 1 / seen[-1]))
    assert seen == [2, 4, 8, 16]
    assert most(payoffs, 24) == 24
    assert most(payoffs, 8) == 8


def test_a_size_that_does_not_pay_is_declined_after_three_runs() -> None:
    payoffs = learned(Payoffs(), (1, 1.0), (1, 1.0), (2, 0.98), (2, 0.98))
    assert most(payoffs) == 2
    assert most(learned(payoffs, (2, 0.98))) == 1


def test_tasks_of_several_pictures_are_not_split() -> None:
    payoffs = learned(Payoffs(), (1, 1.0), (1, 1.0))
    assert payoffs.most("a", ALIKE.kind, 8, pictures=4) == 4
    assert payoffs.most("a", ALIKE.kind, 8, pictures=3) == 4
    assert payoffs.most("a", ALIKE.kind, 8, pictures=9) == 8  # which is too few for it: one by one
    learned(payoffs, (4, 0.5))
    assert payoffs.most("a", ALIKE.kind, 8, pictures=4) == 8
    assert most(payoffs) == 2
    assert payoffs.most("a", ALIKE.kind, 4, pictures=4) == 4
    learned(payoffs, (8, 0.6), (8, 0.6), (8, 0.6))
    assert payoffs.most("a", ALIKE.kind, 8, pictures=4) == 4


def test_a_first_run_that_had_to_compile_is_forgiven() -> None:
    assert most(learned(Payoffs(), (1, 1.0), (1, 1.0), (2, 30.0), (2, 0.5))) == 4


def test_a_larger_size_must_beat_the_smaller_one_and_not_only_one_by_one() -> None:
    payoffs = learned(Payoffs(), (1, 1.0), (1, 1.0), (2, 0.6), *[(4, 0.59)] * 3)
    assert most(payoffs) == 2


def test_if_everything_becomes_slower_all_sizes_are_measured_again() -> None:
    payoffs = learned(Payoffs(), (1, 1.0), (1, 1.0), *[(2, 0.5)] * 3)
    assert most(learned(payoffs, *[(2, 5.0)] * 4), 2) == 2  # a slow run or two are somebody else's doing
    learned(payoffs, (2, 5.0))
    assert most(payoffs, 2) == 1
    assert most(learned(payoffs, (1, 10.0), (1, 10.0)), 2) == 2
    assert most(learned(payoffs, (2, 5.0), (2, 5.0)), 2) == 2


def test_a_declined_size_is_tried_again_after_many_calls_or_another_load() -> None:
    declined = [(1, 1.0), (1, 1.0), (2, 1.0), (2, 1.0), (2, 1.0)]
    payoffs = learned(Payoffs(), *declined, *[(1, 1.0)] * (TRY_AGAIN - 1))
    assert most(payoffs) == 1
    assert most(learned(payoffs, (1, 1.0))) == 2
    payoffs = learned(Payoffs(), *declined)
    payoffs.loaded("a", NOON)
    assert most(payoffs) == 2
    learned(payoffs, *declined[2:])
    payoffs.loaded("a", NOON)
    assert most(payoffs) == 1
    payoffs.loaded("a", NOON + timedelta(seconds=1))
    assert most(payoffs) == 2


def test_a_size_that_the_memory_did_not_hold_is_left_alone_for_long() -> None:
    payoffs = learned(Payoffs(), (1, 1.0), (1, 1.0), (2, 0.5))
    payoffs.failed("a", ALIKE.kind, 4, too_large=True)
    payoffs.loaded("a", NOON)
    assert most(payoffs) == 2
    learned(payoffs, *[(2, 0.5)] * (TRY_AGAIN_IN_MEMORY - 1))
    assert most(payoffs) == 2
    assert most(learned(payoffs, (2, 0.5))) == 4


def test_after_a_call_that_failed_in_another_way_smaller_ones_are_made_for_a_while() -> None:
    payoffs = learned(Payoffs(), (1, 1.0), (1, 1.0), (2, 0.5), (4, 0.25))
    for expected in (4, 2, 1):  # whatever it is that several cannot do, it is not tried for ever
        payoffs.failed("a", ALIKE.kind, most(payoffs), too_large=False)
        assert most(payoffs) == expected
    assert most(learned(payoffs, *[(1, 1.0)] * TRY_AGAIN)) == 2


@given(st.integers(2, 64), st.integers(2, 64))
def test_a_call_that_was_too_large_is_not_repeated(max_batch: int, pictures: int) -> None:
    """The size always shrinks: a returned task must not get into the same call again."""
    payoffs = learned(Payoffs(), *[(1, 1.0)] * 2, *[(2**n, 1 / 2**n) for n in range(1, 7)])
    pictures = min(pictures, most(payoffs, max_batch))
    payoffs.failed("a", ALIKE.kind, pictures, too_large=True)
    assert most(payoffs, max_batch) < pictures


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0.01, 100)), max_size=60), st.integers(1, 64))
def test_the_next_call_has_at_most_max_batch_pictures(runs: list[tuple[int, float]], max_batch: int) -> None:
    payoffs = learned(Payoffs(), *runs)
    assert 1 <= most(payoffs, max_batch) <= max_batch


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_sizes_that_do_not_pay_are_declined_after_three_runs(one: float, two: float) -> None:
    payoffs = learned(Payoffs(), (1, one), (1, one), *[(2, two)] * 3)
    assert (most(payoffs, 2) == 2) == (two <= one * (1 - MARGIN))


# -- what follows for forecasts ----------------------------------------------------------------------------------------


class CallsOfThree:
    """Calls of up to three pictures, which take half the time of single ones."""

    def work_s(self, ticket: TaskTicket) -> float:
        return 2.0 * ticket.pictures

    def most(self, ticket: TaskTicket) -> int:
        return 3

    def share(self, ticket: TaskTicket, pictures: int) -> float:
        return 0.5 if pictures > 1 else 1.0

    def stays(self, model: str, residents: Sequence[str]) -> Sequence[str]:
        return ()


def test_tasks_of_a_shared_call_are_expected_to_begin_and_end_together() -> None:
    now = Now(Current("a"), Costs({}, {}), 0, Fairness(), 0.0)
    tickets = [ticket(1), ticket(2, alike=None), ticket(3), ticket(4), ticket(5)]
    told = forecast(Lanes(tickets), now, CallsOfThree())
    times = {task_id: (it.start_s, it.finish_s, it.position) for task_id, it in told.items()}
    assert times == {
        "task-1": (0, 3, 0),
        "task-3": (0, 3, 1),
        "task-4": (0, 3, 2),
        "task-2": (3, 5, 3),
        "task-5": (5, 7, 4),
    }
    assert all(it.measured for it in told.values())


def test_a_share_is_known_once_both_ways_were_measured() -> None:
    payoffs = learned(Payoffs(), (1, 2.0))
    assert payoffs.share("a", ALIKE.kind, 2) == 1
    assert learned(payoffs, (2, 0.5)).share("a", ALIKE.kind, 3) == 0.25
    assert payoffs.share("b", ALIKE.kind, 3) == 1
