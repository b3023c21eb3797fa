"""Open loops of more requests than a server can take: for long, and all at once."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from loadtest.client import Client
from loadtest.measure import OK, percentile
from loadtest.processes import rss_bytes
from loadtest.soak.tally import Tally
from loadtest.wire import CLASSIFY, Wire
from loadtest.workload import poisson_arrivals

EXACT_SHARE = 0.1
"""Of the requests ask for exact answers; the others leave the quality to the server."""
CONCURRENCY = 64
"""In flight in the closed loop that finds the capacity."""
REFERENCE_CONCURRENCY = 8
STRETCH_SECONDS = 1.0
"""Answers are read and counted a stretch of arrivals at a time, so that the generator holds few of them."""
MEMORY_EVERY_SECONDS = 2.0
WATCH_EVERY_SECONDS = 0.1
USUAL_SECONDS = 1.0
"""Of single requests before the burst."""
CALM_PROBES = 10
"""Probes in a row that have to be as fast as before the burst."""
CALM_FACTOR = 2.0
"""Times the p99 of before: as fast."""
WATCH_LIMIT_SECONDS = 300.0

_clock = time.perf_counter


class SoakError(RuntimeError):
    """The server cannot be driven as asked; the message says why."""


# In place of a text there is a pair of it and the quality that its request asks for; "" leaves that to the server.
WIRE = Wire(
    CLASSIFY.path,
    lambda pair: {"input": pair[0], "quality": pair[1]} if pair[1] else {"input": pair[0]},
    CLASSIFY.read,
)


def requests_for(texts: Sequence[str]) -> list[list[str]]:
    """What a `Client` sends in the format `WIRE`: sample `i` and `i + len(texts)` as `Tally` has them."""
    return [[text, ""] for text in texts] + [[text, "exact"] for text in texts]


def mixed(count: int, seed: int) -> Iterator[int]:
    """Endlessly yields samples for `count` texts at random, exact ones at `EXACT_SHARE`."""
    draw = random.Random(seed)
    while True:
        yield draw.randrange(count) + (count if draw.random() < EXACT_SHARE else 0)


async def learn_labels(client: Client, count: int) -> list[str]:
    """The plain model's label of every text: its exact answer. Raises `SoakError` where one does not come."""
    run = await client.closed_loop(iter(range(count, 2 * count)), REFERENCE_CONCURRENCY, math.inf)
    labels = {outcome.sample - count: outcome.label for outcome in run.outcomes if outcome.label is not None}
    if len(labels) < count:
        statuses = sorted({outcome.status for outcome in run.outcomes if outcome.status != OK})
        raise SoakError(f"{count - len(labels)} texts got no exact answer: {', '.join(statuses)}")
    return [labels[text] for text in range(count)]


async def capacity_of(client: Client, count: int, seconds: float) -> float:
    """Answers a second in a closed loop of the mixed requests, after a warm-up of as long again. Raises `SoakError`
    where there are none."""
    for seed in (0, 1):
        run = await client.closed_loop(mixed(count, seed), CONCURRENCY, seconds)
    answered = sum(outcome.status == OK and outcome.done <= run.seconds for outcome in run.outcomes)
    if not answered:
        raise SoakError(f"the server answered nothing with {CONCURRENCY} requests in flight")
    return answered / run.seconds


@dataclass(slots=True)
class Soak:
    """`memory` has seconds, and bytes that the server's processes held; `cpu_share` is the generator's, of a core."""

    tally: Tally
    memory: list[tuple[float, int]]
    cpu_share: float


async def soak(client: Client, plain: Sequence[str], rate: float, seconds: float, pid: int, seed: int = 0) -> Soak:
    """Poisson arrivals at `rate` a second for `seconds`, whatever is still open."""
    tally, order = Tally(plain), mixed(len(plain), seed)
    shares: list[float] = []
    memory: list[tuple[float, int]] = []
    start = _clock()

    async def stretch(number: int) -> None:
        due = number * STRETCH_SECONDS
        length = min(STRETCH_SECONDS, seconds - due)
        late = _clock() - start - due
        run = await client.open_loop(order, poisson_arrivals(rate, length, seed + number), length)
        shares.append(run.cpu_share)
        tally.add(run.outcomes, due, late)

    async def watch_memory() -> None:
        while True:
            held = await asyncio.to_thread(rss_bytes, pid)
            if held is not None:
                memory.append((_clock() - start, held))
            await asyncio.sleep(MEMORY_EVERY_SECONDS)

    watch = asyncio.create_task(watch_memory())
    stretches = []
    for number in range(math.ceil(seconds / STRETCH_SECONDS)):
        await asyncio.sleep(max(0.0, start + number * STRETCH_SECONDS - _clock()))
        stretches.append(asyncio.create_task(stretch(number)))
    await asyncio.gather(*stretches)
    watch.cancel()
    return Soak(tally, memory, median(shares))


@dataclass(slots=True)
class Burst:
    """Seconds count from the first arrival: `sent` and `told` are when the last request had gone out and had been
    answered, refused or expired; `calm` is when probes were as fast again as `usual` (p99, in seconds) allows, and
    stayed so; None where they were not in time. `probes` has when each was due, its latency and its status."""

    tally: Tally
    rate: float
    sent: float
    told: float
    usual: float
    calm: float | None
    probes: list[tuple[float, float, str]]
    cpu_share: float


async def burst(
    client: Client, watcher: Client, plain: Sequence[str], rate: float, seconds: float, seed: int = 0
) -> Burst:
    """Poisson arrivals at `rate` a second for `seconds`, beside one probe after the other on the client `watcher`."""
    before = await watcher.closed_loop(mixed(len(plain), seed), 1, USUAL_SECONDS)
    usual = percentile([outcome.latency for outcome in before.outcomes if outcome.status == OK], 0.99) or math.inf
    probes: list[tuple[float, float, str]] = []
    start = _clock()

    async def watch() -> None:
        for sample in mixed(len(plain), seed + 1):
            due = _clock() - start
            (outcome,) = (await watcher.closed_loop(iter([sample]), 1, math.inf)).outcomes
            probes.append((due, outcome.latency, outcome.status))
            if (sending.done() and _calm(probes, usual) is not None) or due > WATCH_LIMIT_SECONDS:
                return
            await asyncio.sleep(WATCH_EVERY_SECONDS)

    arrivals = poisson_arrivals(rate, seconds, seed)
    sending = asyncio.create_task(client.open_loop(mixed(len(plain), seed), arrivals, seconds))
    await watch()
    run = await sending
    tally = Tally(plain)
    tally.add(run.outcomes, 0.0)
    sent = max(outcome.sent for outcome in run.outcomes)
    return Burst(tally, rate, sent, tally.last_done, usual, _calm(probes, usual), probes, run.cpu_share)


def _calm(probes: Sequence[tuple[float, float, str]], usual: float) -> float | None:
    """When the last `CALM_PROBES` or more in a row, all that were answered fast, began."""
    row = list(itertools.takewhile(lambda probe: probe[2] == OK and probe[1] <= CALM_FACTOR * usual, reversed(probes)))
    return row[-1][0] if len(row) >= CALM_PROBES else None
