"""Lanes give the same answers to the rules of `choose` as a plain list."""

from collections import Counter
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from imagegen.tasks import lanes as module
from imagegen.tasks.lanes import Lane, Lanes
from imagegen.tasks.scheduling import Fairness, by_model, foremost
from imagegen.tasks.tickets import TaskTicket

AGEING = Fairness(ageing_s=10)

#: Model, priority, and seconds since the task before it.
ARRIVALS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2), st.integers(0, 9)), max_size=40)


def tickets_of(arrivals: list[tuple[str, int, int]]) -> list[TaskTicket]:
    times = accumulate(wait for _, _, wait in arrivals)
    return [
        TaskTicket(priority, number, str(number), model, since)
        for number, ((model, priority, _), since) in enumerate(zip(arrivals, times, strict=True))
    ]


@given(ARRIVALS, st.integers(0, 60), st.sampled_from([Fairness(), AGEING, Fairness(ageing_s=0)]))
def test_rule_1_leaves_the_same_tasks_as_on_a_list(
    arrivals: list[tuple[str, int, int]], later: int, fairness: Fairness
) -> None:
    tickets = tickets_of(arrivals)
    now = (tickets[-1].since if tickets else 0) + later
    expected = by_model(foremost(tickets, now, fairness)) if tickets else {}
    assert Lanes(tickets).waiting(now, fairness) == expected


@given(ARRIVALS)
def test_the_numbers_and_the_front_are_those_of_a_list(arrivals: list[tuple[str, int, int]]) -> None:
    tickets = tickets_of(arrivals)
    lanes = Lanes(tickets)
    assert lanes.numbers == Counter((it.priority, it.model) for it in tickets)
    assert lanes.front == min(tickets, default=None)


@given(ARRIVALS, st.integers(0, 60), st.data())
def test_the_companions_of_a_task_are_those_that_pass_rule_1_with_it(
    arrivals: list[tuple[str, int, int]], later: int, data: st.DataObject
) -> None:
    tickets = tickets_of([*arrivals, ("a", 0, 0)])
    first = data.draw(st.sampled_from(tickets))
    others = [ticket for ticket in tickets if ticket is not first]
    now = tickets[-1].since + later
    expected = [it for it in foremost(tickets, now, AGEING) if it is not first and it.model == first.model]
    assert list(Lanes(others).companions(first, now, AGEING)) == expected


@given(ARRIVALS, st.integers(0, 60))
def test_the_groups_have_every_task_once_the_foremost_first(arrivals: list[tuple[str, int, int]], later: int) -> None:
    tickets = tickets_of(arrivals)
    now = (tickets[-1].since if tickets else 0) + later
    lanes, taken = Lanes(tickets), list[list[TaskTicket]]()
    for group in lanes.groups(now, AGEING):
        taken.append([])
        for model, tickets_of_model in group.items():
            while (waiting := tickets_of_model.waiting) is not None:
                taken[-1].append(tickets_of_model.take())
                assert taken[-1][-1] is waiting.oldest
                assert waiting.oldest.model == model
    assert sorted(ticket for group in taken for ticket in group) == sorted(tickets)
    if tickets:
        assert sorted(taken[0]) == sorted(foremost(tickets, now, AGEING))
        for later_group in taken[1:]:
            assert len({it.priority for it in later_group}) == 1
    # Nothing was taken out of the lanes themselves.
    assert lanes.waiting(now, AGEING) == Lanes(tickets).waiting(now, AGEING)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=80),
    st.lists(st.integers(0, 60), min_size=1, max_size=3),
)
def test_a_lane_of_many_blocks_is_a_sorted_list(steps: list[tuple[int, bool]], asked: list[int]) -> None:
    usual, module.BLOCK = module.BLOCK, 4
    try:
        lane, kept = Lane(), dict[int, TaskTicket]()
        for number, adds in steps:
            if adds and number not in kept:
                kept[number] = TaskTicket(0, number, str(number), "a", number / 2)
                lane.add(kept[number])
            elif not adds and number in kept:
                lane.remove(kept.pop(number))
            expected = sorted(kept.values())
            assert list(lane) == expected
            assert lane.number == len(expected)
            for since in asked:
                until = [it.since for it in expected if it.since <= since / 2]
                assert lane.until(since / 2) == (len(until), sum(until))
    finally:
        module.BLOCK = usual
