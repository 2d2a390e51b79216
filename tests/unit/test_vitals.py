"""Questions to the system that may have no answer."""

import os
import threading

import pytest

from imagegen.service import vitals
from imagegen.service.vitals import Asked, Vitals


async def test_a_system_that_does_not_answer_is_asked_once_and_not_waited_for() -> None:
    let, asked = threading.Event(), list[int]()

    def ask() -> int:
        asked.append(1)
        let.wait()
        return 7

    question = Asked(ask, "test", limit_s=0.01)
    assert [await question.answer() for _ in range(3)] == [None] * 3
    assert asked == [1]
    let.set()
    assert question._running is not None
    await question._running
    assert await question.answer() == 7
    question.close()


async def test_an_answer_is_given_again_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(range(9))
    question = Asked(lambda: next(answers), "test")
    assert [await question.answer() for _ in range(3)] == [0, 0, 0]
    monkeypatch.setattr(vitals, "FRESH_S", 0)
    question._answered = float("-inf")
    await question.answer()
    assert next(answers) == 2
    question.close()


async def test_a_system_that_refuses_has_no_answer() -> None:
    question = Asked(lambda: os.statvfs("/nothing/here"), "test")
    assert await question.answer() is None
    question.close()


async def test_the_machine_is_described_in_bytes_and_per_cent_of_a_core() -> None:
    it = Vitals(lambda: 5, lambda: None)
    host = await it.host()
    assert host is not None
    assert host.cores >= 1
    assert 0 <= host.cpu <= 110 * host.cores
    assert 0 < host.memory_ours < host.memory_total
    assert 0 < host.memory_available <= host.memory_total
    assert await it.free() == 5
    assert it.uptime_s > 0
    await it.aclose()
