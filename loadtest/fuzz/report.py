"""The report of a fuzzing run, and the requests that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.fuzz.drive import Tally
from loadtest.fuzz.openapi import CHECKS

SHOWN_FAILURES = 20


@dataclass(frozen=True, slots=True)
class Report:
    """`by_schema` has the answers to Schemathesis's requests by path and status, and `conforms` says whether its checks
    held; `tally` has the rest. `memory` is in bytes, from time to time while they came."""

    bundle: str
    info: Mapping[str, Any]
    by_schema: dict[str, Counter[int]]
    conforms: bool
    tally: Tally
    seconds: float
    connections: int
    memory: Sequence[int]

    @property
    def passed(self) -> bool:
        return self.conforms and not self.tally.failures


def write(report: Report, out: Path) -> None:
    """Writes `report.md`, and each request that failed with its answer into `failures/`."""
    (out / "report.md").write_text(_page(report))
    for number, failure in enumerate(report.tally.failures[:SHOWN_FAILURES]):
        (out / "failures").mkdir(exist_ok=True)
        (out / "failures" / f"{number}.request").write_bytes(failure.sent)
        (out / "failures" / f"{number}.answer").write_bytes(failure.answer)


def _page(report: Report) -> str:
    tally, info = report.tally, report.info
    schema = sum(sum(counter.values()) for counter in report.by_schema.values())
    held = [f"{value / 2**20:.0f}" for value in report.memory[:: max(len(report.memory) // 8, 1)]]
    problems = Counter(failure.problem for failure in tally.failures)
    lines = [
        "# Bad input",
        "",
        f"`{Path(report.bundle).name}`, {info['problem_type']}, widths {', '.join(map(str, info['widths']))}, backend "
        f"{info['backend']} in {info['dtype']}. {schema + tally.requests} requests in all; "
        f"**{'nothing was found' if report.passed else 'something was found'}**.",
        "",
        "## Schemathesis over the OpenAPI document",
        "",
        f"Checks: {', '.join(CHECKS)}. {'All hold.' if report.conforms else 'Not all hold: see `schemathesis.log`.'}",
        "",
        *_table(report.by_schema),
        "",
        "## Odd texts and bodies",
        "",
        f"{tally.requests} requests over {report.connections} connections in {report.seconds:.0f} s, "
        f"{sum(tally.probes.values())} of them probes whose answers are known. The slowest answer took "
        f"{tally.slowest:.1f} s. Memory of the server over that time, in MiB: {', '.join(held)}.",
        "",
        *_table(tally.statuses | {"probes": tally.probes}),
        "",
        "| failure | requests |",
        "| --- | ---: |",
        *([f"| {problem} | {count} |" for problem, count in problems.most_common()] or ["| none | 0 |"]),
        "",
    ]
    return "\n".join(lines)


def _table(by_path: Mapping[str, Counter[int]]) -> list[str]:
    statuses = sorted({status for counter in by_path.values() for status in counter})
    names = [str(status or "none") for status in statuses]
    rows = [
        f"| `{path}` | " + " | ".join(str(counter[status]) for status in statuses) + " |"
        for path, counter in sorted(by_path.items())
    ]
    return [f"| path | {' | '.join(names)} |", "| --- |" + " ---: |" * len(statuses), *rows]
