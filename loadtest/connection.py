"""One persistent HTTP/1.1 connection.

It does only what the load test needs, because server and generator share a machine: a general-purpose HTTP client took
five times the processor time a request (0.7 ms instead of 0.14 ms), and the server under test went without it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Self, cast

from httptools import HttpParserError, HttpResponseParser


@dataclass(frozen=True, slots=True)
class Answer:
    """`done` is the `time.perf_counter` of its last byte's arrival; `retry_after` says whether it had that header."""

    status: int
    body: bytes
    done: float
    retry_after: bool = False


class Connection(asyncio.Protocol):
    """At most one request is under way on it. Usable until `closed`."""

    def __init__(self) -> None:
        self.closed = False
        self.idle_since = time.perf_counter()
        self._answer: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        """Raises `OSError` where nothing listens."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    async def exchange(self, request: bytes) -> Answer:
        """Sends a whole request and waits for the whole answer.

        Raises `ConnectionError` where none comes or it is not HTTP. A cancelled exchange closes the connection, for
        its answer may still arrive.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = HttpResponseParser(self)
        self._body = b""
        self._retry_after = False
        self._transport.write(request)
        try:
            return await self._answer
        except BaseException:
            self.close()
            raise
        finally:
            self._answer = None
            self.idle_since = time.perf_counter()

    def close(self) -> None:
        self.closed = True
        self._transport.close()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._fail(f"not HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._fail("closed before the answer was whole")

    def _fail(self, problem: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(problem))

    # httptools' side

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._retry_after = True

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        done = time.perf_counter()
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(self._parser.get_status_code(), self._body, done, self._retry_after))
