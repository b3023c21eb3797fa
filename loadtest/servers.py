"""Starts servers on free loopback ports, waits until they are ready, and stops them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
START_TIMEOUT_SECONDS = 300.0
STOP_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.05


class ServerError(RuntimeError):
    """A server that cannot be driven; the message ends with the last lines of its log where it never became ready."""


@dataclass(frozen=True, slots=True)
class Server:
    """A ready server: its port on `HOST`, its `/info`, and the seconds from starting the process to being ready."""

    port: int
    pid: int
    start_seconds: float
    info: dict[str, Any]

    def peak_rss_bytes(self) -> int | None:
        """The most memory that its processes have held so far, each at its own peak; None where the system has no
        /proc to tell. Pages that they share count for each."""
        peaks = [_peak(pid) for pid in process_tree(self.pid)]
        known = [peak for peak in peaks if peak is not None]
        return sum(known) if known else None


def process_tree(pid: int) -> list[int]:
    """`pid` and all that descends from it; `pid` alone where the system has no /proc to tell."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    tree = [pid]
    for member in tree:
        tree += children.get(member, [])
    return tree


def _peak(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(peak[1]) if peak else None


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[Server]:
    """Runs `command --host HOST --port PORT` from start to stop, its output in `log`.

    Raises `ServerError` if it exits or is not ready in time.
    """
    port = _free_port()
    with log.open("w") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, "--host", HOST, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while not _is_ready(port):
                if process.poll() is not None:
                    raise ServerError(f"the server exited with code {process.returncode}:\n{_tail(log)}")
                if time.monotonic() - began > START_TIMEOUT_SECONDS:
                    raise ServerError(f"the server was not ready after {START_TIMEOUT_SECONDS:.0f} s:\n{_tail(log)}")
                time.sleep(POLL_SECONDS)
            start_seconds = time.monotonic() - began
            yield Server(port, process.pid, start_seconds, _info(port))
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health/ready", timeout=5):
            return True
    except OSError:
        return False


def _info(port: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/info", timeout=5) as response:
            info: dict[str, Any] = json.load(response)
            return info
    except OSError as error:
        raise ServerError(f"the server does not tell what it serves: GET /info: {error}") from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
