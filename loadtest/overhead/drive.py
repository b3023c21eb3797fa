"""Visits a server: a saturated closed loop and one with a single request in flight, with the threads' times around."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from statistics import fmean

from loadtest.client import Client
from loadtest.connection import Connection
from loadtest.measure import OK, Run
from loadtest.metrics import read_metrics
from loadtest.overhead.costs import Visit, by_part
from loadtest.processes import command_of, thread_seconds, tree
from loadtest.scaling.served import rate
from loadtest.servers import HOST, Server, ServerError
from loadtest.wire import CLASSIFY
from loadtest.workload import shuffled

ENGINE = "server.engine_process"
"""The module that the process with the model runs where front ends have processes of their own."""
REQUESTS = 'revmux_request_duration_seconds_{}{{path="/classify"}}'


def engine_of(server: Server) -> int:
    """The process with the model: one of the server's own, or the server itself."""
    return next((process.pid for process in tree(server.pid) if ENGINE in command_of(process.pid)), server.pid)


async def visit(
    server: Server,
    engine: int | None,
    requests: Sequence[str | list[str]],
    inputs: int,
    concurrency: int,
    seconds: float,
    seed: int,
) -> Visit:
    """Two runs of `seconds`, one with `concurrency` of the `requests` in flight and one with one. Each is of `inputs`
    texts.

    `engine` is the process with the model; a server without one has no metrics either.

    Raises `ServerError` for a request that is not answered: what it cost is not what an answer costs.
    """
    async with Client(server.port, requests) as client:
        before = by_part(thread_seconds(server.pid), engine)
        full = await client.closed_loop(shuffled(len(requests), seed), concurrency, seconds)
        after = by_part(thread_seconds(server.pid), engine)
        _all_answered(full)
        counted = read_metrics(server.port) if engine is not None else {}
        alone = await client.closed_loop(shuffled(len(requests), seed), 1, seconds)
        counts = read_metrics(server.port) if engine is not None else {}
        _all_answered(alone)

    def mean(series: str) -> float | None:
        """Of a server's own durations, a request."""
        return (counts[series] - counted[series]) / len(alone.outcomes) if counts else None

    texts = inputs * len(full.outcomes)
    front_end, loop, device = ((end - start) / texts for start, end in zip(before, after, strict=True))
    return Visit(
        rate=rate(full, inputs),
        generator=full.cpu_share / rate(full, inputs),
        front_end=front_end,
        loop=loop,
        device=device,
        client=fmean(outcome.latency for outcome in alone.outcomes),
        request=mean(REQUESTS.format("sum")),
        inference=mean("revmux_inference_duration_seconds_sum"),
    )


async def beside(
    server: Server, requests: Sequence[str | list[str]], rate: float, together: int, work: Callable[[], float]
) -> float:
    """What `work` comes to, in a thread, while `server` answers `rate` of the `requests` a second.

    They come so many `together`, as they do to a server that answers in batches: one by one each would cost more.
    Raises `ServerError` for a request that is not answered.
    """
    gap, bursts = together / rate, max(round(rate / together), 1)
    arrivals = [gap * number for number in range(1, bursts + 1) for _ in range(together)]
    async with Client(server.port, requests) as client:
        working = asyncio.create_task(asyncio.to_thread(work))
        order = shuffled(len(requests), 0)
        while not working.done():
            _all_answered(await client.open_loop(order, arrivals, gap * (bursts + 1)))
        return await working


async def ask(server: Server, texts: str | list[str]) -> bytes:
    """The body of the answer to one request."""
    connection = await Connection.open(HOST, server.port)
    try:
        return (await connection.exchange(CLASSIFY.request(HOST, server.port, texts))).body
    finally:
        connection.close()


def _all_answered(run: Run) -> None:
    statuses = sorted({outcome.status for outcome in run.outcomes} - {OK})
    if statuses or not run.outcomes:
        raise ServerError(f"requests were not answered: {', '.join(statuses) or 'none was sent'}")
