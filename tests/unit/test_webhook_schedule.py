"""When a delivery is retried, and the order of deliveries; the time is an argument."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.settings import Settings
from imagegen.webhooks.schedule import MAX_RETRY_AFTER_S, retry_after_s, retry_in_s
from imagegen.webhooks.turns import Turn, Turns

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
DELAYS_S = (5, 300, 1800)


# -- back-off ----------------------------------------------------------------------------------------------------------


def test_the_shipped_delays_are_those_of_standard_webhooks() -> None:
    delays_s = Settings().webhook_delays_s
    assert (len(delays_s) + 1, timedelta(seconds=sum(delays_s))) == (10, timedelta(hours=75, minutes=35, seconds=5))


def test_each_failure_puts_the_next_attempt_off_for_longer_until_there_is_none() -> None:
    assert [retry_in_s(attempts, DELAYS_S, 0.5) for attempts in (1, 2, 3, 4)] == [5, 300, 1800, None]


@given(st.floats(0, 1))
def test_retries_spread(chance: float) -> None:
    delay_s = retry_in_s(2, DELAYS_S, chance)
    assert delay_s is not None
    assert 270 <= delay_s <= 330


def test_a_receiver_can_put_us_off_and_not_hurry_us_and_not_for_ever() -> None:
    assert retry_in_s(1, DELAYS_S, 0.5, 60) == 60
    assert retry_in_s(2, DELAYS_S, 0.5, 60) == 300
    assert retry_in_s(1, DELAYS_S, 0.5, 1e12) == MAX_RETRY_AFTER_S
    assert retry_in_s(4, DELAYS_S, 0.5, 60) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("Mon, 23 Nov 2026 08:01:00 GMT", 60),
        ("Mon, 23 Nov 2026 07:00:00 GMT", 0),
        ("Mon, 23 Nov 2026 08:01:00 -0000", 60),
        (None, 0),
        ("", 0),
        ("soon", 0),
        ("-5", 0),
        ("1.5", 0),
        ("²", 0),
        ("9" * 500, 999_999_999),
        ("Mon, 99 Nov 99999 08:01:00 GMT", 0),
    ],
)
def test_the_value_of_retry_after(header: str | None, seconds: float) -> None:
    assert retry_after_s(header, NOW) == seconds


@given(st.text())
def test_no_retry_after_does_harm(header: str) -> None:
    assert retry_after_s(header, NOW) >= 0


# -- turns -------------------------------------------------------------------------------------------------------------


def turn(name: str, *, task: str = "", host: str = "a") -> Turn:
    return Turn(name, task or name, host)


def names(taken: list[Turn]) -> str:
    return "".join(each.id for each in taken)


def test_due_deliveries_are_taken_once() -> None:
    turns = Turns()
    turns.add(turn("1", host="a"), 10)
    turns.add(turn("2", host="b"), 20)
    assert turns.next_due() == 10
    assert names(turns.take(9)) == ""
    assert names(turns.take(15)) == "1"
    assert names(turns.take(15)) == ""
    assert names(turns.take(20)) == "2"
    assert turns.next_due() is None


def test_one_host_has_a_few_attempts_at_a_time_and_others_go_on() -> None:
    turns = Turns()
    for number in range(5):
        turns.add(turn(str(number), host="slow"), 0)
    turns.add(turn("x", host="b"), 0)
    taken = turns.take(0)
    assert sorted(each.id for each in taken) == ["0", "1", "x"]
    turns.done(next(each for each in taken if each.host == "slow"))
    assert names(turns.take(0)) == "2"


def test_hosts_take_turns_where_there_is_room_for_few() -> None:
    turns = Turns(most=2, most_a_host=2)
    for number in range(4):
        turns.add(turn(f"a{number}", host="a"), 0)
    for host in "bc":
        turns.add(turn(host, host=host), 0)
    order = []
    while taken := turns.take(0):
        for each in taken:
            order.append(each.id)
            turns.done(each)
    assert order == ["a0", "b", "c", "a1", "a2", "a3"]


def test_a_later_delivery_of_a_task_waits_for_the_earlier_one() -> None:
    turns = Turns()
    for name in "123":
        turns.add(turn(name, task="t"), 0)
    (first,) = turns.take(0)
    turns.again(first, 50)
    assert names(turns.take(49)) == ""
    (first,) = turns.take(50)
    turns.done(first)
    assert names(turns.take(50)) == "2"


def test_a_dropped_delivery_is_not_taken_and_the_next_one_is() -> None:
    turns = Turns()
    for name in "123":
        turns.add(turn(name, task="t"), 0)
    (first,) = turns.take(0)
    turns.drop(["1", "2", "unknown"])
    assert names(turns.take(0)) == "3"
    turns.again(first, 10)  # it was under way and failed; nobody waits for it any more
    assert turns.due("1") is None
    assert names(turns.take(10)) == ""


def test_a_waiting_delivery_can_be_sent_at_once_and_an_unknown_one_cannot() -> None:
    turns = Turns()
    waiting = turn("1")
    waiting.attempts, waiting.early = 5, True
    turns.add(waiting, 1000)
    assert turns.hasten("1", 3)
    assert turns.due("1") == 3
    assert names(turns.take(3)) == "1"
    assert (waiting.attempts, waiting.early) == (0, False)
    assert names(turns.take(1000)) == ""  # its old time means nothing any more
    assert not turns.hasten("2", 3)


def test_a_second_time_the_same_one_changes_nothing() -> None:
    turns = Turns()
    turns.add(turn("1"), 10)
    turns.add(turn("1"), 0)
    assert names(turns.take(5)) == ""
    assert names(turns.take(10)) == "1"


def test_a_dropped_delivery_can_be_added_again() -> None:
    turns = Turns()
    turns.add(turn("1"), 0)
    (first,) = turns.take(0)
    turns.drop(["1"])
    turns.add(turn("1"), 5)
    turns.done(first)
    assert names(turns.take(5)) == "1"


# -- hosts that are slow or down ---------------------------------------------------------------------------------------


def test_an_attempt_that_is_slow_returns_its_slot() -> None:
    turns = Turns(most=2, slow_s=1)
    for number in range(6):
        turns.add(turn(f"h{number}", host=f"hangs{number}"), 0)
    turns.add(turn("x", host="good"), 0)
    assert names(turns.take(0)) == "h0h1"
    assert names(turns.take(0.5)) == ""
    assert turns.next_due() == 1
    assert names(turns.take(1)) == "h2h3"
    assert names(turns.take(2)) == "h4h5"
    assert names(turns.take(3)) == "x"


def test_a_slow_host_comes_after_the_others_and_takes_none_of_their_slots() -> None:
    turns = Turns(most=2, most_suspect=1, slow_s=1)
    for number in range(2):
        for name in ("a", "b"):
            turns.add(turn(f"{name}{number}", host=name), 0)
    first = turns.take(0)
    assert names(first) == "a0b0"
    turns.take(1)  # both are slow now
    for number in range(2):
        turns.add(turn(f"g{number}", host="good"), 1)
    assert names(turns.take(1)) == "g0g1"
    for each in first:
        turns.heard(each, 1.5, answered=True)
        turns.done(each)
    (only,) = turns.take(1.5)  # one suspect at a time
    assert only.id == "a1"
    turns.heard(only, 1.75, answered=True)
    turns.done(only)
    assert names(turns.take(1.75)) == "b1"
    turns.add(turn("a2", host="a"), 1.75)
    turns.add(turn("a3", host="a"), 1.75)
    assert names(turns.take(1.75)) == ""  # a is no suspect any more, but both slots are taken
    assert turns.next_due() == 2


def test_a_host_that_does_not_answer_rests_and_is_then_asked_by_one_attempt() -> None:
    turns = Turns(rest_s=1)
    for number in range(4):
        turns.add(turn(str(number)), 0)
    first, second = turns.take(0)
    for each in (first, second):
        turns.heard(each, 0, answered=False)
        turns.again(each, 100)
    assert names(turns.take(0.5)) == ""
    assert turns.next_due() == 1
    (third,) = turns.take(1)
    turns.heard(third, 1, answered=True)
    turns.done(third)
    assert names(turns.take(1)) == "3"


def test_an_attempt_that_somebody_asks_for_is_the_next_one_of_its_host() -> None:
    turns = Turns(rest_s=1)
    for number in range(5):
        turns.add(turn(str(number)), 0)
    first, second = turns.take(0)
    for each in (first, second):
        turns.heard(each, 0, answered=False)
        turns.again(each, 100)
    assert turns.hasten("4", 0)  # it waits in the line of its host
    assert names(turns.take(0)) == "4"
    assert turns.hasten("0", 0)  # it waits for its time
    assert names(turns.take(0)) == ""  # one attempt at a time to a host that does not answer


def test_nothing_is_remembered_of_a_host_without_deliveries() -> None:
    turns = Turns()
    for host in "abc":
        turns.add(turn(host, host=host), 0)
    for each in turns.take(0):
        turns.heard(each, 0, answered=False)
        turns.done(each)
    assert turns.take(10) == []
    assert (turns._hosts, turns._suspects, turns.next_due()) == ({}, {}, None)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["ok", "slow", "down", "drop"])), max_size=60))
def test_every_delivery_has_its_attempt_whatever_the_hosts_do(deliveries: list[tuple[str, str]]) -> None:
    turns = Turns(most=2, most_a_host=2, most_suspect=2, most_open=5)
    for number, (host, _) in enumerate(deliveries):
        turns.add(turn(str(number), host=host), 0)
    now, tried, running = 0.0, set[str](), list[tuple[float, Turn, str]]()
    while turns.pending or running:
        for each in turns.take(now):
            kind = deliveries[int(each.id)][1]
            tried.add(each.id)
            running.append((now + (5 if kind == "slow" else 0), each, kind))
        assert len(running) <= 5
        for ending in [it for it in running if it[0] <= now]:
            running.remove(ending)
            _, each, kind = ending
            turns.heard(each, now, answered=kind != "down")
            if kind == "drop":
                turns.drop([each.id])
            turns.done(each)
        times = [time for time in (turns.next_due(), *(end for end, *_ in running)) if time is not None]
        now = max(now, min(times, default=now))
    assert tried == {str(number) for number in range(len(deliveries))}
    assert turns._hosts == {}
