"""Clients that are slow, that disappear, and that never say what they want."""

from __future__ import annotations

import asyncio
import json
import socket

from loadtest.faults.load import Load, is_right
from loadtest.faults.stage import Fault, Finding, Stage, broken, metric, until
from loadtest.scaling.served import allow_connections
from loadtest.servers import HOST, Server

SLOW_CLIENTS = 20
SLOW_SECONDS = 5.0
"""How long a slow client takes to send its body, and again to read its answer."""
SLOW_ITEMS = 16
"""So few, and short ones, that they are no load: 64 of any length cost the other clients 10 s on one core, from clients
that are not slow as well."""
SLOW_STEPS = 50
SLOW_BYTES = 64
"""What a slow client reads at a step, of an answer of some 3 KiB."""
DISAPPEARING = 200
HALF_OPEN = 2000
HALF_OPEN_SECONDS = 5.0
SOFT_LIMIT = 1024
"""What most systems start a process with."""


async def slow_clients(stage: Stage) -> Finding:
    """Bodies that come in drips and large answers that are hardly read, beside clients that are as ever."""
    finding = Finding(
        f"{SLOW_CLIENTS} clients that take {SLOW_SECONDS:g} s for sending a request of {SLOW_ITEMS} short texts, and "
        "as long for reading its answer"
    )
    async with stage.serving("slow-client", stage.command()) as server:

        async def crawl(load: Load) -> None:
            right = await asyncio.gather(*(_crawl(server, stage, number) for number in range(SLOW_CLIENTS)))
            finding.notes.append(f"{sum(right)} of {SLOW_CLIENTS} slow clients were answered rightly")
            finding.expect(all(right), "a slow client got no answer, or a wrong one")

        await _beside(finding, server, stage, crawl)
    finding.judge()
    return finding


async def disappearing_clients(stage: Stage) -> Finding:
    """Whoever leaves is noticed, and what was asked is not computed where that had not begun."""
    finding = Finding(f"{DISAPPEARING} clients that send a request and reset the connection")
    async with stage.serving("disappearing-client", stage.command()) as server:

        async def vanish(load: Load) -> None:
            texts = [known.text for known in stage.known][:8]
            for number in range(DISAPPEARING):
                _, writer = await asyncio.open_connection(HOST, server.port)
                # Every other one leaves before its body is whole.
                writer.write(_request(texts)[: None if number % 2 else -10])
                await writer.drain()
                await asyncio.sleep(0.005)
                writer.transport.abort()

        await _beside(finding, server, stage, vanish)
        await _idle(finding, server)
        finding.notes.append(f"{metric(server, 'cancelled_requests_total'):.0f} were cancelled while they waited")
    finding.judge()
    return finding


async def half_open(stage: Stage) -> Finding:
    """Connections that send half a request and wait."""
    finding = Finding(
        f"{HALF_OPEN:,} connections that send half a request and say no more for {HALF_OPEN_SECONDS:g} s, to a server "
        f"that is started with a soft limit of {SOFT_LIMIT:,} open files"
    )
    allow_connections(HALF_OPEN)
    limited = ["sh", "-c", f'ulimit -Sn {SOFT_LIMIT}; exec "$@"', "sh", *stage.command()]
    async with stage.serving("half-open", limited) as server:

        async def linger(load: Load) -> None:
            sockets: list[socket.socket] = []
            half = _request(["never"])
            half = half[: len(half) // 2]
            try:
                for _ in range(HALF_OPEN):
                    one = socket.socket()
                    one.setblocking(False)
                    sockets.append(one)
                    await asyncio.get_running_loop().sock_connect(one, (HOST, server.port))
                    await asyncio.get_running_loop().sock_sendall(one, half)
                await asyncio.sleep(HALF_OPEN_SECONDS)
            finally:
                for one in sockets:
                    one.close()

        await _beside(finding, server, stage, linger)
        await _idle(finding, server)
    finding.judge()
    return finding


async def _beside(finding: Finding, server: Server, stage: Stage, fault: Fault) -> None:
    tally, finding.seconds = await broken(server, stage.known, fault)
    finding.tallies.append(tally)
    finding.notes.append(f"99% of the other clients' requests took at most {1000 * (tally.p99_seconds() or 0):.0f} ms")


async def _idle(finding: Finding, server: Server) -> None:
    """Checks that nothing is left of those who went."""
    try:
        await until(lambda: not metric(server, "requests_in_progress") and not metric(server, "queue_items"))
    except TimeoutError:
        finding.problems.append("requests of clients that are gone still count as in progress")


async def _crawl(server: Server, stage: Stage, number: int) -> bool:
    short = sorted(stage.known, key=lambda one: len(one.text))[:SLOW_ITEMS]
    # In another order for every client, so that none can be taken for another's.
    known = [short[(number + item) % SLOW_ITEMS] for item in range(SLOW_ITEMS)]
    # Behind all others, as this is not about load.
    request = _request([one.text for one in known], priority=1)
    with socket.socket() as one:
        # What the system holds for a reader is what hides that it is slow.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(one, (HOST, server.port))
        drip = len(request) // SLOW_STEPS + 1
        for start in range(0, len(request), drip):
            await loop.sock_sendall(one, request[start : start + drip])
            await asyncio.sleep(SLOW_SECONDS / SLOW_STEPS)
        read = b""
        async with asyncio.timeout(60):
            while piece := await loop.sock_recv(one, SLOW_BYTES):
                read += piece
                head, _, body = read.partition(b"\r\n\r\n")
                if body and len(body) >= int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]):
                    break
                await asyncio.sleep(SLOW_SECONDS / SLOW_STEPS)
    if not head.startswith(b"HTTP/1.1 200"):
        return False
    return all(is_right(one, item) for one, item in zip(known, json.loads(body)["data"], strict=True))


def _request(texts: list[str], priority: int = 0) -> bytes:
    body = json.dumps({"input": texts, "quality": "exact", "priority": priority}).encode()
    head = f"POST /classify HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body
