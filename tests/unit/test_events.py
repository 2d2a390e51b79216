"""The EventBus: every listener gets every event once, in order, and a slow listener does not delay it."""

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from imagegen.core.events import (
    FEW,
    STEP_BYTES,
    CallEnded,
    EventBus,
    Gap,
    ModelLoading,
    Published,
    StreamClosed,
    StreamEvent,
    Subscription,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskFailed,
    TaskLoaded,
    TaskLoading,
    TaskMoved,
    TaskPreview,
    TaskQueued,
    TaskSaved,
    TaskStarted,
    TaskStep,
    WorkerReplaced,
)


def step(number: int, task_id: str = "a") -> TaskStep:
    return TaskStep(task_id=task_id, step=number, total=1000)


def publish_steps(bus: EventBus, numbers: range, task_id: str = "a") -> None:
    for number in numbers:
        bus.publish(step(number, task_id))


async def heard(subscription: Subscription) -> list[Published]:
    """The events of tasks and models until the end; a listener that is never ended fails the test by its timeout."""
    return [published async for published in subscription if not isinstance(published.event, StreamEvent)]


async def last_of(subscription: Subscription) -> Published:
    return [published async for published in subscription][-1]


def steps(events: list[Published]) -> list[int]:
    return [published.event.step for published in events if isinstance(published.event, TaskStep)]


# -- taps --------------------------------------------------------------------------------------------------------------


async def test_a_tap_gets_each_event_of_its_class_at_once_and_cannot_be_dropped() -> None:
    bus, told = EventBus(backlog=1), list[object]()
    bus.tap(TaskQueued, told.append)
    bus.tap(TaskQueued, told.append)
    for number in range(1000):
        bus.publish(TaskQueued(task_id=str(number), position=number))
        bus.publish(step(number))
    bus.close()
    bus.publish(last := TaskQueued(task_id="last", position=0))
    assert len(told) == 2002
    assert told[-1] is last


async def test_an_observation_is_for_taps_only() -> None:
    bus, told = EventBus(), list[object]()
    bus.tap(WorkerReplaced, told.append)
    before = bus.last_id
    with bus.subscribe() as subscription:
        bus.observe(WorkerReplaced(reason="hung"))
        bus.observe(CallEnded(model="a", task_ids=("a",), seconds=1))
        bus.close()
        assert await heard(subscription) == []
    assert told == [WorkerReplaced(reason="hung")]
    assert (bus.last_id, bus.size) == (before, 0)


# -- order -------------------------------------------------------------------------------------------------------------


async def test_a_listener_gets_every_event_in_order() -> None:
    bus = EventBus(1)
    with bus.subscribe() as subscription:
        publish_steps(bus, range(10))
        bus.close()
        assert steps(await heard(subscription)) == list(range(10))


async def test_ids_grow_and_are_the_same_for_all_listeners() -> None:
    bus = EventBus(1_000_000)
    with bus.subscribe() as everything, bus.subscribe("a") as one:
        publish_steps(bus, range(5))
        bus.close()
        all_events, one_tasks = await heard(everything), await heard(one)
    ids = [published.id for published in all_events]
    assert ids == sorted(set(ids))
    assert min(ids) >= 1_000_000
    assert one_tasks == all_events


def test_the_last_id_is_that_of_the_last_event() -> None:
    bus = EventBus(50)
    publish_steps(bus, range(3))
    assert bus.last_id == bus.history("a")[-1].id


def test_the_last_id_is_below_every_id_to_come() -> None:
    bus = EventBus(50)
    before = bus.last_id
    bus.publish(step(1))
    assert before < bus.history("a")[0].id


async def test_a_listener_that_waits_is_woken() -> None:
    bus = EventBus(1)
    with bus.subscribe("a") as subscription:
        listening = asyncio.create_task(heard(subscription))
        await asyncio.sleep(0)
        bus.publish(step(1))
        bus.close()
        assert steps(await listening) == [1]


# -- topics ------------------------------------------------------------------------------------------------------------


