"""Closed loops from several processes: one bears some 14,000 requests of one text a second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import uvloop

from loadtest.client import Client
from loadtest.measure import Run
from loadtest.workload import shuffled

START_SECONDS = 60.0
"""What processes may take to start."""


@dataclass(frozen=True, slots=True)
class Generators:
    """Load generators, `count` processes of `pool`; without one it is this process alone."""

    count: int
    pool: ProcessPoolExecutor | None

    def closed_loop(
        self,
        port: int,
        texts: Sequence[str | list[str]],
        concurrency: int,
        seconds: float,
        seed: int,
        api_key: str | None = None,
    ) -> Run:
        """As `Client.closed_loop`, with `concurrency` requests in flight over all processes. `Run.cpu_share` is the
        busiest one's."""
        if self.pool is None:
            return _closed_loop(port, texts, concurrency, seconds, seed, api_key)
        sent = [
            self.pool.submit(_closed_loop, port, texts, share, seconds, self.count * seed + number, api_key)
            for number, share in enumerate(shares_of(concurrency, self.count))
            if share
        ]
        runs = [run.result() for run in sent]
        return Run(
            outcomes=[outcome for run in runs for outcome in run.outcomes],
            seconds=seconds,
            loop_lags=[lag for run in runs for lag in run.loop_lags],
            cpu_share=max(run.cpu_share for run in runs),
        )


@contextmanager
def generators(count: int) -> Iterator[Generators]:
    """So many load generators that are ready to send."""
    if count == 1:
        yield Generators(1, None)
        return
    context = get_context("spawn")
    ready = context.Barrier(count + 1, timeout=START_SECONDS)
    with ProcessPoolExecutor(count, context, initializer=ready.wait) as pool:
        # Each call starts a process, as none is free. They begin together: what one sends while others still import is
        # not the whole load.
        for _ in range(count):
            pool.submit(int)
        ready.wait()
        yield Generators(count, pool)


def shares_of(concurrency: int, count: int) -> list[int]:
    """`concurrency` in `count` parts that differ by one at most, the larger ones first."""
    each, more = divmod(concurrency, count)
    return [each + (number < more) for number in range(count)]


def _closed_loop(
    port: int, texts: Sequence[str | list[str]], concurrency: int, seconds: float, seed: int, api_key: str | None
) -> Run:
    async def drive() -> Run:
        async with Client(port, texts, concurrency, api_key=api_key) as client:
            return await client.closed_loop(shuffled(len(texts), seed), concurrency, seconds)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(drive())
