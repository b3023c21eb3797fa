"""What a case gets: servers that it may break, texts whose answers are known, and a place to say what it saw."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.faults.load import Known, Load, Tally
from loadtest.metrics import read_metrics
from loadtest.processes import Process, tree
from loadtest.servers import HOST, Server, running

WARM_ANSWERS = 200
READY_PROBES = 8
"""Connections that are tried for readiness: of so many, some reach every front end."""
READY_SECONDS = 60.0
POLL_SECONDS = 0.02


Fault = Callable[[Load], Awaitable[None]]
"""Breaks something while load is driven."""


class SkippedError(RuntimeError):
    """A case that cannot run on this machine; the message is one sentence that says what it lacks."""


@dataclass(slots=True)
class Finding:
    """What a case came to. `seconds` is how long after the fault all processes were there and ready again and no
    request failed or took longer than a second; None where the fault is not of a server that goes on. `problems` are
    sentences; without any the case passed."""

    did: str
    tallies: list[Tally] = field(default_factory=list)
    seconds: float | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)

    def judge(self, *allowed: str) -> None:
        """Checks what is true of every fault, and that attempts ended only in an answer or in one of `allowed`."""
        for tally in self.tallies:
            self.expect(tally.answered > 0, "nothing was answered")
            for count, what in ((tally.lost, "lost"), (tally.twice, "answered twice"), (tally.wrong, "wrong")):
                self.expect(not count, f"{count} requests were {what}")
            other = tally.statuses().keys() - {"200", *allowed}
            self.expect(not other, f"clients saw {', '.join(sorted(other))}")


@dataclass(frozen=True, slots=True)
class Stage:
    """`command` serves the bundle that is in `folder`, whose base is `base`; `known` are texts with their answers, each
    right for that text only. `out` is for logs and copies of the bundle."""

    bundle: Path
    base: Path | None
    data: Path
    out: Path
    known: Sequence[Known]

    def command(self, *flags: str, bundle: Path | None = None) -> list[str]:
        base = ["--base", str(self.base)] if self.base is not None and bundle is None else []
        return [*revmux("serve"), "--bundle", str(bundle or self.bundle), *base, *flags]

    @asynccontextmanager
    async def serving(self, name: str, command: Sequence[str]) -> AsyncIterator[Server]:
        """A server that is ready; its log is `NAME.log`."""
        with running(command, self.out / f"{name}.log") as server:
            yield server


def revmux(*arguments: str) -> list[str]:
    """The command line of `revmux`, of the environment that this runs in."""
    return [sys.executable, "-m", "server.cli", *arguments]


def processes(server: Server, module: str) -> list[Process]:
    """Those of a server of several processes that run `module`."""
    return [one for one in tree(server.pid) if module in _command_of(one.pid)]


def _is_whole(server: Server, front_ends: int) -> bool:
    """Whether a server of so many front ends has all its processes, and those are ready; 0: of one process."""
    if front_ends and (len(tree(server.pid)) < front_ends + 2 or _listeners(server.port) < front_ends):
        return False
    return _all_ready(server.port)


def _listeners(port: int) -> int:
    """How many sockets listen on a port of this machine: every front end has one."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


async def until(holds: Callable[[], bool]) -> None:
    """Waits until something `holds`, which is asked in a thread. Raises `TimeoutError`."""
    async with asyncio.timeout(READY_SECONDS):
        while True:
            if await asyncio.to_thread(holds):
                return
            await asyncio.sleep(POLL_SECONDS)


async def broken(server: Server, known: Sequence[Known], fault: Fault, front_ends: int = 0) -> tuple[Tally, float]:
    """Drives load, has `fault` break something, and waits for full service: the tally, and the seconds that it took.

    A server of `front_ends` is to have all its processes again; one that stays as it is is judged by its answers alone.
    """
    async with Load(server.port, known) as load:
        await load.more(WARM_ANSWERS)
        moment = time.monotonic()
        await fault(load)
        await until(lambda: _is_whole(server, front_ends))
        ready = time.monotonic() - moment
        await load.steady()
    return load.tally, max(ready if front_ends else 0.0, load.tally.service_after(moment))


def metric(server: Server, name: str) -> float:
    """The value of `revmux_NAME`."""
    return read_metrics(server.port, timeout=30).get(f"revmux_{name}", 0.0)


def send_signal(process: Process, number: signal.Signals) -> None:
    os.kill(process.pid, number)


def _all_ready(port: int) -> bool:
    for _ in range(READY_PROBES):
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health/ready", timeout=5):
                pass
        except OSError:
            return False
    return True


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
