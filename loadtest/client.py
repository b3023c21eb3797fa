"""The load generator: closed and open loops of requests over one pool of persistent connections."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from loadtest.connection import Connection
from loadtest.measure import OK, Outcome, Run
from loadtest.servers import HOST
from loadtest.wire import CLASSIFY, Wire

# Below the usual soft limit of 1,024 open files. Requests beyond it wait for a connection, and the wait counts.
MAX_CONNECTIONS = 512
REQUEST_TIMEOUT_SECONDS = 30.0
# Shorter than a server's (5 s is uvicorn's own), so that no request goes out on a connection that is being closed.
KEEP_ALIVE_SECONDS = 2.0
LAG_PROBE_SECONDS = 0.01

_clock = time.perf_counter


@dataclass(slots=True)
class _Exchange:
    """One request as it was timed; its answer is read when the run is over."""

    sample: int
    due: float
    sent: float
    done: float
    status: str
    body: bytes = b""
    retry_after: bool = False


class Client:
    """Sends `texts`, one a request, to the server on a port of this machine and records the outcome.

    In place of a text there may be a list of them where the format `wire` has such requests. `api_key` is for servers
    that ask for one.

    It is an async context manager, which closes its connections at the end.
    """

    def __init__(
        self,
        port: int,
        texts: Sequence[str | list[str]],
        connections: int = MAX_CONNECTIONS,
        wire: Wire = CLASSIFY,
        api_key: str | None = None,
    ) -> None:
        self._port = port
        self._wire = wire
        # Encoded once, so that the generator spends its time on sending.
        self._requests = [wire.request(HOST, port, text, api_key) for text in texts]
        self._free = asyncio.Semaphore(connections)
        self._idle: list[Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._idle:
            connection.close()

    async def closed_loop(self, order: Iterator[int], concurrency: int, seconds: float) -> Run:
        """Keeps `concurrency` requests in flight until `order` (sample indices) or the time runs out."""

        async def work(start: float) -> list[_Exchange]:
            exchanges = []
            while (due := _clock() - start) < seconds and (sample := next(order, None)) is not None:
                exchanges.append(await self._send(sample, start, due))
            return exchanges

        async def drive(start: float) -> list[_Exchange]:
            workers = await asyncio.gather(*(work(start) for _ in range(concurrency)))
            return [exchange for exchanges in workers for exchange in exchanges]

        return await _measured(drive, seconds, self._wire)

    async def open_loop(self, order: Iterator[int], arrivals: Sequence[float], seconds: float) -> Run:
        """Sends the samples of `order` at `arrivals` (seconds from now, below `seconds`), whatever is still open."""

        async def drive(start: float) -> list[_Exchange]:
            requests = []
            for due in arrivals:
                await asyncio.sleep(max(0.0, start + due - _clock()))
                requests.append(asyncio.create_task(self._send(next(order), start, due)))
            return await asyncio.gather(*requests)

        return await _measured(drive, seconds, self._wire)

    async def _send(self, sample: int, start: float, due: float) -> _Exchange:
        async with self._free:
            sent = _clock() - start
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                    connection = self._take() or await Connection.open(HOST, self._port)
                    answer = await connection.exchange(self._requests[sample])
            except TimeoutError:
                return _Exchange(sample, due, sent, _clock() - start, "timeout")
            except OSError as error:
                return _Exchange(sample, due, sent, _clock() - start, type(error).__name__)
            self._idle.append(connection)
            done = answer.done - start
            return _Exchange(sample, due, sent, done, str(answer.status), answer.body, answer.retry_after)

    def _take(self) -> Connection | None:
        """The connection used last, if any is still good."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and _clock() - connection.idle_since < KEEP_ALIVE_SECONDS:
                return connection
            connection.close()
        return None


def _read(exchange: _Exchange, wire: Wire) -> Outcome:
    times = exchange.sample, exchange.due, exchange.sent, exchange.done
    if exchange.status != OK:
        return Outcome(*times, exchange.status, retry_after=exchange.retry_after)
    try:
        return Outcome(*times, exchange.status, *wire.read(json.loads(exchange.body)))
    except (ValueError, KeyError, IndexError, TypeError):
        return Outcome(*times, "malformed answer")


async def _measured(drive: Callable[[float], Awaitable[list[_Exchange]]], seconds: float, wire: Wire) -> Run:
    """Runs `drive` from its start time on, and watches this process meanwhile."""
    lags: list[float] = []
    watch = asyncio.create_task(_watch_loop(lags))
    start, cpu = _clock(), time.process_time()
    try:
        exchanges = await drive(start)
    finally:
        watch.cancel()
    elapsed = _clock() - start
    cpu_share = (time.process_time() - cpu) / elapsed
    return Run([_read(exchange, wire) for exchange in exchanges], min(seconds, elapsed), lags, cpu_share)


async def _watch_loop(lags: list[float]) -> None:
    while True:
        asked = _clock() + LAG_PROBE_SECONDS
        await asyncio.sleep(LAG_PROBE_SECONDS)
        lags.append(_clock() - asked)