async def test_a_tasks_listener_gets_events_of_that_task_only() -> None:
    bus = EventBus(1)
    with bus.subscribe("a") as subscription:
        publish_steps(bus, range(3), "b")
        bus.publish(ModelLoading(model="m"))
        bus.publish(step(7, "a"))
        bus.close()
        assert steps(await heard(subscription)) == [7]


async def test_a_listener_of_everything_also_gets_events_of_models() -> None:
    bus = EventBus(1)
    with bus.subscribe() as subscription:
        bus.publish(step(1, "a"))
        bus.publish(ModelLoading(model="m"))
        bus.close()
        expected: list[type[object]] = [TaskStep, ModelLoading]
        assert [type(each.event) for each in await heard(subscription)] == expected


# -- late listeners ----------------------------------------------------------------------------------------------------


async def test_a_late_listener_gets_past_and_new_events_without_a_gap() -> None:
    bus = EventBus(1)
    publish_steps(bus, range(5))
    with bus.subscribe("a") as subscription:
        publish_steps(bus, range(5, 10))
        bus.close()
        assert steps(await heard(subscription)) == list(range(10))


async def test_a_returning_listener_gets_only_events_after_its_last_one() -> None:
    bus = EventBus(1)
    publish_steps(bus, range(5))
    last_heard = bus.history("a")[2].id
    with bus.subscribe("a", after=last_heard) as subscription:
        bus.close()
        assert steps(await heard(subscription)) == [3, 4]


def test_the_history_is_that_of_one_task() -> None:
    bus = EventBus(1)
    bus.publish(step(1, "a"))
    bus.publish(step(2, "b"))
    assert steps(bus.history("b")) == [2]
    assert bus.history("unknown") == []


def test_a_history_that_was_given_out_does_not_change() -> None:
    bus = EventBus(1)
    bus.publish(step(1))
    given_out = bus.history("a")
    bus.publish(step(2))
    assert steps(given_out) == [1]


async def test_a_listener_of_everything_begins_now() -> None:
    bus = EventBus(1)
    publish_steps(bus, range(5))
    with bus.subscribe() as subscription:
        bus.close()
        assert await heard(subscription) == []


async def test_a_long_past_does_not_make_a_late_listener_a_slow_one() -> None:
    bus = EventBus(1, kept_events=8, backlog=8)
    publish_steps(bus, range(8))
    with bus.subscribe("a") as subscription:
        bus.publish(step(8))
        bus.close()
        assert steps(await heard(subscription)) == list(range(9))


# -- slow listeners ----------------------------------------------------------------------------------------------------


async def test_a_slow_listener_is_ended_after_a_part_without_gaps() -> None:
    bus = EventBus(1, backlog=4)
    with bus.subscribe() as slow:
        publish_steps(bus, range(100))
        assert steps(await heard(slow)) == [0, 1, 2, 3]


async def test_a_slow_listener_does_not_delay_the_others() -> None:
    bus = EventBus(1, backlog=4)
    with bus.subscribe() as slow, bus.subscribe() as quick:
        received: list[int] = []
        listening = asyncio.create_task(_collect(quick, received))
        for number in range(20):
            bus.publish(step(number))
            await asyncio.sleep(0)
        bus.close()
        await listening
        assert received == list(range(20))
        assert steps(await heard(slow)) == [0, 1, 2, 3]


async def _collect(subscription: Subscription, into: list[int]) -> None:
    async for published in subscription:
        into += steps([published])


async def test_a_listener_that_was_ended_stays_ended() -> None:
    bus = EventBus(1, backlog=2)
    with bus.subscribe() as slow:
        publish_steps(bus, range(3))
        assert steps(await heard(slow)) == [0, 1]
        bus.publish(step(3))
        bus.close()


async def test_an_ended_listener_misses_no_event_when_it_returns() -> None:
    bus = EventBus(1, backlog=4)
    told: list[Published] = []
    with bus.subscribe("a") as slow:
        publish_steps(bus, range(6))
        told += await heard(slow)
    with bus.subscribe("a", after=told[-1].id) as again:
        bus.close()
        told += await heard(again)
    assert steps(told) == list(range(6))


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_closing_ends_every_listener_after_its_remaining_events() -> None:
    bus = EventBus(1)
    with bus.subscribe() as everything, bus.subscribe("a") as one:
        bus.publish(step(1))
        bus.close()
        assert steps(await heard(everything)) == [1]
        assert steps(await heard(one)) == [1]


