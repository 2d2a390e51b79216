"""The order of waiting tasks: the rules of `choose` one by one, its bounds on a virtual clock, and the queue."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.tasks.queue import ControlTicket, TaskQueue
from imagegen.tasks.scheduling import PATIENCE_SWAPS, QUANTUM_SWAPS, Costs, Current, Fairness, Stays, choose
from imagegen.tasks.tickets import TaskTicket

SWAP_S, WORK_S = 12.0, 2.6
COSTS = Costs(dict.fromkeys("abcde", SWAP_S), dict.fromkeys("abcde", WORK_S))
PATIENCE_S = PATIENCE_SWAPS * SWAP_S
QUANTUM_S = QUANTUM_SWAPS * SWAP_S
AGEING_S = Fairness().ageing_s
STRICT = Fairness(ageing_s=0)
#: What others bound a task's age with.
AGE_BOUND_S = 120.0


def ticket(sequence: int, model: str = "a", *, priority: int = 0, since: float = 0) -> TaskTicket:
    return TaskTicket(priority, sequence, f"task-{sequence}", model, since)


# -- the rules, by number ----------------------------------------------------------------------------------------------


def test_1_only_the_lowest_priority_number_counts() -> None:
    ready = [ticket(1, "a", priority=5), ticket(2, "b", priority=-1), ticket(3, "a", priority=0)]
    assert choose(ready, Current("a"), COSTS, 0).sequence == 2


def test_1_not_even_a_claim_long_due_overtakes_a_better_priority() -> None:
    ready = [ticket(1, "b", priority=1, since=-1e6), ticket(2, "a", priority=0, since=0)]
    assert choose(ready, Current("a", served_s=1e6), COSTS, 0, STRICT).sequence == 2


@pytest.mark.parametrize(("waited_s", "chosen"), [(2 * AGEING_S, "low"), (2 * AGEING_S - 1, "high")])
def test_1_waiting_long_enough_is_worth_a_step_of_priority(waited_s: float, chosen: str) -> None:
    ready = [ticket(1, "low", priority=7, since=-waited_s), ticket(2, "high", priority=5)]
    first = choose(ready, Current("high"), COSTS, 0, Fairness(quantum_swaps=0))
    assert first.model == chosen


def test_1_a_task_that_waited_long_enough_runs_before_later_tasks_of_its_model() -> None:
    ready = [ticket(1, priority=1, since=-AGEING_S), ticket(2)]
    assert choose(ready, Current("a"), COSTS, 0).sequence == 1


def test_1_a_raised_task_interrupts_no_quantum() -> None:
    ready = [ticket(1, "b", priority=1, since=-1e6), ticket(2, "a")]
    assert choose(ready, Current("a", QUANTUM_S - 1), COSTS, 0).model == "a"
    assert choose(ready, Current("a", QUANTUM_S), COSTS, 0).model == "b"


def test_2_the_resident_model_comes_before_one_that_arrived_earlier() -> None:
    assert choose([ticket(1, "b"), ticket(2, "a")], Current("a"), COSTS, 1).sequence == 2


def test_2_the_resident_models_own_tasks_run_in_order_of_arrival() -> None:
    assert choose([ticket(9), ticket(4), ticket(6)], Current("a"), COSTS, 1).sequence == 4


@pytest.mark.parametrize(
    ("waited_s", "served_s", "chosen"),
    [
        (PATIENCE_S, QUANTUM_S, "b"),
        (PATIENCE_S - 1, QUANTUM_S, "a"),
        (PATIENCE_S, QUANTUM_S - 1, "a"),
        (1e6, 0, "a"),
        (0, 1e6, "a"),
    ],
)
def test_3_another_model_interrupts_when_its_claim_is_due_and_the_quantum_is_spent(
    waited_s: float, served_s: float, chosen: str
) -> None:
    ready = [ticket(1, "b", since=-waited_s), ticket(2, "a")]
    assert choose(ready, Current("a", served_s), COSTS, 0).model == chosen


def test_3_patience_and_quantum_depend_on_the_swap_of_the_due_model() -> None:
    costs = Costs({"a": 1000, "b": 1}, {})
    ready = [ticket(1, "b", since=-PATIENCE_SWAPS), ticket(2, "a")]
    assert choose(ready, Current("a", served_s=QUANTUM_SWAPS), costs, 0).model == "b"


def test_3_a_claim_below_in_priority_does_not_end_a_quantum() -> None:
    ready = [ticket(1, "b", priority=1, since=1 - AGEING_S), ticket(2, "c", since=0), ticket(3, "a", since=0)]
    assert choose(ready, Current("a", served_s=1e6), COSTS, 0).model == "a"


def test_3_patience_and_quantum_can_be_set() -> None:
    ready = [ticket(1, "b", since=-SWAP_S), ticket(2, "a")]
    assert choose(ready, Current("a", SWAP_S), COSTS, 0, Fairness(1, 1)).model == "b"
    assert choose(ready, Current("a", SWAP_S), COSTS, 0, Fairness(1, 2)).model == "a"
    assert choose(ready, Current("a", SWAP_S), COSTS, 0, Fairness(2, 1)).model == "a"


def test_3_tasks_that_arrived_before_the_due_task_are_not_interrupted() -> None:
    ready = [ticket(1, "a", since=-1e6), ticket(2, "b", since=-1e5), ticket(3, "a", since=-9)]
    assert choose(ready, Current("a", served_s=1e6), COSTS, 0).sequence == 1
    assert choose(ready[1:], Current("a", served_s=1e6), COSTS, 0).sequence == 2


def test_4_where_the_model_changes_the_one_that_is_due_longest_is_next() -> None:
    many = [ticket(n, "b", since=-PATIENCE_S) for n in range(3, 30)]
    ready = [ticket(1, "c", since=-PATIENCE_S - 1), ticket(2, "d", since=-PATIENCE_S), *many]
    assert choose(ready, Current(None), COSTS, 0).model == "c"
    assert choose(ready, Current("a", served_s=0), COSTS, 0).model == "c"


def test_5_the_largest_sum_of_waits_for_its_price_is_next() -> None:
    many = [ticket(n, "b", since=-50) for n in range(2, 7)]
    assert choose([ticket(1, "c", since=-60), *many], Current(None), COSTS, 0).sequence == 2


def test_5_a_model_that_loads_fast_is_cheaper_to_serve() -> None:
    ready = [ticket(1, "slow", since=-20), ticket(2, "fast", since=-20)]
    assert choose(ready, Current(None), Costs({"slow": 60, "fast": 1}, {}), 0).model == "fast"


def test_5_with_equal_claims_the_first_to_arrive_is_next() -> None:
    assert choose([ticket(2, "b"), ticket(1, "c")], Current(None), COSTS, 0).sequence == 1


def test_5_the_resident_model_without_waiting_tasks_is_no_candidate() -> None:
    assert choose([ticket(1, "b"), ticket(2, "c", since=-9)], Current("a"), COSTS, 1).model == "c"


# -- several resident models -------------------------------------------------------------------------------------------


def test_2_the_tasks_of_all_resident_models_run_in_order_of_arrival() -> None:
    ready = [ticket(1, "c"), ticket(4, "a"), ticket(3, "b"), ticket(2, "d")]
    assert choose(ready, Current("a", 0, ("b",)), COSTS, 1).sequence == 3
    assert choose(ready, Current("b", 0, ("a",)), COSTS, 1).sequence == 3
    assert choose(ready, Current("a", 0, ("b", "d")), COSTS, 1).sequence == 2


@pytest.mark.parametrize(
    ("waited_s", "served_s", "chosen"),
    [(PATIENCE_S, QUANTUM_S, "c"), (PATIENCE_S - 1, QUANTUM_S, "b"), (PATIENCE_S, QUANTUM_S - 1, "b")],
)
def test_3_the_resident_models_have_one_quantum_together(waited_s: float, served_s: float, chosen: str) -> None:
    ready = [ticket(1, "c", since=-waited_s), ticket(2, "b"), ticket(3, "a")]
    assert choose(ready, Current("a", served_s, ("b",)), COSTS, 0).model == chosen


def test_3_no_resident_model_is_interrupted_for_a_task_that_came_after_one_of_another_resident_model() -> None:
    ready = [ticket(1, "b", since=-1e6), ticket(2, "c", since=-1e5), ticket(3, "a", since=-9)]
    assert choose(ready, Current("a", 1e6, ("b",)), COSTS, 0).sequence == 1
    assert choose(ready[1:], Current("a", 1e6, ("b",)), COSTS, 0).sequence == 2


def test_5_no_resident_model_is_a_candidate_without_waiting_tasks() -> None:
    assert choose([ticket(1, "c"), ticket(2, "d", since=-9)], Current("a", 0, ("b",)), COSTS, 1).model == "d"


def test_a_model_that_works_is_the_most_recently_used_one_and_a_load_begins_the_quantum() -> None:
    residents = Current("a", 5, ("b", "c"))
    assert residents.then("b", 2, keep(3)) == Current("b", 7, ("a", "c"))
    assert residents.then("d", 2, keep(3)) == Current("d", 2, ("a", "b"))
    assert residents.then("d", 2, keep(1)) == Current("d", 2)
    assert Current(None).then("d", 2, keep(1)) == Current("d", 2)


def keep(most: int) -> Stays:
    """At most this many models are resident."""
    return lambda model, residents: residents[: most - 1]


def test_a_model_that_has_not_run_yet_is_priced_by_a_guess() -> None:
    assert Costs().swap("new") > 0
    assert Costs().work("new") > 0
    assert choose([ticket(1, "new")], Current(None), Costs(), 0).sequence == 1


# -- what holds for any queue ------------------------------------------------------------------------------------------

MODELS = st.sampled_from("abc")
SECONDS = st.floats(0, 5000)


@st.composite
def queues(draw: st.DrawFn) -> list[TaskTicket]:
    size = draw(st.integers(1, 12))
    priorities = draw(st.lists(st.integers(-2, 2), min_size=size, max_size=size))
    models = draw(st.lists(MODELS, min_size=size, max_size=size))
    waits = sorted(draw(st.lists(SECONDS, min_size=size, max_size=size)), reverse=True)
    tickets = [ticket(n, models[n], priority=priorities[n], since=-waits[n]) for n in range(size)]
    return draw(st.permutations(tickets))


CURRENTS = st.builds(Current, st.none() | MODELS, SECONDS) | st.builds(
    lambda models, served_s: Current(models[0], served_s, tuple(models[1:])), st.permutations("abcd"), SECONDS
)
PRICES = st.dictionaries(MODELS, st.floats(0.01, 100))
ANY_COSTS = st.builds(Costs, PRICES, PRICES)


@given(queues(), CURRENTS, ANY_COSTS)
def test_nothing_ever_overtakes_across_priorities(ready: list[TaskTicket], current: Current, costs: Costs) -> None:
    assert choose(ready, current, costs, 0, STRICT).priority == min(each.priority for each in ready)


@given(queues(), CURRENTS, ANY_COSTS)
def test_only_a_task_that_waited_long_enough_overtakes_a_better_priority(
    ready: list[TaskTicket], current: Current, costs: Costs
) -> None:
    chosen, best = choose(ready, current, costs, 0), min(each.priority for each in ready)
    assert -chosen.since >= (chosen.priority - best) * AGEING_S


@given(queues(), CURRENTS, ANY_COSTS)
def test_within_a_model_and_a_priority_the_order_is_that_of_arrival(
    ready: list[TaskTicket], current: Current, costs: Costs
) -> None:
    chosen = choose(ready, current, costs, 0)
    peers = [each for each in ready if (each.model, each.priority) == (chosen.model, chosen.priority)]
    assert chosen.sequence == min(each.sequence for each in peers)


@given(queues(), MODELS, ANY_COSTS)
def test_a_quantum_that_is_not_spent_is_never_interrupted(ready: list[TaskTicket], resident: str, costs: Costs) -> None:
    best = min(each.priority for each in ready)
    chosen = choose(ready, Current(resident, served_s=0), costs, 0)
    if any(each.model == resident and each.priority == best for each in ready):
        assert chosen.model == resident


@given(queues(), CURRENTS, ANY_COSTS, st.randoms(use_true_random=False))
def test_the_order_in_which_tasks_are_listed_decides_nothing(
    ready: list[TaskTicket], current: Current, costs: Costs, random: Random
) -> None:
    shuffled = list(ready)
    random.shuffle(shuffled)
    assert choose(shuffled, current, costs, 0) == choose(ready, current, costs, 0)


@given(queues(), CURRENTS)
def test_all_waiting_tasks_are_chosen_in_the_end(ready: list[TaskTicket], current: Current) -> None:
    left, chosen = list(ready), []
    while left:
        chosen.append(choose(left, current, COSTS, 0, STRICT))
        left.remove(chosen[-1])
        current = Current(chosen[-1].model, WORK_S)
    assert [each.priority for each in chosen] == sorted(each.priority for each in ready)


# -- what it is for: simulated on a virtual clock ----------------------------------------------------------------------

Policy = Callable[[Sequence[TaskTicket], Current, Costs, float], TaskTicket]


def first_come_first_served(ready: Sequence[TaskTicket], current: Current, costs: Costs, now: float) -> TaskTicket:
    return min(ready)


def age_bound(ready: Sequence[TaskTicket], current: Current, costs: Costs, now: float) -> TaskTicket:
    """The resident model first, except that any task that is too old runs at once."""
    oldest = min(ready)
    own = [each for each in ready if each.model == current.model]
    return min(own) if own and now - oldest.since < AGE_BOUND_S else oldest


@dataclass
class Simulated:
    """The result of a policy on a trace."""

    #: The model of each task, in the order in which they ran.
    models: list[str] = field(default_factory=list)
    #: Seconds from arrival to start, by task.
    waits: dict[str, float] = field(default_factory=dict)
    #: For each swap: seconds of work that the leaving model had done, and whether it left waiting tasks behind.
    left: list[tuple[float, bool]] = field(default_factory=list)

    @property
    def swaps(self) -> int:
        return len(self.left)

    @property
    def mean_wait(self) -> float:
        return sum(self.waits.values()) / len(self.waits)


def with_fairness(fairness: Fairness) -> Policy:
    return lambda ready, current, costs, now: choose(ready, current, costs, now, fairness)


def simulate(arrivals: Sequence[TaskTicket], policy: Policy, most: int = 10**9, residents: int = 1) -> Simulated:
    """One device, SWAP_S to load a model, WORK_S a task; `most` may wait, the rest is refused."""
    done, now, current = Simulated(), 0.0, Current(None)
    coming, ready = sorted(arrivals, key=lambda each: each.since), list[TaskTicket]()
    while coming or ready:
        if not ready:
            now = max(now, coming[0].since)
        while coming and coming[0].since <= now:
            arrived = coming.pop(0)
            ready += [arrived] if len(ready) < most else []
        chosen = policy(ready, current, COSTS, now)
        ready.remove(chosen)
        if chosen.model not in current.models:
            done.left.append((current.served_s, any(each.model in current.models for each in ready)))
            now += SWAP_S
        done.models.append(chosen.model)
        done.waits[chosen.task_id] = now - chosen.since
        now, current = now + WORK_S, current.then(chosen.model, WORK_S, keep(residents))
    return done


def burst(models: str, tasks: int, seed: int, *, every_s: float = 1.0) -> list[TaskTicket]:
    """Random models, faster than they can be served, so that every task gets old."""
    random = Random(seed)
    return [ticket(n, random.choice(models), since=n * every_s) for n in range(tasks)]


BURSTS = pytest.mark.parametrize("models", ["ab", "abcde"])


@BURSTS
def test_a_burst_costs_a_fraction_of_the_swaps_of_first_come_first_served(models: str) -> None:
    trace = burst(models, 200, seed=1)
    ours, theirs = simulate(trace, choose), simulate(trace, first_come_first_served)
    assert ours.swaps * 4 < theirs.swaps
    assert ours.mean_wait < theirs.mean_wait / 2


@BURSTS
def test_an_age_bound_alone_would_swap_at_nearly_every_task_of_a_burst(models: str) -> None:
    trace = burst(models, 200, seed=1)
    ours, theirs = simulate(trace, choose), simulate(trace, age_bound)
    assert ours.swaps * 4 < theirs.swaps
    assert ours.mean_wait < theirs.mean_wait


@BURSTS
def test_a_swap_opens_a_run_of_work_and_never_a_single_task(models: str) -> None:
    simulated = simulate(burst(models, 1500, seed=2), choose)
    interrupted = [served_s for served_s, has_more in simulated.left if has_more]
    assert interrupted
    assert min(interrupted) >= QUANTUM_S


def test_a_lonely_task_is_not_starved_by_an_endless_stream_for_the_resident_model() -> None:
    stream = [ticket(2 * n, "a", since=n * WORK_S) for n in range(1000)]
    lonely = ticket(77, "b", since=100)
    wait = simulate([*stream, lonely], choose).waits[lonely.task_id]
    assert wait <= max(PATIENCE_S, QUANTUM_S) + WORK_S + SWAP_S


def test_not_even_a_resident_model_with_more_work_than_can_be_done_starves_the_others() -> None:
    stream = [ticket(2 * n, "a", since=n * WORK_S / 2) for n in range(1000)]
    lonely = ticket(77, "b", since=38.5 * WORK_S / 2)
    wait = simulate([*stream, lonely], choose).waits[lonely.task_id]
    assert wait <= max(PATIENCE_S, QUANTUM_S) + WORK_S + SWAP_S


def test_under_lasting_overload_every_model_gets_its_turn() -> None:
    simulated = simulate(burst("abc", 2000, seed=3, every_s=0.5), choose)
    turns = [model for model, _ in groupby(simulated.models)]
    assert len(turns) > 6
    for start in range(len(turns) - 5):
        assert set(turns[start : start + 6]) == set("abc")


@pytest.mark.parametrize("residents", [2, 3])
def test_not_even_several_resident_models_with_more_work_than_can_be_done_starve_another_one(residents: int) -> None:
    first = [ticket(n, "abc"[n]) for n in range(residents)]  # all are resident before the stream begins
    stream = [ticket(100 + 2 * n, "abc"[n % residents], since=100 + n * WORK_S / 2) for n in range(1000)]
    lonely = ticket(177, "d", since=100 + 38.5 * WORK_S / 2)
    wait = simulate([*first, *stream, lonely], choose, residents=residents).waits[lonely.task_id]
    assert wait <= max(PATIENCE_S, QUANTUM_S) + WORK_S + SWAP_S


@BURSTS
def test_more_resident_models_cost_fewer_swaps_and_as_many_as_there_are_one_load_each(models: str) -> None:
    simulated = [simulate(burst(models, 200, seed=1), choose, residents=n) for n in range(1, len(models) + 1)]
    assert [it.swaps for it in simulated] == sorted((it.swaps for it in simulated), reverse=True)
    assert simulated[-1].swaps == len(models) <= simulated[0].swaps


def test_once_all_models_are_resident_the_order_is_that_of_arrival() -> None:
    trace = [ticket(n, "abc"[n % 3], since=100 * (n > 2)) for n in range(90)]
    assert list(simulate(trace, choose, residents=3).waits) == [each.task_id for each in trace]


def test_a_low_priority_is_not_starved_by_an_endless_stream_of_a_better_one() -> None:
    # As much work comes as can be done: without ageing it would run last of all.
    stream = [ticket(n, "ab"[n // 40 % 2], since=n * WORK_S) for n in range(1200)]
    lonely = ticket(5000, "c", priority=3, since=100)
    waits = [simulate([*stream, lonely], p).waits[lonely.task_id] for p in (choose, with_fairness(STRICT))]
    bound = 3 * AGEING_S + max(PATIENCE_S, 3 * (QUANTUM_S + WORK_S + SWAP_S))
    assert waits[0] <= bound < waits[1]


@pytest.mark.parametrize("residents", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_no_wait_exceeds_the_bound_that_the_documents_state(seed: int, residents: int) -> None:
    # docs/scheduling.md. Twice as much work as can be done, from a queue that takes N tasks and refuses the rest.
    fairness, most = Fairness(patience_swaps=1, quantum_swaps=4), 60
    random, stream = Random(seed), []
    for n in range(1500):
        model = random.choices("abcdefgh", [40, 30, 10, 5, 2, 1, 1, 1])[0]
        stream.append(ticket(n, model, since=n * WORK_S / 2))
    served = simulate(stream, with_fairness(fairness), most=most, residents=residents)
    patience_s, quantum_s = fairness.patience_swaps * SWAP_S, fairness.quantum_swaps * SWAP_S
    work_s, turn_s, models = most * WORK_S, quantum_s + WORK_S + SWAP_S, 8
    rounds = work_s / quantum_s
    bound = patience_s + work_s + (rounds + 1) * turn_s + rounds * SWAP_S + (models + 1) * turn_s
    assert max(served.waits.values()) <= bound


def test_with_one_model_nothing_changes_the_order_of_arrival() -> None:
    trace = burst("a", 50, seed=4)
    assert list(simulate(trace, choose).waits) == [each.task_id for each in trace]


def test_a_calm_service_answers_in_order_of_arrival() -> None:
    trace = [ticket(n, "ab"[n % 2], since=n * 60) for n in range(20)]
    assert list(simulate(trace, choose).waits) == [each.task_id for each in trace]


# -- the queue ---------------------------------------------------------------------------------------------------------


class Device:
    """The situation that the queue reads: residency and time."""

    def __init__(self, resident: Current = Current(None), now: float = 0) -> None:  # noqa: B008 - a value
        self.resident, self.now = resident, now

    def current(self) -> Current:
        return self.resident

    def costs(self) -> Costs:
        return COSTS

    def fairness(self) -> Fairness:
        return Fairness()

    def queue(self, *tickets: TaskTicket) -> TaskQueue:
        queue = TaskQueue(self, lambda: self.now)
        for each in tickets:
            queue.put_nowait(each)
        return queue


async def nothing() -> None:
    """The action of a control ticket."""


async def test_control_tickets_go_before_all_tasks_in_their_own_order() -> None:
    queue = Device(Current("a")).queue(ticket(1, priority=-1000))
    first, second = ControlTicket(0, nothing), ControlTicket(1, nothing)
    queue.put_nowait(second)
    queue.put_nowait(first)
    assert [await queue.get() for _ in range(3)] == [first, second, ticket(1, priority=-1000)]


def test_of_the_models_that_must_be_loaded_the_one_whose_tasks_come_first_is_known_before() -> None:
    queue = Device(Current("a")).queue(
        ticket(1, "b", priority=1), ticket(2, "a"), ticket(3, "c"), ticket(4, "d", since=-1)
    )
    assert queue.first_load(lambda model: model != "a") == "d"
    assert queue.first_load(lambda model: model in "bc") == "c"
    assert queue.first_load(lambda model: model == "b") == "b"
    assert queue.first_load(lambda model: False) is None
    assert queue.waiting == 4


async def test_the_resident_models_are_read_when_a_task_is_taken() -> None:
    device = Device(Current("a"))
    queue = device.queue(ticket(1, "a"), ticket(2, "b"))
    device.resident = Current("b")
    taken = await queue.get()
    assert isinstance(taken, TaskTicket)
    assert taken.model == "b"


async def test_the_clock_is_read_when_a_task_is_taken() -> None:
    device = Device(Current("a", served_s=QUANTUM_S))
    queue = device.queue(ticket(1, "b"), ticket(2, "a"))
    device.now = PATIENCE_S
    assert await queue.get() == ticket(1, "b")


async def test_a_waiting_task_can_be_taken_out_once() -> None:
    queue = Device().queue(ticket(1), ticket(2))
    assert queue.remove("task-1")
    assert not queue.remove("task-1")
    assert not queue.remove("unknown")
    assert await queue.get() == ticket(2)


async def test_a_task_that_was_taken_no_longer_waits() -> None:
    queue = Device().queue(ticket(1))
    await queue.get()
    assert not queue.remove("task-1")
    assert queue.waiting == 0
    assert queue.empty()


async def test_taking_all_out_names_them_in_order_of_arrival_and_leaves_control() -> None:
    queue = Device().queue(ticket(3, priority=-5), ticket(1), ticket(2, priority=9))
    queue.put_nowait(ControlTicket(0, nothing))
    assert queue.remove_all() == ["task-1", "task-2", "task-3"]
    assert queue.remove_all() == []
    assert queue.qsize() == 1
    assert isinstance(await queue.get(), ControlTicket)


async def test_a_position_counts_the_tasks_before_by_priority_and_arrival() -> None:
    tickets = [ticket(1), ticket(2, priority=-1), ticket(3), ticket(4, priority=1)]
    queue = Device().queue(*tickets)
    assert [queue.position(each) for each in tickets] == [1, 0, 2, 3]


async def test_a_position_is_known_before_the_ticket_is_in() -> None:
    assert Device().queue(ticket(1), ticket(2)).position(ticket(3)) == 2


async def test_control_tickets_do_not_count_as_waiting_tasks() -> None:
    queue = Device().queue(ticket(1))
    queue.put_nowait(ControlTicket(0, nothing))
    assert (queue.waiting, queue.qsize(), queue.empty()) == (1, 2, False)


async def test_a_waiting_run_loop_wakes_when_a_task_arrives() -> None:
    queue = Device().queue()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.put_nowait(ticket(1))
    assert await waiting == ticket(1)


async def test_a_task_that_is_cancelled_before_its_taker_wakes_is_not_taken() -> None:
    queue = Device().queue()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.put_nowait(ticket(1))
    assert queue.remove("task-1")
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.put_nowait(ticket(2))
    assert await waiting == ticket(2)


async def test_an_empty_queue_gives_nothing() -> None:
    with pytest.raises(asyncio.QueueEmpty):
        Device().queue().get_nowait()
