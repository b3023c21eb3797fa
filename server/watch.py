"""Notices that nobody waits for a request any more: its client left, or its time is up."""

from __future__ import annotations

import asyncio

from starlette.types import Receive

from server.answers import Admitted
from server.errors import ClientDisconnected, DeadlineExceeded

WATCH_AFTER = 0.05
"""Seconds after which a request that still waits gets a task that watches it. Most are answered before, and a task
costs more than the rest of the service."""


class Watch:
    """Fails `pending` when its client leaves, which is read from `receive`, or at `deadline`, in the event loop's time.

    `timeout_ms` is what the deadline is the end of.
    """

    def __init__(self, pending: Admitted, receive: Receive, deadline: float, timeout_ms: float) -> None:
        self._pending = pending
        self._receive = receive
        self._deadline = deadline
        self._timeout_ms = timeout_ms
        self._task: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(min(loop.time() + WATCH_AFTER, deadline), self._start)

    def stop(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            # Its `CancelledError` holds its frame, which holds this watch: with the task that is a cycle around the
            # whole request, 15 objects and what they hold, which is in memory until the next full collection.
            self._task = None

    def _start(self) -> None:
        if asyncio.get_running_loop().time() >= self._deadline:
            self._pending.fail(DeadlineExceeded(self._timeout_ms))
            return
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            async with asyncio.timeout_at(self._deadline):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            self._pending.fail(DeadlineExceeded(self._timeout_ms))
        else:
            self._pending.fail(ClientDisconnected())
