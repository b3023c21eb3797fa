"""What a connection may cost: heads and bodies that are too large or never end, too many clients, unread answers."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import repeat

import httpx
import pytest

from revmux_core.bundle import Bundle
from server import protocol
from tests.server.running import running_server, wait_until

HEAD = b"POST /classify HTTP/1.1\r\nHost: x\r\nx-request-id: r-3\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
MOST = 6


@pytest.fixture(scope="module")
def client(tiny_bundle: Bundle) -> Iterator[httpx.Client]:
    with running_server(lambda: tiny_bundle, max_connections=MOST, max_body_bytes=2**26) as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(protocol, name, 0.3)


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        yield connection


def read(connection: socket.socket) -> bytes:
    """All that comes until the connection is closed; fails where it stays open."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def send(connection: socket.socket, pieces: Iterable[bytes], pause: float = 0.002) -> bytes:
    """Sends `pieces` until there is an answer, or the end, and reads that."""
    with suppress(ConnectionError):
        for piece in pieces:
            connection.sendall(piece)
            if select.select([connection], [], [], pause)[0]:
                break
    return read(connection)


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and message of the one answer, which must be in the documented format and close the connection."""
    head, body = answer.split(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert error["code"] == int(head.split()[1])
    return error["code"], error["message"]


@pytest.mark.parametrize("piece", [b"a" * 4096, b"X-Many: 1\r\n" * 400])
def test_an_endless_head_is_refused(client: httpx.Client, piece: bytes) -> None:
    with connected(client) as connection:
        status, message = refusal(send(connection, [HEAD + b"X-Large: ", *repeat(piece, 1000)]))
    assert (status, "65536 bytes" in message) == (431, True)


def test_a_large_head_is_refused_though_it_arrives_at_once(client: httpx.Client) -> None:
    large = client.get("/health/live", headers={"x-request-id": "r-4", "x-large": "a" * 70_000})
    assert (large.status_code, large.headers["x-request-id"], large.headers["connection"]) == (431, "r-4", "close")
    body = {"input": "a " * 60_000}
    assert client.post("/classify", json=body, headers={"x-large": "a" * 60_000}).status_code == 200


@pytest.mark.parametrize("end", [b"1;" + b"a" * 2**17, b"0\r\nX-Trailer: " + b"a" * 2**17])
def test_endless_chunk_extensions_and_trailers_are_refused(client: httpx.Client, end: bytes) -> None:
    with connected(client) as connection:
        assert refusal(send(connection, [CHUNKED, end]))[0] == 431


def test_small_chunks_are_no_large_head(client: httpx.Client) -> None:
    text = "a " * 20_000
    pieces = (b"%s" % piece.encode() for piece in ('{"input": "', *text, '"}'))
    assert client.post("/classify", content=pieces).status_code == 200


@pytest.mark.parametrize("sent", [b"", b"\r\n", HEAD])
@pytest.mark.usefixtures("short")
def test_a_head_that_never_ends_is_told(client: httpx.Client, sent: bytes) -> None:
    with connected(client) as connection:
        status, message = refusal(send(connection, [sent]))
    assert (status, "head did not arrive within 0.3 s" in message) == (408, True)


@pytest.mark.usefixtures("short")
def test_a_body_that_dribbles_is_told(client: httpx.Client) -> None:
    with connected(client) as connection:
        answer = send(connection, [HEAD + b"Content-Length: 1000\r\n\r\n{", *repeat(b" ", 500)], pause=0.02)
    status, message = refusal(answer)
    assert (status, "body did not arrive within 0.3 s" in message) == (408, True)
    assert b"x-request-id: r-3" in answer
    assert 'revmux_requests_total{path="/classify",status="408"}' in client.get("/metrics").text


@pytest.mark.usefixtures("short")
def test_an_answered_request_cannot_go_on_dribbling(client: httpx.Client) -> None:
    head = b"GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with connected(client) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert send(connection, repeat(b" ", 500), pause=0.02) == b""


@pytest.mark.usefixtures("short")
def test_an_idle_connection_stays_open(client: httpx.Client) -> None:
    request = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(client) as connection:
        for _ in range(2):
            connection.sendall(request)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            assert not select.select([connection], [], [], 0.6)[0]
        # Until it sends what begins no request.
        assert refusal(send(connection, [b"\r\n"]))[0] == 408


@pytest.mark.usefixtures("short")
def test_an_answer_that_nobody_reads_is_dropped(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    # Many answers make one that is more than the system holds for a client that is slow.
    monkeypatch.setattr(protocol, "MAX_PIPELINED", 10_000)
    with connected(client) as connection:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        time.sleep(2)
        # What the system held; then the end, where the server would go on answering if it still could.
        assert 0 < read(connection).count(b"HTTP/1.1 200") < 1000


def test_requests_ahead_of_their_answers_are_few(client: httpx.Client) -> None:
    request = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
    few = (request + b"\r\n") * (protocol.MAX_PIPELINED - 1) + request + b"Connection: close\r\n\r\n"
    with connected(client) as connection:
        assert send(connection, [few]).count(b"HTTP/1.1 200") == protocol.MAX_PIPELINED
    with connected(client) as connection:
        assert send(connection, [(request + b"\r\n") * 1000]).count(b"HTTP/1.1 200") <= protocol.MAX_PIPELINED


def test_a_head_leaves_with_its_body_or_alone_where_there_is_none(client: httpx.Client) -> None:
    body = b'{"input": "a film"}'
    expecting = HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connected(client) as connection:
        connection.sendall(expecting)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        head, _, rest = connection.recv(65536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert json.loads(rest)["object"] == "list"
        connection.sendall(b"HEAD /classify HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 405 ")


def test_what_is_not_http_gets_the_documented_format(client: httpx.Client) -> None:
    with connected(client) as connection:
        assert refusal(send(connection, [b"hello\r\n\r\n"])) == (400, "this is not HTTP/1.1")
    with connected(client) as connection:
        assert refusal(send(connection, [CHUNKED + b"zz\r\n"])) == (400, "this is not HTTP/1.1")


def test_connections_beyond_the_limit_are_refused(client: httpx.Client) -> None:
    with ExitStack() as stack:
        for _ in range(MOST):
            stack.enter_context(connected(client))
        with connected(client) as connection:
            answer = send(connection, [b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"])
        assert refusal(answer)[0] == 503
        assert b"Retry-After: 1\r\n" in answer or b"retry-after: 1\r\n" in answer
    wait_until(lambda: client.get("/health/live").status_code == 200)
