"""Drives the plain and the fast server alternately, one at a time, with the same sentences at the same pace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median

from loadtest.client import Client
from loadtest.measure import Run, Summary, over_rounds, summarize
from loadtest.workload import poisson_arrivals, shuffled

# Bounds the pass over all sentences on a slow server; sentences it does not reach count in no agreement.
PASS_SECONDS = 120.0

# Drives one client with one seed.
Drive = Callable[[Client, int], Awaitable[Run]]


class CapacityError(RuntimeError):
    """The plain server answered nothing, so there is no rate to derive the open loops from."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: concurrencies of closed loops, loads of open loops (shares of the plain capacity), how long, and the
    milliseconds that every request has."""

    concurrencies: Sequence[int]
    loads: Sequence[float]
    rounds: int
    seconds: float
    timeout_ms: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One scenario on both servers, a summary a round. `rate` (requests a second) is None for a closed loop."""

    name: str
    rate: float | None
    plain: list[Summary]
    fast: list[Summary]

    @property
    def sides(self) -> dict[str, Summary]:
        return {"plain": over_rounds(self.plain), "fast": over_rounds(self.fast)}

    @property
    def speedup(self) -> float | None:
        """Median over rounds of fast over plain throughput, so that a drift of the machine's speed cancels out.

        None for an open loop, whose throughput is given, and where a round has no plain answer.
        """
        if self.rate is not None or any(r.throughput == 0 for r in self.plain):
            return None
        return median(m.throughput / p.throughput for p, m in zip(self.plain, self.fast, strict=True))


@dataclass(frozen=True, slots=True)
class Result:
    """`once` is the pass of every sentence; `capacity` (requests a second) is 100% load of the `open` loops."""

    once: Comparison
    closed: list[Comparison]
    open: list[Comparison]
    capacity: float

    @property
    def unexpected_errors(self) -> int:
        runs = [run for c in (self.once, *self.closed, *self.open) for run in (*c.plain, *c.fast)]
        return sum(run.unexpected_errors for run in runs)


async def compare(
    plain: Client,
    fast: Client,
    labels: Sequence[str | None],
    plan: Plan,
    progress: Callable[[str], None],
) -> Result:
    """Runs the plan; `labels` holds each sentence's right answer (None where unknown), `progress` gets a line a run.

    Every sentence first passes through both servers once: that warms them up, and the plain server's answers are what
    agreement is measured against. The plain server's throughput in the closed loop of the highest concurrency is the
    capacity that `plan.loads` are shares of.

    Raises `CapacityError` when the plain server answers nothing at all.
    """
    highest = max(plan.concurrencies)
    progress(f"every sentence once through both servers, {highest} at once")
    passes = [await client.closed_loop(iter(range(len(labels))), highest, PASS_SECONDS) for client in (plain, fast)]
    reference = {o.sample: o.label for o in passes[0].outcomes if o.label is not None}
    once_plain, once_fast = ([summarize(run, labels, reference)] for run in passes)

    async def alternate(name: str, drive: Drive, rate: float | None = None) -> Comparison:
        """Plain, fast, fast, plain, ...: neither always goes first. The round is the seed, so both see the same order
        and arrivals."""
        summaries: dict[Client, list[Summary]] = {plain: [], fast: []}
        for number in range(plan.rounds):
            sides = ((plain, "plain"), (fast, "fast"))
            for client, side in sides if number % 2 == 0 else reversed(sides):
                summary = summarize(await drive(client, number), labels, reference)
                summaries[client].append(summary)
                progress(f"{name}, round {number + 1} of {plan.rounds}, {side}: {summary.throughput:.1f} requests/s")
        return Comparison(name, rate, summaries[plain], summaries[fast])

    def closed_loop(concurrency: int) -> Drive:
        return lambda client, seed: client.closed_loop(shuffled(len(labels), seed), concurrency, plan.seconds)

    def open_loop(rate: float) -> Drive:
        return lambda client, seed: client.open_loop(
            shuffled(len(labels), seed), poisson_arrivals(rate, plan.seconds, seed), plan.seconds
        )

    closed = [await alternate(f"{n} at once", closed_loop(n)) for n in plan.concurrencies]
    capacity = closed[plan.concurrencies.index(highest)].sides["plain"].throughput
    if not capacity:
        raise CapacityError(f"the plain server answered no request in the closed loop of {highest}")
    opened = [await alternate(f"{load:.0%} load", open_loop(load * capacity), load * capacity) for load in plan.loads]
    return Result(Comparison("every sentence once", None, once_plain, once_fast), closed, opened, capacity)
