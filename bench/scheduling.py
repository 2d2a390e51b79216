"""How much the order of tasks matters: the production `choose()` and its rivals on a virtual clock.

python -m bench.scheduling [--seeds 5] [--trace lora_request_trace.csv] [--plot docs/scheduling.svg]

The trace is made up, after what GenTD26 (Alibaba's cluster-trace-v2026-GenAI) tells of 26,823 requests for 87 models
in 23 days: people come in sittings, mostly in the evening, send a handful of requests about a minute apart, mostly for
one and the same model, and a few models get nearly all. `--trace` reads the real one where someone has it.
"""

import argparse
import csv
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import product
from pathlib import Path
from random import Random
from typing import NamedTuple

from bench._shared import DOCS, bars, quantile, table
from imagegen.tasks.scheduling import Costs, Current, choose
from imagegen.tasks.tickets import TaskTicket

DAYS, REQUESTS, MODELS, FOLDED = 23, 26_823, 87, 5
IMAGE_S = 2.6
#: Weights over PCIe 5, a fast warm swap, and the median of one production system.
SWAPS_S = (0.6, 12.0, 22.7)
#: Models that are resident at once.
RESIDENTS = (1, 2, 3)

#: Sittings that begin in each hour of a day, as weights: the night is short, the evening is long.
HOURS = (38, 11, 12, 12, 7, 4, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 6, 23, 28, 6, 11, 33, 33, 35)
#: How unlike the days are, and the hours beside their usual load: the spread of the logarithm.
DAY_SPREAD, HOUR_SPREAD = 0.25, 0.3
#: Requests in a sitting and the seconds between them: median, spread of the logarithm.
SITTING, PAUSE_S = (2.0, 1.3), (67.0, 1.16)
#: How often the next request of a sitting is for another model, and how steeply popularity falls with the rank.
RESTLESS, STEEPNESS = 0.3, 1.0
#: Images in a request, as weights.
IMAGES = {1: 58, 2: 8, 4: 34}
#: So much faster than people came are the traces played: one device then has bursts that it cannot follow.
PACE, REAL_PACE = 3, 2

OURS = "`choose()`"

Policy = Callable[[Sequence[TaskTicket], Current, Costs, float], TaskTicket]


class Arrival(NamedTuple):
    """A request: when, for which model, and the seconds of work in it."""

    at_s: float
    model: int
    work_s: float


class Outcome(NamedTuple):
    """What a policy made of a trace: seconds from arrival to the finished picture, and swaps."""

    latencies: list[float]
    swaps: int

    @property
    def mean(self) -> float:
        return statistics.mean(self.latencies)

    def figures(self) -> list[str]:
        q = [f"{quantile(self.latencies, q):,.0f}" for q in (0.5, 0.99, 1.0)]
        return [f"{100 * self.swaps / len(self.latencies):.1f}", f"{self.mean:,.0f}", *q]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="made-up traces; the table is of the first")
    parser.add_argument("--trace", type=Path, help="GenTD26's lora_request_trace.csv")
    parser.add_argument("--plot", type=Path, default=DOCS / "scheduling.svg")
    options = parser.parse_args()
    traces = [read(options.trace)] if options.trace else [synthetic(seed) for seed in range(1, options.seeds + 1)]
    rows: list[list[object]] = []
    groups: dict[str, dict[str, float]] = {}
    for models, swap_s in product((FOLDED, MODELS), SWAPS_S):
        for name, outcome in compare(traces[0], models, swap_s).items():
            rows.append([models, swap_s, name, *outcome.figures()])
            if swap_s == SWAPS_S[1]:
                groups.setdefault(f"{models} models, {swap_s:g} s a swap", {})[name] = outcome.mean
    print(table("models | swap s | policy | swaps per 100 | mean s | p50 s | p99 s | max s", rows), end="\n\n")
    print(table(f"{len(traces)} traces, {SWAPS_S[1]:g} s a swap | {' | '.join(RATIOS)}", ratios(traces)), end="\n\n")
    print(table("models | resident | swaps per 100 | mean s | p50 s | p99 s | max s", several(traces[0])))
    if not options.trace:
        options.plot.write_text(bars("From request to picture, on a made-up trace", groups, "mean seconds"))


def compare(trace: Sequence[Arrival], models: int, swap_s: float) -> dict[str, Outcome]:
    folded = [arrival._replace(model=arrival.model % models) for arrival in trace]
    return {
        "first come, first served": simulate(folded, first_come, swap_s),
        "resident first": simulate(folded, resident_first, swap_s),
        OURS: simulate(folded, choose, swap_s),
        "no swaps at all (bound)": simulate([arrival._replace(model=0) for arrival in trace], first_come, 0),
    }


def ratios(traces: Sequence[Sequence[Arrival]]) -> Iterator[list[object]]:
    """Ours in terms of the others, the median over the traces."""
    for models in (FOLDED, MODELS):
        measured = [ratio(*compare(trace, models, SWAPS_S[1]).values()) for trace in traces]
        yield [f"{models} models", *(f"{statistics.median(column):.2f}" for column in zip(*measured, strict=True))]


