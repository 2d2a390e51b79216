"""The GPU border: exceptions of an engine become values, and none of their objects stays alive."""

import gc
import weakref
from typing import NoReturn

import pytest

from imagegen.core.errors import FailureCode, WeightsRefused
from imagegen.gpu.engine import at_border
from imagegen.gpu.protocol import Failed, pack
from imagegen.loaders.base import Stop

LOADING = FailureCode.LOAD_FAILED


class Cleaning:
    """Counts the requests to free memory."""

    times = 0

    def __call__(self) -> None:
        self.times += 1


class Tensor:
    """Stands for gigabytes."""


def raising(error: BaseException) -> NoReturn:
    raise error


def test_a_success_is_returned_without_a_cleanup() -> None:
    cleaning = Cleaning()
    assert at_border(lambda: 7, LOADING, cleaning) == 7
    assert cleaning.times == 0


def test_a_failure_becomes_a_value_with_its_traceback_for_the_log() -> None:
    cleaning = Cleaning()
    failed = at_border(lambda: raising(KeyError("words")), LOADING, cleaning)
    assert isinstance(failed, Failed)
    assert failed.code is LOADING
    assert "words" not in failed.message
    assert "words" in failed.traceback
    assert cleaning.times == 1


def test_a_known_failure_of_the_loader_keeps_its_message() -> None:
    failed = at_border(lambda: raising(WeightsRefused("Not safe.")), LOADING, Cleaning())
    assert isinstance(failed, Failed)
    assert (failed.code, failed.message) == (FailureCode.WEIGHTS_REFUSED, "Not safe.")


def test_a_stop_is_no_failure() -> None:
    cleaning = Cleaning()
    with pytest.raises(Stop):
        at_border(lambda: raising(Stop()), LOADING, cleaning)
    assert cleaning.times == 0


def test_a_broken_device_is_not_touched_again() -> None:
    cleaning = Cleaning()
    error = RuntimeError("CUDA error: device-side assert triggered")
    failed = at_border(lambda: raising(error), LOADING, cleaning)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.DEVICE_FAULT
    assert cleaning.times == 0


def test_no_tensor_outlives_the_failure_it_was_part_of() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def work() -> NoReturn:
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        try:
            raise ValueError("inner")
        except ValueError as error:
            raise RuntimeError("outer") from error

    kept = at_border(work, LOADING, gc.collect)
    assert isinstance(kept, Failed)
    assert alive[0]() is None


def test_not_even_an_exception_that_someone_keeps_holds_a_tensor() -> None:
    alive: list[weakref.ref[Tensor]] = []
    kept: list[Exception] = []

    def work() -> NoReturn:
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        kept.append(MemoryError())
        raise kept[0]

    at_border(work, LOADING, gc.collect)
    assert kept[0].__traceback__ is not None
    assert alive[0]() is None


def test_memory_is_given_back_when_the_failed_work_has_let_go_of_it() -> None:
    alive: list[weakref.ref[Tensor]] = []
    seen_by_cleaning: list[Tensor | None] = []

    def work() -> NoReturn:
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        raise MemoryError

    def clean() -> None:
        gc.collect()
        seen_by_cleaning.append(alive[0]())

    at_border(work, LOADING, clean)
    assert seen_by_cleaning == [None]


def test_a_failure_with_any_text_can_cross_the_pipe() -> None:
    failed = at_border(lambda: raising(OSError("no such file: 'a\udcff'")), LOADING, Cleaning())
    assert isinstance(failed, Failed)
    assert pack(failed)


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("CUDA error: invalid argument"), MemoryError()])
def test_whatever_was_raised_a_context_that_no_longer_works_is_a_broken_device(error: Exception) -> None:
    cleaning = Cleaning()
    failed = at_border(lambda: raising(error), LOADING, cleaning, context_works=lambda: False)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.DEVICE_FAULT
    assert type(error).__name__ in failed.traceback
    assert cleaning.times == 0


def test_a_context_is_tried_when_the_failed_work_has_let_go_of_its_memory_and_before_any_is_given_back() -> None:
    alive: list[weakref.ref[Tensor]] = []
    order: list[object] = []

    def work() -> NoReturn:
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        raise MemoryError

    def context_works() -> bool:
        order.append(alive[0]())
        return True

    at_border(work, LOADING, lambda: order.append("cleaned"), context_works)
    assert order == [None, "cleaned"]


def test_not_even_the_cause_of_an_exception_that_someone_keeps_holds_a_tensor() -> None:
    alive: list[weakref.ref[Tensor]] = []
    kept: list[Exception] = []

    def inner() -> NoReturn:
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        raise MemoryError

    def work() -> NoReturn:
        try:
            inner()
        except MemoryError as error:
            kept.append(error)
            raise RuntimeError("outer") from error

    at_border(work, LOADING, gc.collect)
    assert kept
    assert alive[0]() is None
