"""The harness that breaks servers: what it would notice, on servers that do wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from loadtest.faults import load, report
from loadtest.faults.load import Attempt, Known, Load, Tally, apart
from loadtest.faults.stage import Finding
from loadtest.machine import Machine

KNOWN = [Known(f"text {number}", (number / 10, 1 - number / 10)) for number in range(1, 9)]

Reply = Callable[[str, list[float]], list[tuple[int, str, list[float]]]]
"""From a request's number and its text's probabilities to the answers that are sent: status, number, probabilities."""


@asynccontextmanager
async def server(reply: Reply) -> AsyncIterator[int]:
    probs = {known.text: list(known.probs) for known in KNOWN}

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = dict(line.split(": ") for line in head.strip().split("\r\n")[1:])
                text = json.loads(await reader.readexactly(int(headers["content-length"])))["input"]
                for status, number, values in reply(headers["x-request-id"], probs[text]):
                    body = json.dumps({"data": [{"probs": values}]})
                    sent = f"HTTP/1.1 {status} -\r\nx-request-id: {number}\r\ncontent-length: {len(body)}\r\n\r\n{body}"
                    writer.write(sent.encode())
                    await asyncio.sleep(0.01)
        writer.close()

    listening = await asyncio.start_server(converse, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


async def tally_of(reply: Reply, answers: int = 20) -> Tally:
    async with server(reply) as port, Load(port, KNOWN, workers=2) as driven:
        await driven.more(answers)
    return driven.tally


async def test_right_answers_are_right() -> None:
    tally = await tally_of(lambda number, probs: [(200, number, probs)])
    assert tally.answered == tally.sent >= 20
    assert (tally.failed, tally.lost, tally.twice, tally.wrong) == (0, 0, 0, 0)
    assert set(tally.statuses()) == {"200"}


@pytest.mark.parametrize(
    "reply",
    [
        lambda number, probs: [(200, "request-none", probs)],
        lambda number, probs: [(200, number, [probs[0] + 0.1, probs[1] - 0.1])],
        lambda number, probs: [(500, number, probs)],
    ],
    ids=["another's number", "another's answer", "no answer"],
)
async def test_wrong_answers_are_noticed(reply: Reply) -> None:
    tally = await tally_of(reply)
    assert tally.wrong == tally.sent
    finding = Finding("", [tally])
    finding.judge("500")
    assert any("wrong" in problem for problem in finding.problems)


async def test_a_second_answer_is_noticed() -> None:
    tally = await tally_of(lambda number, probs: [(200, number, probs)] * 2)
    assert tally.twice > 0


async def test_what_is_refused_is_sent_again_until_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}

    def third_time(number: str, probs: list[float]) -> list[tuple[int, str, list[float]]]:
        seen[number] = seen.get(number, 0) + 1
        return [(200 if seen[number] == 3 else 503, number, probs)]

    # Few, as each waits twice before it is sent again.
    tally = await tally_of(third_time, answers=6)
    assert (tally.answered, tally.lost, tally.wrong) == (tally.sent, 0, 0)
    assert tally.statuses()["503"] == 2 * tally.sent
    monkeypatch.setattr(load, "REQUEST_SECONDS", 0.2)
    async with server(lambda number, probs: []) as port, Load(port, KNOWN, workers=2) as driven:
        await asyncio.sleep(0.1)
    assert driven.tally.lost == driven.tally.sent == 2


def test_full_service_is_back_after_the_last_that_failed_or_was_slow() -> None:
    tally = Tally(
        attempts=[Attempt(0, 9, "200"), Attempt(10, 10.1, "503"), Attempt(11, 13, "200"), Attempt(13, 14, "200")]
    )
    assert tally.service_after(10) == 3
    assert tally.service_after(13.5) == 0


def test_texts_with_answers_of_their_own_are_kept() -> None:
    close = Known("like text 1", (0.1 + load.TOLERANCE, 0.9 - load.TOLERANCE))
    assert apart([*KNOWN, close]) == KNOWN


def test_the_page_has_every_case() -> None:
    finding = Finding("something breaks", [Tally(sent=1200, answered=1200, attempts=[Attempt(0, 1, "200")])], 1.25)
    finding.expect(False, "a process stayed away")
    rows = [report.result_of("engine-killed", finding), report.skipped("clock-jump", "there is no libfaketime")]
    page = report.page(rows, Machine("a processor", 2, None, "Linux", "3.11"), "python -m loadtest.faults")
    assert "| engine-killed | failed | 1,200 | 1,200 | 0 | 0 | 0 | 0 | 200: 1 | 1.2 s |" in page
    assert "| clock-jump | skipped | - |" in page
    assert "a process stayed away" in page
