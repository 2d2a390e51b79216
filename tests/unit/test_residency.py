"""Which models are evicted to make room, and which are idle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.models.residency import Kills, Need, Resident, Warm, is_idle, victims_for, warm_to_drop
from tests.conftest import request_for
from tests.unit.conftest import MORNING


def resident(model: str = "a", *, last_used: float = 0) -> Resident:
    return Resident(model=model, weight_bytes=1, loaded_at=MORNING, last_used_at=MORNING, last_used=last_used)


def need(own: int, *, working: int = 0, limit: int = 100, **shared: int) -> Need:
    return Need(own=own, shared=shared, working=working, limit=limit)


SMALL = dict.fromkeys("abcd", need(1))


def test_with_one_resident_model_everyone_else_leaves() -> None:
    assert victims_for("c", ["a", "b"], 1, SMALL) == ["a", "b"]


def test_an_empty_device_has_no_victims() -> None:
    assert victims_for("a", [], 1, SMALL) == []


def test_a_model_does_not_make_room_for_itself() -> None:
    assert victims_for("a", ["a"], 1, SMALL) == []
    assert victims_for("a", ["a", "b"], 2, SMALL) == []


def test_no_more_models_stay_than_may_and_the_least_recently_used_leave_first() -> None:
    assert victims_for("d", ["a", "b", "c"], 3, SMALL) == ["a"]
    assert victims_for("d", ["a", "b", "c"], 2, SMALL) == ["a", "b"]
    assert victims_for("d", ["a", "b", "c"], 4, SMALL) == []


def test_no_more_models_stay_than_fit() -> None:
    needs = {"a": need(40), "b": need(30), "c": need(30), "d": need(41)}
    assert victims_for("c", ["a", "b"], 9, needs) == []
    assert victims_for("d", ["a", "b"], 9, needs) == ["a"]
    assert victims_for("d", ["b", "a"], 9, needs) == ["b"]
    assert victims_for("d", ["c", "b", "a"], 9, needs) == ["c", "b"]


@pytest.mark.parametrize(("own", "victims"), [(50, []), (51, ["a"])])
def test_the_most_that_any_of_them_needs_to_work_stays_free_once(own: int, victims: list[str]) -> None:
    assert victims_for("b", ["a"], 2, {"a": need(30, working=20), "b": need(own, working=10)}) == victims
    assert victims_for("b", ["a"], 2, {"a": need(30, working=10), "b": need(own, working=20)}) == victims


def test_shared_parts_take_memory_once_and_are_freed_by_the_last_model() -> None:
    needs = {"a": need(30, t5=30), "b": need(30, t5=30), "c": need(41)}
    assert victims_for("b", ["a"], 2, needs) == []
    assert victims_for("c", ["a", "b"], 3, needs) == ["a", "b"]


def test_each_model_keeps_to_its_own_limit() -> None:
    assert victims_for("b", ["a"], 2, {"a": need(40, limit=60), "b": need(30)}) == ["a"]
    assert victims_for("b", ["a"], 2, {"a": need(40), "b": need(30, limit=60)}) == ["a"]


def test_a_device_of_unknown_size_takes_max_resident_models() -> None:
    needs = dict.fromkeys("abc", need(10**12, limit=0))
    assert victims_for("c", ["a", "b"], 2, needs) == ["a"]


def test_a_model_of_unknown_size_is_loaded_alone() -> None:
    assert victims_for("new", ["a", "b"], 3, SMALL) == ["a", "b"]
    assert victims_for("b", ["new", "a"], 3, SMALL) == ["new"]


def test_models_that_ran_out_of_memory_together_are_not_resident_together() -> None:
    assert victims_for("c", ["a", "b"], 3, SMALL, [{"a", "c"}]) == ["a"]
    assert victims_for("d", ["a", "b"], 3, SMALL, [{"a", "c"}]) == []


def test_a_model_that_does_not_fit_alone_evicts_the_others() -> None:
    assert victims_for("b", ["a"], 2, {"a": need(1), "b": need(1000)}) == ["a"]
    assert victims_for("b", [], 2, {"b": need(1000)}) == []


NEEDS = st.builds(
    Need,
    own=st.integers(0, 60),
    shared=st.dictionaries(st.sampled_from(["t5", "vae"]), st.just(20)),
    working=st.integers(0, 30),
    limit=st.sampled_from([0, 100]),
)


@given(st.permutations("abcde"), st.integers(0, 5), st.integers(1, 5), st.dictionaries(st.sampled_from("abcde"), NEEDS))
def test_they_leave_in_order_and_the_last_of_them_had_to(
    models: list[str], there: int, max_resident: int, needs: dict[str, Need]
) -> None:
    model, residents = models[0], models[1 : 1 + there]
    victims = victims_for(model, residents, max_resident, needs)
    assert victims == residents[: len(victims)]
    stay = residents[len(victims) :]
    assert not stay or fit([*stay, model], max_resident, needs)
    assert not victims or not fit([victims[-1], *stay, model], max_resident, needs)


def fit(models: list[str], max_resident: int, needs: dict[str, Need]) -> bool:
    if len(models) > max_resident or not needs.keys() >= {*models}:
        return False
    parts = {(model, "own"): needs[model].own for model in models}
    parts |= {("", name): size for model in models for name, size in needs[model].shared.items()}
    return all(
        needs[model].limit == 0 or sum(parts.values()) <= needs[model].limit - needs[model].working for model in models
    )


@pytest.mark.parametrize(("waited_s", "idle"), [(0, False), (1799.9, False), (1800, True), (1e9, True)])
def test_a_model_is_idle_once_its_minutes_are_over(waited_s: float, idle: bool) -> None:
    assert is_idle(resident(last_used=500), 30, 500 + waited_s) is idle


def test_a_fraction_of_a_minute_counts() -> None:
    assert is_idle(resident(), 0.5, 30)
    assert not is_idle(resident(), 0.5, 29)


def test_with_zero_minutes_a_model_is_never_idle() -> None:
    assert not is_idle(resident(), 0, 1e12)


def test_two_kills_in_a_row_are_a_quarantine() -> None:
    one, other = (request_for("one"),), (request_for("other"),)
    for first, second in (((), ()), (one, other), ((), one), (one, ())):
        once = Kills().another(*first)
        assert not once.quarantined
        assert once.another(*second).quarantined


def test_a_poisonous_request_that_is_tried_again_is_no_fault_of_its_model() -> None:
    once = Kills().another(request_for("poison"))
    assert not once.another(request_for("poison")).quarantined
    assert once.another(request_for("poison")).another(request_for("fine")).quarantined


def test_a_task_that_kills_its_worker_in_a_shared_call_and_then_alone_counts_once() -> None:
    once = Kills().another(request_for("fine"), request_for("poison"))
    assert not once.another(request_for("poison")).quarantined


def kept(model: str, size: int, since: float) -> Warm:
    return Warm(model=model, weight_bytes=size, since=since)


def leaving(size: int) -> Resident:
    return resident("x").evolve(weight_bytes=size)


def test_a_model_stays_warm_where_there_is_room() -> None:
    assert warm_to_drop(leaving(40), [kept("a", 60, 1)], 100) == []


def test_the_oldest_make_room_and_no_more_than_needed() -> None:
    warm = [kept("new", 30, 3), kept("old", 30, 1), kept("middle", 30, 2)]
    assert warm_to_drop(leaving(20), warm, 100) == ["old"]
    assert warm_to_drop(leaving(50), warm, 100) == ["old", "middle"]
    assert warm_to_drop(leaving(100), warm, 100) == ["old", "middle", "new"]


def test_a_model_larger_than_the_host_cache_evicts_nothing() -> None:
    assert warm_to_drop(leaving(101), [kept("a", 60, 1)], 100) is None
