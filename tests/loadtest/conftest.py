"""A real HTTP server that answers in the format of `/classify`, with answers and delays that a test decides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from loadtest.measure import Summary

Behaviour = Callable[[str], Awaitable[tuple[str, str]]]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Behaviour], Awaitable[int]]]:
    """Starts a server whose answer to a text is `behaviour(text)`, a label and an operating point; gives its port.

    The label "overloaded" is answered with 429.
    """
    servers: list[asyncio.Server] = []

    async def start(behaviour: Behaviour) -> int:
        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    assert head.startswith(b"post /classify http/1.1\r\n")
                    request = await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
                    label, point = await behaviour(json.loads(request)["input"])
                    status = b"429 Too Many Requests" if label == "overloaded" else b"200 OK"
                    body = json.dumps({"data": [{"index": 0, "label": label, "point": point}]}).encode()
                    writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
            writer.close()

        server = await asyncio.start_server(converse, "127.0.0.1", 0)
        servers.append(server)
        return server.sockets[0].getsockname()[1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def make_summary() -> Callable[..., Summary]:
    """Makes figures of one round, all harmless but those that a test names."""

    def make(throughput: float, **figures: Any) -> Summary:
        usual = Summary(
            requests=1000,
            errors={},
            throughput=throughput,
            p50_seconds=0.01,
            p95_seconds=0.02,
            p99_seconds=0.03,
            accuracy=0.9,
            agreement=1.0,
            points={"n1-l6": 10},
            escalation_rate=0.0,
            loop_lag_p99_seconds=0.001,
            lateness_p99_seconds=0.0,
            cpu_share=0.2,
        )
        return replace(usual, **figures)

    return make
