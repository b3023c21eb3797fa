"""Writes what was measured, and what follows from it, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from loadtest.machine import Machine
from loadtest.measure import MAX_CPU_SHARE
from loadtest.overhead.costs import Visit, come_together, most_of_offline, over_rounds
from loadtest.report import share, size, table

ONE, FRONT, FLOOR = "one process", "`--http-workers 1`", "floor"
REQUESTS_A_SECOND = 20_000
"""What a server on a machine with many cores is aimed at."""


@dataclass(frozen=True, slots=True)
class Report:
    """`cores` are those that the model computes on, 0: it has a GPU. `offline` are the engine's own sentences a second,
    `beside_floor` those while `FLOOR` answers as many requests as `ONE` did, `visits` those to the servers `ONE`,
    `FRONT` and `FLOOR`: one a round."""

    command: str
    machine: Machine
    cores: int
    concurrency: int
    inputs: int
    seconds: float
    offline: Sequence[float]
    beside_floor: Sequence[float]
    visits: Mapping[str, Sequence[Visit]]


def write(report: Report, folder: Path) -> None:
    """Writes `overhead.md` and `overhead.json` (seconds, and requests a second) into `folder`."""
    medians = {name: over_rounds(visits) for name, visits in report.visits.items()}
    document = asdict(report) | {"medians": {name: asdict(own) for name, own in medians.items()}}
    (folder / "overhead.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "overhead.md").write_text(to_markdown(report, medians))


def to_markdown(report: Report, medians: Mapping[str, Visit]) -> str:
    machine, offline = report.machine, median(report.offline)
    shared = report.cores == machine.cores
    whose = "" if shared else f"; the model computes on {_cores(report.cores)}"
    each = f", {_exact(report.cores / offline)} ms of {_cores(report.cores)} each" if report.cores else ""
    one, front, floor = (medians[name] for name in (ONE, FRONT, FLOOR))
    saturated = [
        (
            name,
            f"{own.rate:,.1f}",
            # Of each round's, so that a drift of the machine's speed cancels out.
            "-" if name == FLOOR else _spread(_ratios([visit.rate for visit in report.visits[name]], report.offline)),
            "-" if name == FLOOR or not shared else share(_most(own, own)),
            *(_exact(spent) for spent in (own.front_end, own.loop, own.device, own.generator)),
            f"{own.cores:.2f}",
        )
        for name, own in medians.items()
    ]
    alone = [
        (name, *(_exact(spent) for spent in (own.client, own.request, own.inference, own.beside_inference)))
        for name, own in medians.items()
    ]
    parts = [
        "# What serving costs beside the model",
        f"`{report.command}`",
        f"{machine.cpu}, {machine.cores} cores, {size(machine.memory_bytes)} of memory ({machine.system}, Python "
        f"{machine.python}), which engine, servers and load generator share{whose}. All are measured in turn, "
        f"{len(report.offline)} rounds, {_texts(report.inputs)} a request, {report.seconds:g} s a run; figures are "
        "medians over rounds. *floor* is uvicorn that reads a request, cuts its texts into tokens and sends an answer "
        "of the usual size, always the same (`loadtest/overhead/floor.py`).",
        f"## Saturated: {report.concurrency} in flight",
        "Milliseconds of processor time a text. *engine's loop* is the main thread of the process with the model "
        "(in one process it speaks HTTP as well, and with OpenVINO it computes brief batches), *device* that process's "
        "other threads, *front end* all other processes. The engine alone (`revmux bench`) does "
        f"{offline:,.1f} sentences a second{each}.",
        table(("server", "texts/s", "of offline", "at most", *_PARTS, "generator", "cores busy"), saturated),
        *_generator_verdict(medians),
        *([_at_most(one, floor)] if shared else []),
        "The same was measured beside the floor: while the floor answers as many requests a second as one process did, "
        f"{come_together(report.concurrency)} at a time, the engine does "
        f"**{_spread(_ratios(report.beside_floor, report.offline))}** of what it does alone. A server of this stack "
        "that did nothing but read, cut and write would have that left for its model here, beside the same generator.",
        "## One request at a time",
        "Milliseconds, means. *request* and *inference* are the server's own (`/metrics`).",
        table(("server", "as the client saw it", "request", "inference", "request less inference"), alone),
    ]
    if report.inputs == 1:
        parts += _many(front, floor)
    return "\n\n".join(parts) + "\n"


def _at_most(one: Visit, floor: Visit) -> str:
    return (
        "*At most* is the share of the engine's own throughput that is left for it where all share the cores: E / (E + "
        "H + G), with E the device's time a text, H that of front end and engine's loop, G the generator's. With H "
        f"and G of the floor and E of one process it is {share(_most(one, floor))}. With the generator elsewhere it is "
        f"{share(_most(one, one, 0))}, at the floor {share(_most(one, floor, 0))}. What *of offline* lacks of it are "
        "cores that are not busy, and a device that takes longer a text than alone. The floor's times are the least: "
        "its caches are warm, and it reads many requests a wake-up. The generator, whose work is the same in all rows, "
        "shows how much that is."
    )


def _many(front: Visit, floor: Visit) -> list[str]:
    """What so many requests of one text would take."""
    needed = [
        (name, f"{1 / spent:,.0f}", f"{REQUESTS_A_SECOND * spent:.1f}")
        for name, spent in (
            ("front ends", front.front_end),
            ("the engine's loop", front.loop),
            ("the floor, in a front end's place", floor.front_end),
            ("the load generator", front.generator),
        )
    ]
    return [
        f"## {REQUESTS_A_SECOND:,} requests a second, where there are cores for it",
        f"A core bears 1 / (time a request) requests a second; {REQUESTS_A_SECOND:,} take so many times that time of "
        "cores. Computed from the times of one front end above: nothing was run on as many cores.",
        table(("part", "requests/s a core", f"cores for {REQUESTS_A_SECOND:,}"), needed),
        "The loop of an engine process is one thread, so by this count one such process "
        f"{'can' if REQUESTS_A_SECOND * front.loop <= 1 else 'cannot'} carry them.",
    ]


_PARTS = ("front end", "engine's loop", "device")


def _ratios(own: Sequence[float], alone: Sequence[float]) -> list[float]:
    return [mine / its for mine, its in zip(own, alone, strict=True)]


def _spread(ratios: Sequence[float]) -> str:
    """The median of the rounds', and the least and the most."""
    return f"{share(median(ratios))} ({share(min(ratios))} to {share(max(ratios))})"


def _most(model: Visit, rest: Visit, generator: float | None = None) -> float:
    """With the device's time of `model` and the others of `rest`, the generator's unless it is given."""
    return most_of_offline(model.device, rest.http, rest.generator if generator is None else generator)


def _generator_verdict(medians: Mapping[str, Visit]) -> list[str]:
    limited = [name for name, own in medians.items() if own.rate * own.generator > MAX_CPU_SHARE]
    text = "**The load generator was a bottleneck** of {}: its texts/s are no limit of the server, its times hold."
    return [text.format(", ".join(limited))] if limited else []


def _cores(number: int) -> str:
    return {0: "a GPU", 1: "one of the cores"}.get(number, f"{number} of the cores")


def _texts(inputs: int) -> str:
    return "one text" if inputs == 1 else f"{inputs} texts"


def _exact(seconds: float | None) -> str:
    """In milliseconds, to the microsecond."""
    return "-" if seconds is None else f"{1000 * seconds:.3f}"
