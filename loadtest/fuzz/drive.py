"""Sends odd requests and probes over many connections, and judges every answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from loadtest.connection import Answer, Connection
from loadtest.fuzz.bodies import Request
from loadtest.fuzz.probes import Probe, encode
from loadtest.servers import HOST

CONNECTIONS = 48
HANG_SECONDS = 30.0
"""No request asks for longer than 5 s, and what waits for the tokenizer's thread is bounded."""
PROBE_EVERY = 5

ALLOWED = frozenset({200, 400, 404, 413, 429, 504})
"""What the API documents for a server that has no keys and is neither loading nor draining."""


@dataclass(frozen=True, slots=True)
class Failure:
    """`sent` is the whole request; `problem` says what is wrong with its answer."""

    problem: str
    sent: bytes
    answer: bytes


@dataclass(slots=True)
class Tally:
    """What came of the requests: by path and status, of probes by status, and seconds to the slowest answer."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    probes: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """All that were sent, probes and those that failed among them."""
        return sum(sum(counter.values()) for counter in self.statuses.values()) + sum(self.probes.values())


async def drive(
    port: int, requests: Iterable[Request], probes: Sequence[Probe], tally: Tally, hang_seconds: float = HANG_SECONDS
) -> None:
    """Sends `requests`, every `PROBE_EVERY`th of all a probe, `CONNECTIONS` at a time, and adds what came of them."""
    # Counted on from the last call, so that no id comes again.
    turns = zip(itertools.count(tally.requests), _mixed(requests, probes))
    await asyncio.gather(*(_work(port, turns, tally, hang_seconds) for _ in range(CONNECTIONS)))


def _mixed(requests: Iterable[Request], probes: Sequence[Probe]) -> Iterator[Request | Probe]:
    for number, request in enumerate(requests):
        if number % (PROBE_EVERY - 1) == 0:
            yield probes[number // (PROBE_EVERY - 1) % len(probes)]
        yield request


async def _work(port: int, turns: Iterator[tuple[int, Request | Probe]], tally: Tally, hang_seconds: float) -> None:
    connection: Connection | None = None
    for number, turn in turns:
        request = turn.request if isinstance(turn, Probe) else turn
        own_id = any(name == b"x-request-id" for name, _ in request.headers)
        request_id = None if own_id else b"fuzz-%d" % number
        sent = encode(request, port, request_id)
        began = time.perf_counter()
        answer, problem = Answer(0, b"", began), ""
        try:
            async with asyncio.timeout(hang_seconds):
                if connection is None or connection.closed:
                    connection = await Connection.open(HOST, port)
                answer = await connection.exchange(sent)
        except TimeoutError:
            problem = f"no answer in {hang_seconds:g} s"
        except OSError as error:
            problem = f"the connection failed: {error}"
        else:
            tally.slowest = max(tally.slowest, answer.done - began)
            problem = judge(answer, turn, request_id)
        if isinstance(turn, Probe):
            tally.probes[answer.status] += 1
        else:
            tally.statuses.setdefault(request.path, Counter())[answer.status] += 1
        if problem:
            tally.failures.append(Failure(problem, sent, answer.body))
    if connection is not None:
        connection.close()


def judge(answer: Answer, asked: Request | Probe, request_id: bytes | None) -> str:
    """What is wrong with an answer; nothing where it is as documented and the request's own."""
    if answer.status not in ALLOWED:
        return f"status {answer.status}"
    try:
        content = json.loads(answer.body, parse_constant=_no_constant)
        if answer.status != 200:
            return _judge_error(content, answer.status)
        if isinstance(asked, Probe):
            return (
                "" if _id_of(content) == request_id and asked.fits(content) else "cross-talk: a probe's answer differs"
            )
        if isinstance(content, dict) and request_id is not None and _id_of(content) != request_id:
            return "cross-talk: another request's id"
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return f"malformed answer: {type(error).__name__}: {error}"
    return ""


def _judge_error(content: dict[str, Any], status: int) -> str:
    # OpenAI's form, or Text Embeddings Inference's.
    detail = content["error"]
    if isinstance(detail, dict):
        if detail["code"] != status:
            return f"the error says {detail['code']}"
        message = detail["message"]
    else:
        message = detail
    return (
        ""
        if isinstance(message, str) and message and "\n" not in message
        else f"an error without a sentence: {message!r}"
    )


def _id_of(content: dict[str, Any]) -> bytes:
    return bytes(content["id"].removeprefix("classify-").encode())


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
