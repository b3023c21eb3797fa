"""Speaks HTTP on a socket until it is told to stop."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from server.app import create_app
from server.ports import tls_context
from server.protocol import BoundedProtocol
from server.service import Service, State

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: above a load balancer's usual 60, so that the server never closes one
that the balancer is about to use."""

BUSY_TICK, IDLE_TICK = 0.1, 1.0
"""Seconds between looks at whether to announce or to exit: while that is near, and while it is served, when only the
date in the answers' heads needs them. Ten looks a second took 0.2% of a core of a server that had nothing to do."""


def http_config(service: Service) -> uvicorn.Config:
    """How uvicorn serves the application around `service`. Raises `SettingsError` where it cannot."""
    tls = tls_context(service.settings)
    return uvicorn.Config(
        create_app(service),
        http=BoundedProtocol,
        limit_concurrency=service.settings.max_connections,
        # As many may wait to be accepted, up to the kernel's own limit: whoever finds no room there sends again, after
        # seconds. 2,048 by default.
        backlog=service.settings.max_connections,
        log_config=None,
        # The metrics count requests; a line for each would cost more than the rest of the HTTP layer.
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE,
        ssl_context_factory=None if tls is None else lambda *_: tls,
        ws="none",
    )


class DrainingServer(uvicorn.Server):
    """Answers what was admitted before it stops.

    The first SIGTERM or SIGINT begins to drain: readiness drops and new work is refused, while the port stays open.
    The server exits once every admitted request is answered, or after `drain_timeout`. A second signal kills it.
    """

    def __init__(self, service: Service, announce: Callable[[], None]) -> None:
        """`announce` is called once, when the model can be asked for the first time."""
        super().__init__(http_config(service))
        self._service = service
        self._announce = announce
        self._drain_until: float | None = None
        self._announced = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._awake = asyncio.Event()

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        # Uvicorn renews the date at every tenth count.
        while not await self.on_tick(0):
            idle = self._announced and self._drain_until is None
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_TICK if idle else BUSY_TICK):
                    await self._awake.wait()
            self._awake.clear()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Uvicorn would remember the signal and raise it again at the end; a drained server has ended well.
        if self._drain_until is not None:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.drain()

    def drain(self) -> None:
        """Begins to drain; from any thread."""
        self._service.drain()
        self._drain_until = time.monotonic() + self._service.settings.drain_timeout
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._awake.set)

    def drained(self) -> bool:
        """Whether nothing keeps a server that drains from ending."""
        return self._service.idle

    async def on_tick(self, counter: int) -> bool:
        if self._service.failure is not None:
            self.should_exit = True
        elif self._drain_until is not None:
            left = self._drain_until - time.monotonic()
            if self.drained() or left <= 0:
                # What is left of the time goes to connections that still read their answers.
                self.config.timeout_graceful_shutdown = max(math.ceil(left), 1)
                self.should_exit = True
        elif not self._announced and self._service.state is State.READY:
            self._announced = True
            self._announce()
        return await super().on_tick(counter)
