"""Starts servers on free loopback ports, waits until they are ready, and stops them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loadtest.processes import peak_rss_bytes, tree

HOST = "127.0.0.1"
START_TIMEOUT_SECONDS = 300.0
STOP_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.05

_ANNOUNCED = re.compile(r"^Serving \S+ on http", re.MULTILINE)
"""What one of our own servers prints once all of its processes can be asked; `/health/ready` is the word of one."""

_ERROR = re.compile(r"^\S+ \S+ (?:ERROR|CRITICAL) .*", re.MULTILINE)


class ServerError(RuntimeError):
    """A server that cannot be driven; the message ends with the last lines of its log where it never became ready."""


@dataclass(frozen=True, slots=True)
class Server:
    """A ready server: its port on `HOST`, its `/info`, and the seconds from starting the process to being ready."""

    port: int
    pid: int
    start_seconds: float
    info: dict[str, Any] = field(default_factory=dict)

    def peak_rss_bytes(self) -> int | None:
        """The most memory it has held so far, see `processes`; None where the system has no /proc to tell."""
        return peak_rss_bytes(self.pid)

    def padding_ratio(self) -> float | None:
        """Share of padding in what one of our own servers has computed so far; None before the first batch."""
        counted = {"revmux_batch_tokens_sum": 0.0, "revmux_padded_tokens_total": 0.0}
        with urllib.request.urlopen(f"http://{HOST}:{self.port}/metrics", timeout=5) as response:
            for line in response.read().decode().splitlines():
                name, _, value = line.partition(" ")
                if name in counted:
                    counted[name] = float(value)
        tokens, padded = counted.values()
        return 1 - tokens / padded if padded else None


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[Server]:
    """Runs one of our own servers: `started`, ready when it says so, with its `/info`."""
    with started(command, log, lambda _: _ANNOUNCED.search(log.read_text(errors="replace")) is not None) as server:
        yield replace(server, info=_info(server.port))


@contextmanager
def started(
    command: Sequence[str], log: Path, is_ready: Callable[[int], bool], environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Runs `command --host HOST --port PORT` from start to stop, its output in `log`.

    `is_ready` is asked about the port until it says so. `environment` replaces this process's own. Whatever the
    server has started is ended with it.

    Raises `ServerError` if it exits or is not ready in time.
    """
    port = free_port()
    with log.open("w") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, "--host", HOST, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while not is_ready(port):
                if process.poll() is not None:
                    raise ServerError(f"the server exited with code {process.returncode}:\n{_tail(log)}")
                if time.monotonic() - began > START_TIMEOUT_SECONDS:
                    raise ServerError(f"the server was not ready after {START_TIMEOUT_SECONDS:.0f} s:\n{_tail(log)}")
                time.sleep(POLL_SECONDS)
            yield Server(port, process.pid, time.monotonic() - began)
        finally:
            _stop(process)


def raise_errors(log: Path) -> None:
    """Raises `ServerError` with the first line that one of our own servers has logged as an error.

    A server that computes batches again answers rightly all the same, and its speed is not the server's.
    """
    if found := _ERROR.search(log.read_text(errors="replace")):
        raise ServerError(f"the server has logged an error: {found[0]}")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _info(port: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/info", timeout=5) as response:
            info: dict[str, Any] = json.load(response)
            return info
    except OSError as error:
        raise ServerError(f"the server does not tell what it serves: GET /info: {error}") from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    family = tree(process.pid)
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # Some servers leave workers behind, which would take processor time from the next one.
    for member in family:
        if member.pid != process.pid and member.is_alive():
            with suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
