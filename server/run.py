"""Runs the server in this process until it is told to stop."""

from __future__ import annotations

import signal
import sys

from server import __version__
from server.inprocess import InProcess
from server.loading import bundle_reader
from server.logs import set_up_logs
from server.metrics import Metrics
from server.ports import allow_connections, listen_all, url_of
from server.service import Service
from server.settings import Settings
from server.traces import set_up_traces
from server.web import DrainingServer


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns. SIGHUP has the bundle read again, see `HotSwap`.

    The port opens at once and the bundle is loaded behind it, so that liveness can be told from readiness.

    Raises `RevmuxError` for a setting or a bundle that cannot be served.
    """
    set_up_logs(settings)
    set_up_traces()
    backend = InProcess(settings, bundle_reader(settings))
    service = Service(settings, backend, Metrics(__version__))
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, lambda number, frame: backend.reload())
    allow_connections()
    listeners = listen_all(settings)
    url = url_of(listeners[0], settings.ssl_certfile is not None)
    DrainingServer(service, lambda: print(f"Serving {service.model.facts.name} on {url}", flush=True)).run(listeners)
    if service.failure is not None:
        raise service.failure
