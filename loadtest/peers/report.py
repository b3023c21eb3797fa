"""Writes the table of all servers as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtest.machine import Machine
from loadtest.measure import generator_limits
from loadtest.peers.compare import Contender, Plan
from loadtest.report import factor, milliseconds, share, size, table

HEAD = (
    "server",
    "setting",
    "precision",
    "requests/s",
    "of Infinity",
    "p50 at half load, ms",
    "p99",
    "memory",
    "start, s",
    "accuracy",
    "agreement",
    "under load",
    "failed",
)
# The columns before the figures: they stay where there are none.
NAMED = 3
# What the others are compared with: the first setting of this peer.
YARDSTICK = "infinity"


@dataclass(frozen=True, slots=True)
class Report:
    """`data` is the name of the file that the `sentences` came from."""

    bundle: str
    data: str
    sentences: int
    machine: Machine
    plan: Plan
    contenders: Sequence[Contender]

    @property
    def yardstick(self) -> Contender | None:
        return next((c for c in self.contenders if c.peer.key == YARDSTICK and c.visits), None)

    @property
    def warnings(self) -> list[str]:
        """One for every server and run in which the load generator was the bottleneck."""
        return [
            f"{contender.name}, {run}: {', '.join(limits)}"
            for contender in self.contenders
            if contender.visits
            for run, summary in zip(("saturation", "half load"), contender.over_rounds()[1:], strict=True)
            if (limits := generator_limits(summary))
        ] + [
            f"{contender.name}, {rate:g} a second: {', '.join(limits)}"
            for contender in self.contenders
            for rate, summary in zip(self.plan.rates, contender.at_rates(), strict=False)
            if summary is not None and (limits := generator_limits(summary))
        ]


def write(report: Report, folder: Path) -> None:
    """Writes `peers.md` and `peers.json` into `folder`."""
    (folder / "peers.json").write_text(json.dumps(to_json(report), indent=2) + "\n")
    (folder / "peers.md").write_text(to_markdown(report))


def to_json(report: Report) -> dict[str, Any]:
    """The whole report as JSON types: seconds, bytes and shares, every visit beside the medians."""
    return {
        "bundle": report.bundle,
        "data": report.data,
        "sentences": report.sentences,
        "machine": asdict(report.machine),
        "plan": asdict(report.plan),
        "servers": [_contender(contender, report.yardstick) for contender in report.contenders],
        "warnings": report.warnings,
    }


def to_markdown(report: Report) -> str:
    machine, plan = report.machine, report.plan
    visits = [visit for contender in report.contenders for visit in contender.visits]
    if plan.together:
        others = max((visit.others_cpu_share for visit in visits), default=0.0)
        up = (
            f"All servers stayed up through {plan.rounds} rounds, which went through them in turn (those that were not "
            f"asked took {others:.1%} of a core at most): on the first visit every sentence once, on each"
        )
    else:
        up = (
            f"One server was up at a time, started anew for each of {plan.rounds} rounds, which went through all "
            "servers in turn: every sentence once,"
        )
    parts = [
        f"# `{report.bundle}` beside other servers",
        f"The same model and the {report.sentences} sentences of `{report.data}`, one a request. Servers and load "
        f"generator ran on {machine.cpu}, {machine.cores} cores, {size(machine.memory_bytes)} of memory "
        f"({machine.system}, Python {machine.python}). {up} {plan.seconds:g} s with "
        f"{plan.concurrency} requests in flight (saturation), {plan.seconds:g} s of Poisson arrivals at half of what "
        "it had then answered.",
        table(HEAD, [_row(contender, report.yardstick) for contender in report.contenders]),
        "Medians over rounds. *of Infinity* is the median of the rounds' ratios to Infinity as documented. Latencies "
        "count from when a request was due. Memory is the sum of every process's peak. Start runs from the process's "
        "start to its first answer. Accuracy is over every sentence once, agreement with the labels that our plain "
        "path gave them, and *under load* at half of each one's. *failed* counts requests of all runs that got no "
        "answer.",
        *_same_load(report),
        _generator(report.warnings),
        "## Settings",
        "\n".join(
            f"- **{contender.peer.title} {contender.version}**, {contender.setting.name}, "
            f"{contender.setting.precision}: {contender.setting.about}"
            for contender in report.contenders
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _same_load(report: Report) -> list[str]:
    """A table of latencies where all servers get the same load, none where the plan has no rates."""
    rates = report.plan.rates
    if not rates:
        return []
    head = ("p50 / p99 in ms at", "", "", *(f"{rate:g} requests/s" for rate in rates))
    rows = []
    for contender in report.contenders:
        cells = [
            "-" if own is None else f"{milliseconds(own.p50_seconds)} / {milliseconds(own.p99_seconds)}"
            for own in contender.at_rates()
        ]
        if cells:
            rows.append([contender.peer.title, contender.setting.name, contender.setting.precision, *cells])
    text = "The same load for all, where a server bears it (at most nine tenths of what it answered at saturation):"
    return [text, table(head, rows)]


def _row(contender: Contender, yardstick: Contender | None) -> list[str]:
    named = [f"{contender.peer.title} {contender.version}", contender.setting.name, contender.setting.precision]
    if not contender.visits:
        return [*named, f"not measured: {_one_cell(contender.problem)}", *[""] * (len(HEAD) - NAMED - 1)]
    passed, saturated, half = contender.over_rounds()
    ratio = contender.ratio_to(yardstick) if yardstick is not None else None
    failed = sum(sum(summary.errors.values()) for summary in (passed, saturated, half))
    end = f", then {_one_cell(contender.problem)}" if contender.problem else ""
    starts = sorted(visit.start_seconds for visit in contender.visits)
    return [
        *named,
        f"{saturated.throughput:.1f}",
        factor(ratio),
        milliseconds(half.p50_seconds),
        milliseconds(half.p99_seconds),
        size(max(visit.peak_rss_bytes or 0 for visit in contender.visits) or None),
        f"{starts[len(starts) // 2]:.1f}",
        share(passed.accuracy),
        share(passed.agreement),
        share(half.agreement),
        f"{failed}{end}",
    ]


def _contender(contender: Contender, yardstick: Contender | None) -> dict[str, Any]:
    medians = None
    if contender.visits:
        names = ("every_sentence_once", "saturated", "half_load")
        medians = dict(zip(names, map(asdict, contender.over_rounds()), strict=True))
    return {
        "server": contender.peer.title,
        "version": contender.version,
        "setting": contender.setting.name,
        "precision": contender.setting.precision,
        "about": contender.setting.about,
        "command": contender.command,
        "environment": dict(contender.setting.environment),
        "packages": dict(contender.packages),
        "problem": contender.problem,
        "ratio": contender.ratio_to(yardstick) if yardstick is not None else None,
        "medians": medians,
        "visits": [asdict(visit) for visit in contender.visits],
    }


def _generator(warnings: Sequence[str]) -> str:
    if not warnings:
        return "The load generator kept up in every run."
    lines = [f"> - {warning}" for warning in warnings]
    return "\n".join(["> **The load generator was a bottleneck:**", ">", *lines])


def _one_cell(problem: str | None) -> str:
    """The reason as a table's cell takes it."""
    return (problem or "").replace("|", "\\|")[:200]
