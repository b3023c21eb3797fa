"""Real servers over loopback, and a gate in front of the model to hold a batch at a known place."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from revmux_core.bundle import Bundle
from server.inprocess import InProcess
from server.metrics import Metrics
from server.ports import listen_all, url_of
from server.service import Service
from server.settings import read_settings
from server.web import http_config


class Gate:
    """Stands in front of a model: lets batches through, holds them, or fails them."""

    def __init__(self, bundle: Bundle) -> None:
        self._open = threading.Event()
        self._open.set()
        self.failure: Exception | None = None
        self.reached = threading.Event()
        bundle.classifier.register_forward_pre_hook(self._pass)

    def _pass(self, module: Any, arguments: Any) -> None:
        self.reached.set()
        self._open.wait(timeout=30)
        if self.failure is not None:
            raise self.failure

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this lasts no batch is computed."""
        self._open.clear()
        self.reached.clear()
        try:
            yield
        finally:
            self._open.set()

    @contextmanager
    def failing(self, failure: Exception | None = None) -> Iterator[None]:
        self.failure = failure or RuntimeError("the device failed")
        try:
            yield
        finally:
            self.failure = None


@contextmanager
def running_server(load: Callable[[], Bundle], **flags: Any) -> Iterator[tuple[httpx.Client, Service]]:
    """A client of a server on a free port, and its service. Nothing is audited unless a test asks for it: audits are
    drawn at random, and run batches of their own."""
    settings = read_settings(**{"port": 0, "shadow_share": 0, **flags})
    service = Service(settings, InProcess(settings, load), Metrics("test"))
    listeners = listen_all(settings)
    server = uvicorn.Server(http_config(service))
    thread = threading.Thread(target=server.run, args=(listeners,))
    thread.start()
    certificate = settings.ssl_certfile
    trusted = True if certificate is None else ssl.create_default_context(cafile=certificate)
    transport = httpx.HTTPTransport(verify=trusted, retries=3)
    try:
        url = url_of(listeners[0], certificate is not None)
        with httpx.Client(base_url=url, timeout=30, transport=transport) as client:
            yield client, service
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def server_process(bundle: Path, **flags: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`revmux serve` in a process of its own, once it can be asked, and its address. Nothing is audited, see above."""
    options = {"bundle": bundle, "port": 0, "threads": 1, "shadow_share": 0, "width": "max", **flags}
    command = [sys.executable, "-m", "server.cli", "serve"]
    command += [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Polls `condition` of a server that runs in another thread."""
    waiting = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("the condition did not come about")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
