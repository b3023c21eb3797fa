"""Notices that nobody waits for a request any more: its client left, or its time is up."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import Receive

from server.answers import Admitted
from server.errors import ClientDisconnected, DeadlineExceeded
from server.protocol import GONE


class Watch:
    """Fails `pending` when the client of `request` leaves, or at `deadline`, in the event loop's time.

    `timeout_ms` is what the deadline is the end of.
    """

    def __init__(self, pending: Admitted, request: Request, deadline: float, timeout_ms: float) -> None:
        self._pending = pending
        self._timeout_ms = timeout_ms
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(deadline, self._expire)
        self._listener: asyncio.Task[None] | None = None
        self._gone: asyncio.Future[None] | None = request.scope.get(GONE)
        if self._gone is None:
            # Another server than ours, such as Ray Serve's replica. With ours the task would cost more than the rest of
            # the service.
            self._gone = self._listener = loop.create_task(_departure(request.receive))
        self._gone.add_done_callback(self._leave)

    def stop(self) -> None:
        self._timer.cancel()
        if self._gone is not None:
            self._gone.remove_done_callback(self._leave)
        if self._listener is not None:
            self._listener.cancel()
        # Its `CancelledError` holds its frame, which holds `receive`: with the task that is a cycle around the whole
        # request, 15 objects and what they hold, which is in memory until the next full collection.
        self._gone = self._listener = None

    def _expire(self) -> None:
        self._pending.fail(DeadlineExceeded(self._timeout_ms))

    def _leave(self, _: asyncio.Future[None]) -> None:
        self._pending.fail(ClientDisconnected())


async def _departure(receive: Receive) -> None:
    """Returns when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
