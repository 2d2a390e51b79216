"""Who leaves the device to make room, and who is idle."""

import pytest

from imagegen.models.residency import Resident, is_idle, victims_for
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