def several(trace: Sequence[Arrival]) -> Iterator[list[object]]:
    """What more resident models bring."""
    for models, residents in product((FOLDED, MODELS), RESIDENTS):
        folded = [arrival._replace(model=arrival.model % models) for arrival in trace]
        yield [models, residents, *simulate(folded, choose, SWAPS_S[1], residents).figures()]


#: What `ratio` gives.
RATIOS = ("swaps / first come", "mean / resident first", "p99 / resident first", "max / resident first")


def ratio(first: Outcome, resident: Outcome, ours: Outcome, bound: Outcome) -> tuple[float, float, float, float]:
    return (
        ours.swaps / first.swaps,
        ours.mean / resident.mean,
        quantile(ours.latencies, 0.99) / quantile(resident.latencies, 0.99),
        max(ours.latencies) / max(resident.latencies),
    )


# -- the device, on a virtual clock ------------------------------------------------------------------------------------


def simulate(trace: Sequence[Arrival], policy: Policy, swap_s: float, residents: int = 1) -> Outcome:
    """One device and so many resident models; what work costs is known from the latest task of each model."""
    models = {str(arrival.model) for arrival in trace}
    costs = Costs(dict.fromkeys(models, swap_s), worked := dict[str, float]())
    coming, now, current = 0, 0.0, Current(None)
    ready: list[TaskTicket] = []
    latencies, swaps = [], 0
    while ready or coming < len(trace):
        if not ready:
            now = max(now, trace[coming].at_s)
        while coming < len(trace) and trace[coming].at_s <= now:
            ready.append(TaskTicket(0, coming, str(coming), str(trace[coming].model), trace[coming].at_s))
            coming += 1
        ticket = policy(ready, current, costs, now)
        ready.remove(ticket)
        if ticket.model not in current.models:
            swaps, now = swaps + 1, now + swap_s
        work_s = worked[ticket.model] = trace[ticket.sequence].work_s
        now, current = now + work_s, current.then(ticket.model, work_s, lambda model, there: there[: residents - 1])
        latencies.append(now - ticket.since)
    return Outcome(latencies, swaps)


def first_come(ready: Sequence[TaskTicket], current: Current, costs: Costs, now: float) -> TaskTicket:
    return ready[0]


def resident_first(ready: Sequence[TaskTicket], current: Current, costs: Costs, now: float) -> TaskTicket:
    """As llama-swap: the loaded model's requests as long as there are any, then the oldest."""
    return next((ticket for ticket in ready if ticket.model == current.model), ready[0])


# -- traces ------------------------------------------------------------------------------------------------------------


def synthetic(seed: int) -> list[Arrival]:
    """REQUESTS requests in order of time; models are numbered by popularity."""
    random = Random(seed)
    starts = _starts(random)
    arrivals: list[Arrival] = []
    while len(arrivals) < REQUESTS:
        arrivals += _sitting(random, next(starts))
    return sorted(arrival._replace(at_s=arrival.at_s / PACE) for arrival in arrivals[:REQUESTS])


def _starts(random: Random) -> Iterator[float]:
    """Moments at which someone sits down."""
    days = [random.lognormvariate(0, DAY_SPREAD) for _ in range(DAYS)]
    load = [day * hour * random.lognormvariate(0, HOUR_SPREAD) for day in days for hour in HOURS]
    while True:
        yield (random.choices(range(len(load)), load)[0] + random.random()) * 3600


def _sitting(random: Random, at_s: float) -> Iterator[Arrival]:
    model = _model(random)
    for _ in range(max(1, round(_lognormal(random, *SITTING)))):
        yield Arrival(at_s, model, IMAGE_S * random.choices(list(IMAGES), list(IMAGES.values()))[0])
        at_s += _lognormal(random, *PAUSE_S)
        if random.random() < RESTLESS:
            model = _model(random)


def _model(random: Random) -> int:
    return random.choices(range(MODELS), [(rank + 1) ** -STEEPNESS for rank in range(MODELS)])[0]


def _lognormal(random: Random, median: float, spread: float) -> float:
    return median * random.lognormvariate(0, spread)


def read(path: Path) -> list[Arrival]:
    """GenTD26's requests; its file is not part of this project, and no licence of it was seen."""
    with path.open(newline="") as file:
        return sorted(_rows(csv.DictReader(file)))


def _rows(rows: Iterable[dict[str, str]]) -> Iterator[Arrival]:
    for row in rows:
        at_s = datetime.fromisoformat(f"{row['gmt_create']}+00:00").timestamp()
        # One in a few hundred names none; it counts as a model of its own.
        model = int(row["checkpoint_model_version_id"].removeprefix("M") or MODELS - 1)
        images = min(float(row["num_images_per_prompt"] or 1), max(IMAGES))
        yield Arrival(at_s / REAL_PACE, model, IMAGE_S * images)


if __name__ == "__main__":
    main()