async def test_a_listener_after_the_close_gets_past_events_and_ends() -> None:
    bus = EventBus(1)
    bus.publish(step(1))
    bus.close()
    with bus.subscribe("a") as subscription:
        assert steps(await heard(subscription)) == [1]


async def test_the_close_reaches_a_listener_whose_backlog_is_full() -> None:
    bus = EventBus(1, backlog=2)
    with bus.subscribe() as subscription:
        publish_steps(bus, range(2))
        bus.close()
        assert steps(await heard(subscription)) == [0, 1]


def test_publishing_after_the_close_is_harmless() -> None:
    bus = EventBus(1)
    bus.close()
    bus.publish(step(1))
    bus.close()
    assert steps(bus.history("a")) == [1]


def test_a_listener_that_leaves_is_forgotten() -> None:
    bus = EventBus(1)
    with bus.subscribe(), bus.subscribe("a"):
        assert bus.subscribers == 2
    assert bus.subscribers == 0


def test_a_listener_that_fails_is_forgotten() -> None:
    bus = EventBus(1)
    with pytest.raises(ZeroDivisionError), bus.subscribe():
        raise ZeroDivisionError
    assert bus.subscribers == 0


# -- what does not last ------------------------------------------------------------------------------------------------


async def test_a_preview_is_sent_to_the_tasks_listeners_at_once_and_not_kept() -> None:
    bus = EventBus(1)
    preview = TaskPreview(task_id="a", step=1, total=2, image="")
    with bus.subscribe() as everything, bus.subscribe("a") as own:
        bus.publish(preview)
        bus.publish(step(1))
        bus.close()
        assert [published.event for published in await heard(own)] == [preview, step(1)]
        assert [published.event for published in await heard(everything)] == [step(1)]
    assert [published.event for published in bus.history("a")] == [step(1)]


async def test_an_event_is_encoded_once_for_all_its_listeners() -> None:
    bus, encoded = EventBus(1), list[int]()

    def encode(event_id: int, event: object) -> bytes:
        encoded.append(event_id)
        return b"frame"

    with bus.subscribe() as everything, bus.subscribe("a") as one, bus.subscribe("a") as other:
        publish_steps(bus, range(3))
        bus.close()
        frames = [p.encoded(encode) for each in (everything, one, other) for p in await heard(each)]
    assert frames == [b"frame"] * 9
    assert encoded == [1, 2, 3]


def test_each_function_has_its_own_encoding_of_an_event() -> None:
    published = Published(7, TaskStarted(task_id="a", attempt=1))
    assert published.encoded(lambda event_id, _: f"one {event_id}".encode()) == b"one 7"
    assert published.encoded(lambda event_id, _: f"two {event_id}".encode()) == b"two 7"


def test_topics_with_listeners_are_known() -> None:
    bus = EventBus(1)
    with bus.subscribe("a"), bus.subscribe():
        assert bus.followed == ["a"]
    assert bus.followed == []


def test_a_task_that_is_forgotten_has_no_past() -> None:
    bus = EventBus(1)
    bus.publish(step(1))
    bus.forget("a")
    bus.forget("unknown")
    assert bus.history("a") == []


# -- bounded memory ----------------------------------------------------------------------------------------------------


def test_the_latest_events_of_a_long_task_are_kept() -> None:
    bus = EventBus(1, kept_events=3)
    publish_steps(bus, range(100))
    assert steps(bus.history("a")) == [97, 98, 99]


def test_the_events_of_the_latest_tasks_are_kept() -> None:
    bus = EventBus(1, kept_tasks=3)
    for number in range(100):
        bus.publish(step(number, f"task-{number}"))
    assert [number for number in range(100) if bus.history(f"task-{number}")] == [97, 98, 99]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 99)), max_size=80))
