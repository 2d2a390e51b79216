"""Estimates of the times of waiting tasks: by measured times, in the order of `choose`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.tasks.estimates import HORIZON, MAX_SIZES, Forecast, Now, Paces, beyond, forecast, remaining_s
from imagegen.tasks.lanes import Lanes
from imagegen.tasks.scheduling import Costs, Current, Fairness, Stays, choose
from imagegen.tasks.tickets import TaskTicket, Work
from tests.conftest import request_for

LOADS = {"a": 10.0, "b": 20.0, "c": 30.0}
WORKS = {"a": 1.0, "b": 2.0, "c": 3.0}


def ticket(sequence: int, model: str = "a", priority: int = 0) -> TaskTicket:
    return TaskTicket(priority, sequence, f"task-{sequence}", model, since=0)


@dataclass
class Expected:
    """The expected times of a forecast, set by the test."""

    work: Callable[[TaskTicket], float | None] = lambda ticket: WORKS[ticket.model]
    keeping: Stays = lambda model, residents: ()

    def work_s(self, ticket: TaskTicket) -> float | None:
        return self.work(ticket)

    def most(self, ticket: TaskTicket) -> int:
        return 1

    def share(self, ticket: TaskTicket, pictures: int) -> float:
        return 1

    def stays(self, model: str, residents: Sequence[str]) -> Sequence[str]:
        return self.keeping(model, residents)


def told(tickets: list[TaskTicket], expected: Expected | None = None, **changes: Any) -> dict[str, Forecast]:
    usual = Now(Current("a"), Costs(LOADS, WORKS), 0, Fairness(), 5.0)
    return forecast(Lanes(tickets), usual._replace(**changes), expected or Expected())


# -- paces -------------------------------------------------------------------------------------------------------------


def test_a_size_that_ran_is_expected_to_take_as_long_again_for_as_many_steps() -> None:
    paces = Paces()
    paces.learn("a", request_for(steps=4), 8)
    assert paces.expect("a", Work.of(request_for(steps=6, batch_size=2))) == pytest.approx(24)


def test_another_size_is_expected_in_proportion_to_the_nearest_one() -> None:
    paces = Paces()
    paces.learn("a", request_for(width=64, height=64), 1)
    paces.learn("a", request_for(width=1024, height=1024), 100)
    assert paces.expect("a", Work.of(request_for(width=1024, height=512))) == pytest.approx(50)


def test_image_to_image_is_measured_for_itself_and_runs_a_part_of_the_steps() -> None:
    paces = Paces()
    paces.learn("a", request_for(steps=10), 10)
    assert paces.expect("a", Work.of(request_for(steps=10, strength=0.5))) == pytest.approx(5)
    paces.learn("a", request_for(steps=10, strength=0.5), 20)
    assert paces.expect("a", Work.of(request_for(steps=10, strength=0.5))) == pytest.approx(20)
    assert paces.expect("a", Work.of(request_for(steps=10))) == pytest.approx(10)


def test_the_pace_of_a_model_that_never_ran_is_unknown() -> None:
    paces = Paces()
    paces.learn("a", request_for(), 1)
    assert paces.expect("b", Work.of(request_for())) is None
    assert dict(paces.work_s) == {"a": 1}


def test_one_slow_task_does_not_turn_everything_over() -> None:
    paces = Paces()
    for seconds in (10, 10, 10, 100):
        paces.learn("a", request_for(), seconds)
    expected = paces.expect("a", Work.of(request_for()))
    assert expected is not None
    assert 10 < expected < 50


def test_what_work_takes_at_least_is_known_from_the_second_call_on() -> None:
    """The first call may compile the model. Later ones must not be refused for that."""
    paces, work = Paces(), Work.of(request_for(steps=4, batch_size=2))
    paces.learn("a", request_for(steps=4), 400)
    assert paces.at_least("a", work) is None
    paces.learn("a", request_for(steps=4), 8)
    assert paces.at_least("a", work) == pytest.approx(16)
    paces.learn("a", request_for(steps=4), 20)
    assert paces.at_least("a", work) == pytest.approx(16)
    assert paces.at_least("b", work) is None


def test_callers_choose_the_sizes_and_cannot_fill_the_memory() -> None:
    paces = Paces()
    for width in range(16, 16 + 5 * MAX_SIZES):
        paces.learn("a", request_for(width=width), 1)
    assert len(paces._step_s["a"]) == MAX_SIZES


# -- forecasts ---------------------------------------------------------------------------------------------------------


def test_a_forecast_adds_up_what_is_running_the_swaps_and_the_work() -> None:
    forecasts = told([ticket(1), ticket(2, "b"), ticket(3)])
    assert [forecasts[f"task-{n}"][:3] for n in (1, 3, 2)] == [(0, 5, 6), (1, 6, 7), (2, 27, 29)]
    assert all(each.measured for each in forecasts.values())


def test_the_forecast_has_the_order_of_priorities() -> None:
    forecasts = told([ticket(1), ticket(2, "b", -1), ticket(3, "c", 1)])
    assert [forecasts[f"task-{n}"].position for n in (2, 1, 3)] == [0, 1, 2]


def test_an_unmeasured_task_leaves_all_estimates_behind_it_unknown() -> None:
    tickets = [ticket(1), ticket(2, "b"), ticket(3, "c")]
    for change in (
        {"costs": Costs({"a": 10.0, "c": 30.0}, WORKS)},
        {"expected": Expected(lambda ticket: None if ticket.model == "b" else 1.0)},
    ):
        forecasts = told(tickets, **change)
        behind = [each for each in forecasts.values() if each.position >= forecasts["task-2"].position]
        assert [each.measured for each in behind] == [False] * len(behind)
        assert forecasts["task-1"].measured
        assert all(each.start_s < each.finish_s for each in forecasts.values())
    assert not told([ticket(1)], busy_s=None)["task-1"].measured


def test_an_empty_queue_has_no_positions() -> None:
    assert told([]) == {}


@given(st.lists(st.sampled_from("abc"), max_size=30), st.sampled_from("abc"))
def test_with_one_priority_the_order_is_that_of_choose(models: list[str], resident: str) -> None:
    tickets = [ticket(n, model) for n, model in enumerate(models)]
    forecasts = told(tickets, current=Current(resident), busy_s=0.0)
    left, current, now, order = list(tickets), Current(resident), 0.0, []
    while left:
        chosen = choose(left, current, Costs(LOADS, WORKS), now)
        left.remove(chosen)
        order.append(chosen.task_id)
        served_s = current.served_s if chosen.model == current.model else 0
        now += WORKS[chosen.model] + (0 if chosen.model == current.model else LOADS[chosen.model])
        current = Current(chosen.model, served_s + WORKS[chosen.model])
    assert sorted(forecasts, key=lambda task_id: forecasts[task_id].position) == order


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.permutations("abcd"), st.integers(1, 4))
def test_with_several_resident_models_the_order_is_that_of_choose(
    models: list[str], residents: list[str], most: int
) -> None:
    tickets, current = [ticket(n, model) for n, model in enumerate(models)], resident(*residents[:most])
    costs, hasty = Costs(LOADS | {"d": 1.0}, WORKS | {"d": 9.0}), Fairness(0.1, 0.1)
    forecasts = told(
        tickets,
        Expected(lambda it: costs.work(it.model), keeping(most)),
        current=current,
        costs=costs,
        fairness=hasty,
        busy_s=0.0,
    )
    left, now, held = list(tickets), 0.0, residents[:most]
    while left:
        chosen = choose(left, current, costs, now, hasty)
        left.remove(chosen)
        now += 0 if chosen.model in held else costs.swap(chosen.model)
        assert (forecasts[chosen.task_id].position, forecasts[chosen.task_id].start_s) == (
            len(forecasts) - len(left) - 1,
            now,
        )
        now += costs.work(chosen.model)
        served_s = costs.work(chosen.model) + (current.served_s if chosen.model in held else 0)
        held = [chosen.model, *(it for it in held if it != chosen.model)][:most]
        current = Current(held[0], served_s, tuple(held[1:]))


def resident(model: str, *beside: str) -> Current:
    return Current(model, 0, beside)


def keeping(most: int) -> Stays:
    return lambda model, residents: residents[: most - 1]


def test_a_resident_model_costs_no_swap_and_an_evicted_one_does() -> None:
    forecasts = told(
        [ticket(1, "b"), ticket(2, "a"), ticket(3, "c", 1), ticket(4, "b", 2)],
        Expected(keeping=keeping(2)),
        current=resident("a", "b"),
    )
    assert [forecasts[f"task-{n}"][:3] for n in (1, 2, 3, 4)] == [(0, 5, 7), (1, 7, 8), (2, 38, 41), (3, 61, 63)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2)), max_size=30))
def test_every_task_has_a_place_of_its_own_and_its_times_follow_it(waiting: list[tuple[str, int]]) -> None:
    forecasts = told([ticket(n, *each) for n, each in enumerate(waiting)])
    ordered = sorted(forecasts.values())
    assert [each.position for each in ordered] == list(range(len(waiting)))
    assert all(one.finish_s <= other.start_s for one, other in pairwise(ordered))


def test_what_runs_is_expected_to_take_its_share_else_it_goes_by_its_own_pace() -> None:
    assert remaining_s(10, (0, 0), 3) == 7
    assert remaining_s(10, (0, 0), 30) == 0
    assert remaining_s(10, (3, 4), 100) == 2.5
    assert remaining_s(None, (3, 4), 9) == 3
    assert remaining_s(None, (0, 0), 9) is None


def test_a_forecast_extrapolates_at_the_same_rate_behind_its_horizon() -> None:
    forecasts = told([ticket(number) for number in range(3 * HORIZON)], busy_s=0.0)
    assert len(forecasts) == HORIZON
    last = beyond(forecasts, 2 * HORIZON)
    assert last == Forecast(2 * HORIZON, 2 * HORIZON * WORKS["a"], (2 * HORIZON + 1) * WORKS["a"], True)
    # By priority and arrival it is before some tasks that `choose` takes first.
    assert beyond(forecasts, 3).position == HORIZON
