"""The fuzzer finds nothing in a real server, and finds what a broken one does."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.connection import Answer
from loadtest.fuzz.bodies import Request, generate
from loadtest.fuzz.drive import Tally, drive, judge
from loadtest.fuzz.openapi import run_schemathesis
from loadtest.fuzz.probes import Probe, encode, learn_probes
from loadtest.metrics import read_metrics, requests_by_status
from loadtest.servers import Server, running

JSON = ((b"content-type", b"application/json"),)
ITEM = {"label": "a", "probs": [0.25, -1.5]}


@pytest.fixture(scope="module")
def server(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    serve = [sys.executable, "-m", "server.cli", "serve", "--bundle", str(tiny_bundle_path), "--width", "max"]
    with running(serve, tmp_path_factory.mktemp("fuzz") / "log") as server:
        yield server


def test_odd_requests_get_documented_answers_of_their_own(server: Server) -> None:
    tally = Tally()

    async def fuzz() -> None:
        await drive(server.port, generate(300, seed=0), await learn_probes(server.port, 12), tally)

    asyncio.run(fuzz())
    assert [(failure.problem, failure.sent[:300]) for failure in tally.failures] == []
    assert tally.probes[200] == sum(tally.probes.values()) == 75
    counted = sum(tally.statuses.values(), start=type(tally.probes)())
    # Bad and good input both came through.
    assert counted[200] > 30
    assert counted[400] > 30
    by_server = requests_by_status(read_metrics(server.port))
    assert sum(by_server["/predict"].values()) == sum(tally.statuses["/predict"].values())


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="needs the extra fuzz")
def test_the_openapi_document_holds(server: Server, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_schemathesis(server.port, examples=5, seed=0, log=log), log.read_text()


def probe(*items: dict[str, object]) -> Probe:
    return Probe(Request("/classify", JSON, b"{}", False), list(items))


def answer(content: object, status: int = 200) -> Answer:
    return Answer(status, content if isinstance(content, bytes) else json.dumps(content).encode(), 0.0)


@pytest.mark.parametrize(
    ("received", "asked", "problem"),
    [
        (answer({"id": "classify-1", "data": [{"index": 0, "point": "x", **ITEM}]}), probe(ITEM), ""),
        (answer({"id": "classify-2", "data": [{"index": 0, **ITEM}]}), probe(ITEM), "cross-talk"),
        (answer({"id": "classify-1", "data": [{"index": 1, **ITEM}]}), probe(ITEM), "cross-talk"),
        (
            answer({"id": "classify-1", "data": [{"index": 0, **ITEM, "probs": [0.25, -1.4]}]}),
            probe(ITEM),
            "cross-talk",
        ),
        (answer({"id": "classify-1", "data": []}), probe(ITEM), "cross-talk"),
        (answer({"id": "classify-3", "data": []}), probe().request, "another request's id"),
        (answer(b'{"id": "classify-1", "data": [{"probs": NaN}]}'), probe().request, "NaN"),
        (answer(b"Internal Server Error", 500), probe().request, "status 500"),
        (answer(b"no JSON", 400), probe().request, "malformed"),
        (answer({"error": {"message": "", "code": 400}}, 400), probe().request, "without a sentence"),
        (answer({"error": {"message": "no", "code": 404}}, 400), probe().request, "says 404"),
        (answer({"error": "a sentence"}, 400), probe().request, ""),
    ],
)
def test_an_answer_is_judged(received: Answer, asked: Request | Probe, problem: str) -> None:
    found = judge(received, asked, b"1")
    assert problem in found
    assert bool(found) == bool(problem)


async def test_hangs_and_broken_connections_are_failures() -> None:
    # Held, as from Python 3.13 on a connection is closed whose writer nobody holds.
    writers: list[asyncio.StreamWriter] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/predict" not in head:
            writer.close()

    listener = await asyncio.start_server(converse, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    tally = Tally()
    await drive(port, [Request(path, JSON, b"", False) for path in ("/predict", "/classify")], [probe()], tally, 0.2)
    listener.close()
    problems = sorted(failure.problem for failure in tally.failures)
    assert len(problems) == tally.requests == 3
    assert problems[0] == "no answer in 0.2 s"
    assert problems[1:] == ["the connection failed: closed before the answer was whole"] * 2


def test_a_chunked_body_is_cut_and_whole() -> None:
    body = bytes(range(256))
    head, _, sent = encode(Request("/predict", JSON, body, True), 80, b"7").partition(b"\r\n\r\n")
    assert b"x-request-id: 7" in head
    assert b"content-length" not in head
    pieces = b""
    while sent:
        size, _, sent = sent.partition(b"\r\n")
        pieces += sent[: int(size, 16)]
        sent = sent[int(size, 16) + 2 :]
    assert pieces == body
