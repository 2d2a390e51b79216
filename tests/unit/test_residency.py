"""Who leaves the device to make room, and who is idle."""

import pytest

from imagegen.models.residency import Kills, Resident, Warm, is_idle, too_warm, victims_for
from tests.conftest import request_for
from tests.unit.conftest import MORNING


def resident(model: str = "a", *, last_used: float = 0) -> Resident:
    return Resident(model=model, weight_bytes=1, loaded_at=MORNING, last_used_at=MORNING, last_used=last_used)


def test_everyone_else_leaves() -> None:
    assert victims_for("c", [resident("a"), resident("b")]) == ["a", "b"]


def test_nobody_leaves_an_empty_device() -> None:
    assert victims_for("a", []) == []


def test_a_model_does_not_make_room_for_itself() -> None:
    assert victims_for("a", [resident("a")]) == []


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


def test_what_killed_its_worker_in_company_and_kills_the_next_one_alone_counts_once() -> None:
    once = Kills().another(request_for("fine"), request_for("poison"))
    assert not once.another(request_for("poison")).quarantined


def kept(model: str, size: int, since: float) -> Warm:
    return Warm(model=model, weight_bytes=size, since=since)


def leaving(size: int) -> Resident:
    return resident("x").evolve(weight_bytes=size)


def test_a_model_stays_warm_where_there_is_room() -> None:
    assert too_warm(leaving(40), [kept("a", 60, 1)], 100) == []


def test_the_oldest_make_room_and_no_more_than_needed() -> None:
    warm = [kept("new", 30, 3), kept("old", 30, 1), kept("middle", 30, 2)]
    assert too_warm(leaving(20), warm, 100) == ["old"]
    assert too_warm(leaving(50), warm, 100) == ["old", "middle"]
    assert too_warm(leaving(100), warm, 100) == ["old", "middle", "new"]


def test_what_is_larger_than_all_the_room_throws_nobody_out() -> None:
    assert too_warm(leaving(101), [kept("a", 60, 1)], 100) is None
