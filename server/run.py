"""Runs the server in this process until it is told to stop."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import time
from functools import partial
from types import FrameType

import uvicorn

from revmux_core.bundle import load_bundle
from server.app import create_app
from server.engine import resolve_device, resolve_dtype
from server.service import Service, State
from server.settings import Settings, SettingsError

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: above a load balancer's usual 60, so that the server never closes one
that the balancer is about to use."""


class DrainingServer(uvicorn.Server):
    """Answers what was admitted before it stops.

    The first SIGTERM or SIGINT begins to drain: readiness drops and new work is refused, while the port stays open.
    The server exits once every admitted request is answered, or after `drain_timeout`. A second signal kills it.
    """

    def __init__(self, config: uvicorn.Config, service: Service, url: str) -> None:
        super().__init__(config)
        self._service = service
        self._url = url
        self._drain_until: float | None = None
        self._announced = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Uvicorn would remember the signal and raise it again at the end; a drained server has ended well.
        if self._drain_until is not None:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._drain_until = time.monotonic() + self._service.settings.drain_timeout
        self._service.drain()

    async def on_tick(self, counter: int) -> bool:
        if self._service.failure is not None:
            self.should_exit = True
        elif self._drain_until is not None:
            left = self._drain_until - time.monotonic()
            if self._service.idle or left <= 0:
                # What is left of the time goes to connections that still read their answers.
                self.config.timeout_graceful_shutdown = max(math.ceil(left), 1)
                self.should_exit = True
        elif not self._announced and self._service.state is State.READY:
            self._announced = True
            print(f"Serving {self._service.model.manifest.name} on {self._url}", flush=True)
        return await super().on_tick(counter)


def listen(settings: Settings) -> socket.socket:
    """A listening socket. Raises `SettingsError` where the address cannot be had."""
    host, port = settings.host, settings.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise SettingsError("host", f"{host} is no address: {error.strerror}") from error
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise SettingsError("port", f"cannot listen on {host}, port {port}: {os.strerror(error.errno or 0)}") from error


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns.

    The port opens at once and the bundle is loaded behind it, so that liveness can be told from readiness.

    Raises `RevmuxError` for a setting or a bundle that cannot be served.
    """
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    device = resolve_device(settings)
    dtype = resolve_dtype(settings, device)
    app = create_app(settings, partial(load_bundle, settings.bundle, settings.base, device, dtype, settings.backend))
    listener = listen(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        # The metrics count requests; a line for each would cost more than the rest of the HTTP layer.
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE,
        ws="none",
    )
    service: Service = app.state.service
    DrainingServer(config, service, url_of(listener)).run([listener])
    if service.failure is not None:
        raise service.failure
