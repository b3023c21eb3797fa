"""Writes what was measured, and what follows from it, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.machine import Machine
from loadtest.measure import MAX_CPU_SHARE
from loadtest.overhead.costs import Visit, most_of_offline, over_rounds
from loadtest.overhead.drive import Plan
from loadtest.report import milliseconds, share, size, table

ONE, FRONT, FLOOR = "one process", "`--http-workers 1`", "floor"
REQUESTS_A_SECOND = 20_000
"""What a server on a machine with many cores is aimed at."""


@dataclass(frozen=True, slots=True)
class Report:
    """`offline` are the engine's own sentences a second, `visits` those to the servers `ONE`, `FRONT` and `FLOOR`: one
    a round."""

    command: str
    machine: Machine
    plan: Plan
    offline: Sequence[float]
    visits: Mapping[str, Sequence[Visit]]


def write(report: Report, folder: Path) -> None:
    """Writes `overhead.md` and `overhead.json` into `folder`."""
    (folder / "overhead.json").write_text(json.dumps(to_json(report), indent=1) + "\n")
    (folder / "overhead.md").write_text(to_markdown(report))


def to_json(report: Report) -> dict[str, Any]:
    """The whole report as JSON types: seconds, and sentences a second, every round beside the medians."""

    def plain(visit: Visit) -> dict[str, Any]:
        return asdict(visit) | {"parts": visit.parts._asdict()}

    servers = {
        name: {"medians": plain(over_rounds(visits)), "rounds": [plain(visit) for visit in visits]}
        for name, visits in report.visits.items()
    }
    known = {"command": report.command, "machine": asdict(report.machine), "plan": asdict(report.plan)}
    return known | {"offline": list(report.offline), "servers": servers}


def to_markdown(report: Report) -> str:
    machine, plan = report.machine, report.plan
    medians = {name: over_rounds(visits) for name, visits in report.visits.items()}
    one, front, floor = (medians[name] for name in (ONE, FRONT, FLOOR))
    offline = median(report.offline)
    saturated = [
        (
            name,
            f"{own.rate:,.1f}",
            *("-" if name == FLOOR else share(value) for value in (_of_offline(report, name), _most(own, own))),
            *(_exact(spent) for spent in (own.parts.front_end, own.parts.loop, own.parts.device, own.generator)),
            f"{own.rate * own.generator:.0%}",
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
        f"{machine.python}), which engine, servers and load generator share. All are measured in turn, {plan.rounds} "
        f"rounds, one text a request, {plan.seconds:g} s a run; figures are medians over rounds. *floor* is uvicorn "
        "that reads a request, cuts its text into tokens and sends an answer of the usual size, always the same "
        "(`loadtest/overhead/floor.py`).",
        f"## Saturated: {plan.concurrency} in flight",
        "Milliseconds of processor time a request. *engine's loop* is the main thread of the process with the model "
        "(in one process it speaks HTTP as well), *device* that process's other threads, *front end* all of any other "
        f"process. The engine alone (`revmux bench`) does {offline:,.1f} sentences a second, "
        f"{milliseconds(machine.cores / offline)} ms of these cores each.",
        table(
            ("server", "requests/s", "of offline", "at most", *_PARTS, "generator", "generator, of a core"), saturated
        ),
        *_generator_verdict(medians),
        "*At most* is the share of the engine's own throughput that is left for it where all share the cores: E / (E + "
        "H + G), with E the device's time a request, H that of front end and engine's loop, G the generator's. With H "
        f"and G of the floor and E of one process it is **{share(_most(one, floor))}**, which no server of this stack "
        f"exceeds here; without a generator on these cores {share(_most(one, one, 0))}, at the floor "
        f"{share(_most(one, floor, 0))}.",
        "## One request at a time",
        "Milliseconds, means. *request* and *inference* are the server's own (`/metrics`).",
        table(("server", "as the client saw it", "request", "inference", "request less inference"), alone),
        f"## {REQUESTS_A_SECOND:,} requests a second, where there are cores for it",
        "Requests a second that a core bears are 1 / its time a request; cores are the requests a second times that. "
        "By these figures, for nothing was run on as many cores:",
        table(
            ("part", "requests/s a core", f"cores for {REQUESTS_A_SECOND:,}"),
            [
                (name, f"{1 / spent:,.0f}", f"{REQUESTS_A_SECOND * spent:.1f}")
                for name, spent in (
                    ("front ends", front.parts.front_end),
                    ("the engine's loop, which is one thread", front.parts.loop),
                    ("the floor, in a front end's place", floor.parts.front_end),
                    ("the load generator", front.generator),
                )
            ],
        ),
        f"One engine process's loop {'can' if REQUESTS_A_SECOND * front.parts.loop <= 1 else 'cannot'} carry them.",
    ]
    return "\n\n".join(parts) + "\n"


_PARTS = ("front end", "engine's loop", "device")


def _of_offline(report: Report, name: str) -> float:
    """The median of the rounds' ratios, so that a drift of the machine's speed cancels out."""
    return median(visit.rate / alone for visit, alone in zip(report.visits[name], report.offline, strict=True))


def _most(model: Visit, rest: Visit, generator: float | None = None) -> float:
    """With the device's time of `model` and the others of `rest`, the generator's unless it is given."""
    return most_of_offline(model.parts.device, rest.http, rest.generator if generator is None else generator)


def _generator_verdict(medians: Mapping[str, Visit]) -> list[str]:
    limited = [name for name, own in medians.items() if own.rate * own.generator > MAX_CPU_SHARE]
    text = "**The load generator was a bottleneck** of {}: its requests/s are no limit of the server, its times hold."
    return [text.format(", ".join(limited))] if limited else []


def _exact(seconds: float | None) -> str:
    """In milliseconds, to the microsecond."""
    return "-" if seconds is None else f"{1000 * seconds:.3f}"
