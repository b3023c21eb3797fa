"""Servers on loopback: as connections and lists grow, and as they start and have nothing to do."""

from __future__ import annotations

import itertools
import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.client import Client
from loadtest.measure import OK, Run, Summary, generator_limits, median_of_known, over_rounds, summarize
from loadtest.processes import cpu_seconds, reset_peaks
from loadtest.servers import Server, running
from loadtest.workload import shuffled

# What client and server have open beside connections: libraries, logs, the model's files.
SPARE_FILES = 256
# Distinct requests of a list size, at least, so that not every one holds the same texts.
LISTS = 4
# What a server takes as it is set by itself (`revmux serve --max-items-per-request`).
MOST_INPUTS = 1024
# After it is ready a server may still have something to put away.
SETTLE_SECONDS = 1.0

Progress = Callable[[str], None]


class LimitError(ValueError):
    """The system does not allow what was asked; the message says what to change."""


def allow_connections(count: int) -> None:
    """Lets this process, and the servers it starts from now on, hold `count` connections at once.

    Raises `LimitError` where the hard limit of open files is below that.
    """
    needed = count + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise LimitError(
            f"{count} connections take {needed} open files and the system allows {hard}: ask for fewer with "
            "--connections, or raise the hard limit (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def lists_of(texts: Sequence[str], size: int) -> list[str | list[str]]:
    """Requests of `size` texts each that hold every text: at size 1 it alone, else lists cut one after the other."""
    if size == 1:
        return list(texts)
    endless = itertools.cycle(texts)
    count = max(LISTS, math.ceil(len(texts) / size))
    return [list(itertools.islice(endless, size)) for _ in range(count)]


def rate(run: Run, size: int) -> float:
    """Texts a second from the run's begin to its last answer, of requests of `size` texts.

    A run's time is no measure here: one request may take longer, and of 2,000 connections most answers come after it.
    """
    answered = [outcome.done for outcome in run.outcomes if outcome.status == OK]
    return size * len(answered) / max(answered) if answered else 0.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A closed loop of `connections` that send `requests` of `size` texts each; `x` is what grows."""

    x: int
    requests: Sequence[str | list[str]]
    size: int
    connections: int


def settings_of(part: str, texts: Sequence[str], values: Sequence[int]) -> list[Setting]:
    """Of `connections`: so many, with a text a request. Of `inputs`: one, with so many texts a request."""
    if part == "connections":
        return [Setting(count, texts, 1, count) for count in values]
    return [Setting(size, lists_of(texts, size), size, 1) for size in values]


async def measure(
    servers: Mapping[str, Server], settings: Sequence[Setting], rounds: int, seconds: float, say: Progress
) -> list[dict[str, Any]]:
    """Rows of all settings on all servers, see `Part`; rounds go through both in turn, after a run that warms up.

    Latencies and throughput are medians over rounds. Memory is the first round's, which goes from small to large as
    does the list of settings: what a server has once held it does not always give back.
    """
    runs: dict[tuple[int, str], list[tuple[Summary, float, int | None]]] = {}
    for name, server in servers.items():
        await _run(server, min(settings, key=lambda setting: setting.x), 0, seconds)
        say(f"{name} is warm")
    for number in range(rounds):
        for setting in settings:
            # Neither server always goes first.
            for name, server in list(servers.items())[:: 1 if number % 2 == 0 else -1]:
                reset_peaks(server.pid)
                run = await _run(server, setting, number, seconds)
                measured = summarize(run, [None] * len(setting.requests), {}), rate(run, setting.size)
                runs.setdefault((setting.x, name), []).append((*measured, server.peak_rss_bytes()))
                say(f"{setting.x}, round {number + 1} of {rounds}, {name}: {measured[1]:.1f} texts/s")
    return [_row(setting.x, name, runs[setting.x, name]) for name in servers for setting in settings]


async def _run(server: Server, setting: Setting, seed: int, seconds: float) -> Run:
    async with Client(server.port, setting.requests, setting.connections) as client:
        return await client.closed_loop(shuffled(len(setting.requests), seed), setting.connections, seconds)


def _row(x: int, name: str, rounds: Sequence[tuple[Summary, float, int | None]]) -> dict[str, Any]:
    summary = over_rounds([summary for summary, _, _ in rounds])
    rates = [rate for _, rate, _ in rounds]
    return {
        "x": x,
        "series": name,
        "texts_per_second": median(rates),
        "rounds": rates,
        "p50_seconds": summary.p50_seconds,
        "p99_seconds": summary.p99_seconds,
        "peak_rss_bytes": rounds[0][2],
        "requests": summary.requests,
        "errors": summary.errors,
        "generator_limits": generator_limits(summary),
    }


def measure_start(
    commands: Mapping[str, Sequence[str]], rounds: int, idle_seconds: float, folder: Path, say: Progress
) -> list[dict[str, Any]]:
    """Rows of servers that are started in turn, asked nothing for `idle_seconds`, and stopped; see `Part`."""
    found: dict[str, list[tuple[float, float | None, int | None]]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            with running(command, folder / "start.log") as server:
                time.sleep(SETTLE_SECONDS)
                before = cpu_seconds(server.pid)
                time.sleep(idle_seconds)
                after = cpu_seconds(server.pid)
                idle = None if before is None or after is None else (after - before) / idle_seconds
                found[name].append((server.start_seconds, idle, server.peak_rss_bytes()))
            say(f"start, round {number + 1} of {rounds}, {name}: {server.start_seconds:.1f} s")
    return [
        {
            "series": name,
            "start_seconds": median(start for start, _, _ in rows),
            "idle_cores": median_of_known([idle for _, idle, _ in rows]),
            "peak_rss_bytes": median_of_known([rss for _, _, rss in rows]),
            "rounds": [start for start, _, _ in rows],
        }
        for name, rows in found.items()
    ]
