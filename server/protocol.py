"""HTTP/1.1 on one connection, within bounds: what a client may send before it is answered, and how long it may take."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from server import errors

MAX_HEAD_BYTES = 65536
"""Of a request line and its headers, and of whatever else is no body. What uvicorn allows where h11 is its parser."""

HEAD_SECONDS, BODY_SECONDS, ANSWER_SECONDS = 10.0, 60.0, 60.0
"""Time for a request's head to arrive, for its body after that, and for the client to take the answer."""

MAX_PIPELINED = 16
"""Requests that may wait on one connection behind the one that is answered. Hardly a client sends any."""

REFUSAL = "revmux.refusal"
"""Where a scope has the `ServiceError` that its request is to be answered with."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

GONE = "revmux.gone"
"""Where a scope has a future that is done once its client is gone."""


class _Wire:
    """A connection as uvicorn writes answers to it: a head is held until what follows it is there.

    uvloop sends at once what it is given: two writes are two system calls, two packets and two wake-ups of the client.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_closing = transport.is_closing
        self.awaits_head = False

    def write(self, data: bytes) -> None:
        if self.awaits_head and data != CONTINUE:
            self.awaits_head = False
            self._head = data
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def flush(self) -> None:
        """Sends a head that nothing follows."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, which by itself waits for ever for the rest of a request and keeps headers of any size.

    A request that is refused is answered by the application, in the format that belongs to its path and with its id;
    what never became one is answered here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Uvicorn's own refusal is plain text.
        self._max_connections, self.limit_concurrency = self.limit_concurrency, None
        # Bytes since the last that were known to be of use: the parser tells of a header only when it has all of it.
        self._pending = 0
        self._awaits_body = False
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._gone: asyncio.Future[None] = self.loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wire = _Wire(transport)
        self._reading = self.loop.call_later(HEAD_SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        self._gone.set_result(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._pending += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._pending > MAX_HEAD_BYTES:
            self._refuse(errors.HeadTooLarge(MAX_HEAD_BYTES))
        elif self._reading is None and (self._pending or self._awaits_body):
            seconds = BODY_SECONDS if self._awaits_body else HEAD_SECONDS
            self._reading = self.loop.call_later(seconds, self._late)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise httptools.HttpParserError("too many requests at once")
        self._stop_reading_timer()
        self._awaits_body = True
        refusal = self._refusal()
        if refusal is not None:
            self.scope[REFUSAL] = refusal  # type: ignore[literal-required]
        self.scope[GONE] = self._gone  # type: ignore[literal-required]
        self._pending = 0
        if self._writing is not None:
            # Who asks for more has read, and gets as long again for the rest.
            self._writing.cancel()
            self._writing = None
            self._watch_writing()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_reading_timer()
        self._awaits_body = False
        self._pending = 0
        super().on_message_complete()
        # A large part of a body had uvicorn stop reading until the next is asked for: nobody asks after the last, and
        # a client that leaves would go unnoticed.
        self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        cycle.transport = self._wire  # type: ignore[assignment]
        self._wire.awaits_head = True
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._wire.flush()
        super().on_response_complete()
        self._watch_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(errors.InvalidRequest("this is not HTTP/1.1", headers={"Connection": "close"}))

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refusal(self) -> errors.ServiceError | None:
        """What the request whose head just ended is refused with."""
        if self._max_connections is not None and len(self.connections) > self._max_connections:
            return errors.TooManyConnections()
        # Less than that cannot have held a larger head; more may have held a body, too.
        if self._pending > MAX_HEAD_BYTES:
            head = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if head > MAX_HEAD_BYTES:
                return errors.HeadTooLarge(MAX_HEAD_BYTES)
        return None

    def _refuse(self, error: errors.ServiceError) -> None:
        """Answers what is not yet a whole request with `error`, and closes the connection."""
        if self._awaits_body and self._answering:
            self.cycle.scope[REFUSAL] = error  # type: ignore[literal-required]
            self.cycle.message_event.set()
            return
        if not self._answering and not self._awaits_body:
            response = errors.answer(error, path="")
            headers = [*self.server_state.default_headers, *response.raw_headers]
            lines = [b"%s: %s\r\n" % header for header in headers]
            self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", bytes(response.body)]))
        self.transport.close()
        self._watch_writing()

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _late(self) -> None:
        """The head, or the body, took too long."""
        self._reading = None
        if self._awaits_body:
            part, seconds = "body", BODY_SECONDS
        else:
            part, seconds = "head", HEAD_SECONDS
        # While another request of the connection is answered it is not the client that keeps this one waiting.
        if self.flow.read_paused or (part == "head" and self._answering):
            self._reading = self.loop.call_later(seconds, self._late)
        else:
            self._refuse(errors.RequestTimeout(part, seconds))

    def _watch_writing(self) -> None:
        if self._writing is None and self.transport.get_write_buffer_size():
            self._writing = self.loop.call_later(ANSWER_SECONDS, self._untaken)

    def _untaken(self) -> None:
        self._writing = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()