def test_the_kept_events_never_exceed_their_bounds(events: list[tuple[str, int]]) -> None:
    bus = EventBus(1, kept_tasks=2, kept_events=3)
    for task_id, number in events:
        bus.publish(step(number, task_id))
    kept = [bus.history(task_id) for task_id in "abcdef"]
    assert sum(map(bool, kept)) <= 2
    assert max(map(len, kept)) <= 3


# -- the events --------------------------------------------------------------------------------------------------------


def test_an_event_cannot_be_changed() -> None:
    event = step(1)
    with pytest.raises(ValidationError):
        event.step = 2  # type: ignore[misc]


def test_nothing_follows_the_three_ends_of_a_task() -> None:
    kinds: list[type[TaskEvent]] = [
        TaskQueued,
        TaskMoved,
        TaskStarted,
        TaskLoading,
        TaskLoaded,
        TaskStep,
        TaskPreview,
        TaskSaved,
        TaskCompleted,
        TaskFailed,
        TaskCancelled,
    ]
    assert [kind.name for kind in kinds if kind.final] == ["completed", "failed", "cancelled"]
    assert [kind.name for kind in kinds if not kind.final] == [
        "queued",
        "position",
        "started",
        "loading",
        "loaded",
        "step",
        "preview",
        "saved",
    ]


# -- what is kept ------------------------------------------------------------------------------------------------------


async def test_a_late_listener_of_a_long_task_gets_its_states_and_the_latest_steps() -> None:
    bus = EventBus(1)
    bus.publish(TaskQueued(task_id="a", position=0))
    bus.publish(TaskStarted(task_id="a", attempt=1))
    publish_steps(bus, range(800))
    bus.publish(TaskCancelled(task_id="a"))
    with bus.subscribe("a") as late:
        bus.close()
        events = await heard(late)
    assert [it.event.name for it in events if not it.event.progress] == ["queued", "started", "cancelled"]
    assert steps(events) == list(range(544, 800))
    assert [it.id for it in events] == sorted(it.id for it in events)


async def test_a_returning_listener_of_everything_hears_what_it_missed() -> None:
    bus = EventBus(1)
    publish_steps(bus, range(3), "a")
    bus.publish(ModelLoading(model="m"))
    bus.publish(TaskPreview(task_id="a", step=1, total=2, image=""))
    publish_steps(bus, range(3), "b")
    assert bus.gap(2) is None
    with bus.subscribe(after=2) as again:
        bus.publish(step(7))
        bus.close()
        assert [it.id for it in await heard(again)] == [3, 4, 6, 7, 8, 9]


def test_a_gap_is_said_where_events_after_an_id_may_be_missing() -> None:
    bus = EventBus(1000, kept_events=3, recent_bytes=5 * STEP_BYTES)
    publish_steps(bus, range(10))  # 1000 to 1009
    assert [bus.gap(after) for after in (0, 1004, 1009)] == [None, None, None]
    assert [bus.gap(after, "a") for after in (0, 1006, 1009)] == [None, None, None]
    said = [bus.gap(1003), bus.gap(1005, "a"), bus.gap(5), bus.gap(1003, "unknown"), bus.gap(2000), bus.gap(2000, "a")]
    untils = [1004, 1006, 1004, 1009, 1009, 1009]
    assert [it and it.event for it in said] == [
        Gap(after=after, until=until) for after, until in zip((1003, 1005, 5, 1003, 2000, 2000), untils, strict=True)
    ]
    assert [it and it.id for it in said] == untils


def test_ids_of_an_earlier_run_are_followed_by_a_gap() -> None:
    bus = EventBus(1)
    bus.begin(5000)
    publish_steps(bus, range(2))
    assert bus.gap(4000) is not None
    assert bus.gap(4000, "a") is not None
    assert bus.gap(5000, "a") is None


