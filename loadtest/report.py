"""Writes a comparison as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtest.machine import Machine
from loadtest.measure import (
    MAX_CPU_SHARE,
    MAX_LATENESS_SECONDS,
    MAX_LOOP_LAG_SECONDS,
    Summary,
    generator_limits,
)
from loadtest.plot import plot
from loadtest.scenarios import Comparison, Plan, Result


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What one server cost: seconds until ready, the most memory it held in bytes (None where unknown), and the share
    of padding in what it computed."""

    width: str
    start_seconds: float
    peak_rss_bytes: int | None
    info: dict[str, Any]
    padding_ratio: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a report tells; `data` is the name of the file that the `sentences` came from."""

    bundle: str
    data: str
    sentences: int
    machine: Machine
    plain: ServerFacts
    fast: ServerFacts
    plan: Plan
    result: Result

    @property
    def warnings(self) -> list[str]:
        """One for every scenario and side in which the load generator was the bottleneck."""
        return [
            f"{comparison.name}, {side}: {', '.join(limits)}"
            for comparison in (*self.result.closed, *self.result.open)
            for side, summary in comparison.sides.items()
            if (limits := generator_limits(summary))
        ]


def write(report: Report, folder: Path) -> None:
    """Writes `report.md`, `report.json` and `report.png`, which the Markdown shows, into `folder`."""
    (folder / "report.json").write_text(json.dumps(to_json(report), indent=2) + "\n")
    (folder / "report.md").write_text(to_markdown(report))
    plot(report.result, folder / "report.png")


def to_json(report: Report) -> dict[str, Any]:
    """The whole report as JSON types: seconds, bytes and shares, every round beside the medians."""

    def scenario(comparison: Comparison) -> dict[str, Any]:
        return {
            "name": comparison.name,
            "rate": comparison.rate,
            "speedup": comparison.speedup,
            "plain": asdict(comparison.sides["plain"]),
            "fast": asdict(comparison.sides["fast"]),
            "rounds": {
                "plain": [asdict(summary) for summary in comparison.plain],
                "fast": [asdict(summary) for summary in comparison.fast],
            },
        }

    result = report.result
    return {
        "bundle": report.bundle,
        "data": report.data,
        "sentences": report.sentences,
        "machine": asdict(report.machine),
        "servers": {"plain": asdict(report.plain), "fast": asdict(report.fast)},
        "plan": asdict(report.plan),
        "capacity": result.capacity,
        "once": scenario(result.once),
        "closed_loop": [scenario(comparison) for comparison in result.closed],
        "open_loop": [scenario(comparison) for comparison in result.open],
        "unexpected_errors": result.unexpected_errors,
        "warnings": report.warnings,
    }


def _points(info: dict[str, Any]) -> str:
    """The names of the operating points that a server says it serves."""
    return ", ".join(f"`{point['name']}`" for point in info["points"])


def to_markdown(report: Report) -> str:
    machine, plan, result = report.machine, report.plan, report.result
    closed = [row for comparison in result.closed for row in _rows(comparison, factor(comparison.speedup))]
    opened = [row for comparison in result.open for row in _rows(comparison, f"{comparison.rate:.1f}/s")]
    parts = [
        f"# Load test of `{report.bundle}`: fast against plain",
        f"{report.sentences} sentences of `{report.data}`, one a request. Both servers and the load generator ran on "
        f"{machine.cpu}, {machine.cores} cores, {size(machine.memory_bytes)} of memory ({machine.system}, Python "
        f"{machine.python}). The servers were driven one at a time, alternately, with the same sentences: "
        f"{plan.rounds} rounds of {plan.seconds:g} s each. Figures are medians over rounds; errors are sums.",
        "![Throughput by concurrency and latency by load](report.png)",
        _generator_verdict(report),
        "## Answers",
        "Every sentence once. Agreement is with what the plain server answers to the same sentence.",
        table(
            ("server", "accuracy", "agreement", "escalated", "answered at", "errors"),
            [(side, *_answers(summary)) for side, summary in result.once.sides.items()],
        ),
        "## Closed loop: throughput",
        "A fixed number of requests in flight. The speed-up is the median of the rounds' ratios.",
        table(("in flight", "server", "requests/s", "speed-up", *_COLUMNS), closed),
        "## Open loop: latency",
        f"Poisson arrivals at a share of the plain server's capacity, {result.capacity:.1f} requests/s. Latency "
        "counts from the moment a request was due, whether or not it could be sent then. A request had "
        f"{plan.timeout_ms / 1000:g} s: 429 is the answer to one that could hardly be answered in time, 504 to one "
        "that was not.",
        table(("load", "server", "requests/s", "due", *_COLUMNS), opened),
        "## Servers",
        table(
            ("server", "`--width`", "operating points", "padding", "ready after", "peak memory"),
            [
                (
                    side,
                    facts.width,
                    _points(facts.info),
                    share(facts.padding_ratio),
                    f"{facts.start_seconds:.1f} s",
                    size(facts.peak_rss_bytes),
                )
                for side, facts in (("plain", report.plain), ("fast", report.fast))
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


_COLUMNS = ("p50 ms", "p95 ms", "p99 ms", "accuracy", "agreement", "escalated", "answered at", "errors")


def _rows(comparison: Comparison, third: str) -> Iterable[tuple[str, ...]]:
    """A row for each server; what concerns both (`third`) stands in the fast one's."""
    for side, summary in comparison.sides.items():
        yield (
            comparison.name if side == "plain" else "",
            side,
            f"{summary.throughput:.1f}",
            third if side == "fast" or comparison.rate else "",
            *(milliseconds(s) for s in (summary.p50_seconds, summary.p95_seconds, summary.p99_seconds)),
            *_answers(summary),
        )


def _answers(summary: Summary) -> tuple[str, ...]:
    errors = ", ".join(f"{count} x {status}" for status, count in sorted(summary.errors.items()))
    answers = sum(summary.points.values())
    points = [f"`{name}` {count / answers:.0%}" for name, count in sorted(summary.points.items())]
    return (
        share(summary.accuracy),
        share(summary.agreement),
        share(summary.escalation_rate),
        ", ".join(points) or "-",
        errors or "none",
    )


def _generator_verdict(report: Report) -> str:
    limits = (
        f"event loop at most {1000 * MAX_LOOP_LAG_SECONDS:.0f} ms late and sends at most "
        f"{1000 * MAX_LATENESS_SECONDS:.0f} ms late (p99), at most {MAX_CPU_SHARE:.0%} of a core"
    )
    if not report.warnings:
        return f"The load generator kept up in every run (limits: {limits})."
    return "\n".join(
        [
            "> **Warning: the load generator was a bottleneck.** The servers may be faster than these runs show "
            f"(limits: {limits}):",
            ">",
            *(f"> - {warning}" for warning in report.warnings),
        ]
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"


def share(part: float | None) -> str:
    return "-" if part is None else f"{part:.1%}"


def factor(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def size(count: int | None) -> str:
    """`count` bytes."""
    return "-" if count is None else f"{count / 2**20:,.0f} MiB"
