"""The record of a task, and the fields that decide its pixels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from imagegen.core.task import MAX_SEED, TaskStatus
from tests.conftest import request_for
from tests.unit.conftest import task_of


def test_the_pictures_of_a_batch_have_seeds_in_a_row() -> None:
    assert request_for(seed=7, batch_size=3).seeds == (7, 8, 9)


def test_after_the_largest_seed_comes_zero() -> None:
    assert request_for(seed=MAX_SEED - 1, batch_size=4).seeds == (MAX_SEED - 1, MAX_SEED, 0, 1)


@given(st.integers(0, MAX_SEED), st.integers(1, 64))
def test_each_picture_of_a_batch_is_the_picture_of_its_seed_alone(seed: int, batch_size: int) -> None:
    seeds = request_for(seed=seed, batch_size=batch_size).seeds
    assert len(set(seeds)) == batch_size
    assert [request_for(seed=each).seeds for each in seeds] == [(each,) for each in seeds]


def test_the_wrap_is_where_a_request_may_still_ask_for_the_seed() -> None:
    assert MAX_SEED == 2**64 - 1


@pytest.mark.parametrize(
    ("status", "finished"),
    [("pending", False), ("processing", False), ("completed", True), ("failed", True), ("cancelled", True)],
)
def test_a_task_has_ended_in_three_of_its_five_states(status: str, finished: bool) -> None:
    assert TaskStatus(status).finished is finished


def test_a_record_is_never_changed_but_replaced() -> None:
    task = task_of(1)
    with pytest.raises(ValidationError):
        task.status = TaskStatus.FAILED  # type: ignore[misc]
    assert task.evolve(status=TaskStatus.FAILED).status is TaskStatus.FAILED
    assert task.status is TaskStatus.PENDING


def test_a_record_is_the_same_after_json() -> None:
    task = task_of(1, request=request_for(seed=3, guidance_scale=0.1))
    assert type(task).model_validate_json(task.model_dump_json()) == task