async def test_a_listener_that_is_ended_is_told_why_and_can_return() -> None:
    bus = EventBus(1, backlog=2)
    with bus.subscribe("a") as slow, bus.subscribe("b") as quick:
        publish_steps(bus, range(5))
        bus.close()
        told, stopped = await last_of(slow), await last_of(quick)
    assert told.event == StreamClosed(reason="too_slow")
    assert steps(bus.history("a", after=told.id)) == [2, 3, 4]
    assert stopped.event == StreamClosed(reason="stopping")


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from([step(1), ModelLoading(model="m" * 50)])), max_size=90
    )
)
def test_the_bytes_of_what_is_kept_are_bounded(events: list[tuple[str, TaskStep | ModelLoading]]) -> None:
    bus = EventBus(1, kept_bytes=9000, recent_bytes=5000)
    for task_id, event in events:
        bus.publish(
            event.evolve(task_id=task_id) if isinstance(event, TaskStep) else TaskLoading(task_id=task_id, model="m")
        )
        bus.publish(event if isinstance(event, ModelLoading) else ModelLoading(model="m"))
        assert bus.size <= 14_000
        histories = [bus.history(task_id) for task_id in "abcdef"]
        assert sum(it.size for history in histories for it in history) == bus._size


def test_the_steps_of_the_oldest_tasks_go_first() -> None:
    bus = EventBus(1, kept_bytes=20 * STEP_BYTES)
    for task_id in "abc":
        bus.publish(TaskStarted(task_id=task_id, attempt=1))
        publish_steps(bus, range(7), task_id)
    names = {task_id: [it.event.name for it in bus.history(task_id)] for task_id in "abc"}
    assert names == {"a": ["started"], "b": ["started"] + 7 * ["step"], "c": ["started"] + 7 * ["step"]}
    assert bus.gap(1, "a") is not None


# -- many subscribers of everything ------------------------------------------------------------------------------------


async def test_with_many_subscribers_each_hears_everything_once_and_in_order() -> None:
    bus = EventBus(1)
    with ExitStack() as open_:
        many = [open_.enter_context(bus.subscribe()) for _ in range(FEW + 60)]
        publish_steps(bus, range(10))
        assert all(it.take_delivered() == [] for it in many)  # publishing costs the publisher nothing
        late = open_.enter_context(bus.subscribe())
        publish_steps(bus, range(10, 20))
        firsts = [await it.next() for it in many]
        publish_steps(bus, range(20, 25))
        bus.close()
        for first, it in zip(firsts, many, strict=True):
            assert first is not None
            assert steps([first, *await heard(it)]) == list(range(25))
        assert steps(await heard(late)) == list(range(10, 25))


async def test_a_bus_that_closes_during_a_delivery_to_many_delivers_all_of_it() -> None:
    bus = EventBus(1)
    with ExitStack() as open_:
        many = [open_.enter_context(bus.subscribe()) for _ in range(FEW + 60)]
        publish_steps(bus, range(3))
        first = await many[0].next()  # the last subscribers get the batch in a later turn of the event loop
        assert many[-1].take_delivered() == []
        publish_steps(bus, range(3, 5))
        bus.close()
        assert first is not None
        assert steps([first, *await heard(many[0])]) == list(range(5))
        assert steps(await heard(many[-1])) == list(range(5))


async def test_one_of_many_that_reads_nothing_is_ended_and_one_that_reads_is_not() -> None:
    bus = EventBus(backlog=10)
    with ExitStack() as open_:
        many = [open_.enter_context(bus.subscribe()) for _ in range(FEW + 1)]
        read = []
        for start in range(0, 100, 20):
            publish_steps(bus, range(start, start + 20))
            for it in many[1:]:
                arrived = [await it.next(), *it.take_delivered()]
                read += arrived if it is many[1] else []
        bus.close()
        assert steps([it for it in read if it is not None]) == list(range(100))
        assert steps(await heard(many[0])) == list(range(20))


async def test_a_bus_that_many_left_delivers_at_once_again() -> None:
    bus = EventBus(1)
    with ExitStack() as open_:
        many = [open_.enter_context(bus.subscribe()) for _ in range(FEW + 1)]
        publish_steps(bus, range(1))
        for it in many:
            await it.next()
    with bus.subscribe() as one:
        await asyncio.sleep(0)  # the delivery ends one turn after the last subscriber got it
        publish_steps(bus, range(1, 2))
        assert steps(one.take_delivered()) == [1]
