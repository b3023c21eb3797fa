"""Load of numbered requests whose answers are known, sent again until they are answered, and what became of each."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from types import TracebackType
from typing import Any, Self

from loadtest.connection import Connection
from loadtest.measure import OK, percentile
from loadtest.servers import HOST

WORKERS = 16
REQUEST_SECONDS = 30.0
"""How long a request is sent again and again; one that then has no answer is lost."""
POLL_SECONDS = 0.05
AGAIN_SECONDS = 0.25
"""Before a request is sent again: sooner than `Retry-After` says, so that the return of service shows."""
SLOW_SECONDS = 1.0
"""A server in full service takes no longer."""
STEADY_SECONDS = 1.5
"""Full service for so long is taken for the end of a fault."""
AGAIN = frozenset({"429", "503", "504"})
"""Documented answers that tell a client to repeat its request; a broken connection says so too."""
TOLERANCE = 2e-4
"""How far a probability may be from the known one: rounding depends on the batch, and is far below."""

_clock = time.monotonic


@dataclass(frozen=True, slots=True)
class Known:
    """A text and what the plain model says of it; `failing` texts are expected to be a 500."""

    text: str
    probs: tuple[float, ...] = ()
    failing: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a request, in seconds of the monotonic clock; `status` as text, or what became of the connection."""

    begun: float
    done: float
    status: str


@dataclass(slots=True)
class Tally:
    """What became of requests: every one is answered, refused for good as `failed` (a 500), or lost."""

    sent: int = 0
    answered: int = 0
    failed: int = 0
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    attempts: list[Attempt] = field(default_factory=list)

    def statuses(self) -> dict[str, int]:
        """Attempts by status."""
        return dict(sorted(Counter(attempt.status for attempt in self.attempts).items()))

    def service_after(self, moment: float) -> float:
        """Seconds from `moment` until the last attempt was over that failed or was slow."""
        late = (one.done for one in self.attempts if one.done >= moment and not _full(one))
        return max(late, default=moment) - moment

    def p99_seconds(self) -> float | None:
        return percentile([one.done - one.begun for one in self.attempts if one.status == OK], 0.99)


class NumberedConnection(Connection):
    """Keeps the number that an answer carries, and counts what comes without having been asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.number: str | None = None
        self.unasked = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self.number = value.decode()

    def data_received(self, data: bytes) -> None:
        self.unasked += self._answer is None
        super().data_received(data)

    def on_message_complete(self) -> None:
        self.unasked += self._answer is None or self._answer.done()
        super().on_message_complete()


class Load:
    """A closed loop of `WORKERS` clients, from entering it until it is left.

    Requests ask for exact answers, so that each has one right answer whoever shares its batch.
    """

    def __init__(self, port: int, known: Sequence[Known], workers: int = WORKERS) -> None:
        self.tally = Tally()
        self._port = port
        self._texts = cycle(known)
        self._workers = workers
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._open: list[NumberedConnection] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)
        # What has been answered twice shows now at the latest.
        await asyncio.sleep(POLL_SECONDS)
        for connection in self._open:
            self.tally.twice += connection.unasked
            connection.close()

    async def more(self, count: int, seconds: float = REQUEST_SECONDS) -> None:
        """Waits until so many more attempts were answered. Raises `TimeoutError`."""
        due = self._answers() + count
        async with asyncio.timeout(seconds):
            while True:
                await asyncio.sleep(POLL_SECONDS)
                if self._answers() >= due:
                    return

    async def steady(self, seconds: float = 60.0) -> None:
        """Waits for full service: answers, quick ones, and nothing else for a while. Raises `TimeoutError`."""
        async with asyncio.timeout(seconds):
            while True:
                since = _clock()
                await asyncio.sleep(STEADY_SECONDS)
                recent = [one for one in self.tally.attempts[-10_000:] if one.done >= since]
                if recent and all(map(_full, recent)):
                    return

    def _answers(self) -> int:
        return self.tally.answered + self.tally.failed

    async def _work(self) -> None:
        connection: NumberedConnection | None = None
        while not self._stop.is_set():
            known, number = next(self._texts), f"request-{self.tally.sent}"
            self.tally.sent += 1
            request = _encode(self._port, number, known.text)
            until = _clock() + REQUEST_SECONDS
            while _clock() < until:
                if connection is None or connection.closed:
                    connection = await self._connect()
                status, body = await self._attempt(connection, request, until)
                if connection is not None and (status == OK or (status not in AGAIN and status.isdigit())):
                    self._answered(known, number, connection, status, body)
                    break
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                self.tally.lost += 1

    async def _connect(self) -> NumberedConnection | None:
        begun = _clock()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                connection = await NumberedConnection.open(HOST, self._port)
        except (OSError, TimeoutError) as error:
            self.tally.attempts.append(Attempt(begun, _clock(), type(error).__name__))
            return None
        self._open.append(connection)
        return connection

    async def _attempt(self, connection: NumberedConnection | None, request: bytes, until: float) -> tuple[str, bytes]:
        if connection is None:
            return "", b""
        begun = _clock()
        try:
            async with asyncio.timeout(until - begun):
                answer = await connection.exchange(request)
        except (OSError, TimeoutError) as error:
            status, body = type(error).__name__, b""
        else:
            status, body = str(answer.status), answer.body
        self.tally.attempts.append(Attempt(begun, _clock(), status))
        return status, body

    def _answered(self, known: Known, number: str, connection: NumberedConnection, status: str, body: bytes) -> None:
        tally = self.tally
        if status == OK:
            tally.answered += 1
        else:
            tally.failed += 1
        right = known.failing if status != OK else not known.failing and is_right(known, json.loads(body)["data"][0])
        tally.wrong += connection.number != number or not right


def is_right(known: Known, item: dict[str, Any]) -> bool:
    """Whether an item of an answer has the probabilities that are known of the text."""
    return all(abs(a - b) <= TOLERANCE for a, b in zip(known.probs, item["probs"], strict=True))


def apart(known: Sequence[Known]) -> list[Known]:
    """Those whose answers are right for no other of them."""
    kept: list[Known] = []
    for one in sorted(known, key=lambda one: one.probs):
        if not kept or max(abs(a - b) for a, b in zip(one.probs, kept[-1].probs, strict=True)) > 3 * TOLERANCE:
            kept.append(one)
    return kept


async def ask(port: int, texts: Sequence[str], size: int = 64) -> list[Known]:
    """What the server says of `texts` while nothing is broken, `size` of them a request."""
    connection = await Connection.open(HOST, port)
    found: list[Known] = []
    rest = iter(texts)
    while own := list(islice(rest, size)):
        answer = await connection.exchange(_encode(port, "known", own))
        items = json.loads(answer.body)["data"]
        found += [Known(text, tuple(item["probs"])) for text, item in zip(own, items, strict=True)]
    connection.close()
    return found


def _encode(port: int, number: str, texts: str | Sequence[str]) -> bytes:
    body = json.dumps({"input": texts, "quality": "exact"}).encode()
    head = (
        "POST /classify HTTP/1.1",
        f"host: {HOST}:{port}",
        "content-type: application/json",
        f"x-request-id: {number}",
        f"content-length: {len(body)}",
    )
    return "\r\n".join((*head, "", "")).encode() + body


def _full(attempt: Attempt) -> bool:
    return attempt.status in (OK, "500") and attempt.done - attempt.begun <= SLOW_SECONDS
