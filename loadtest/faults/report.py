"""A page of what was broken and what clients saw."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.faults.stage import Finding
from loadtest.machine import Machine

PAGE, FIGURES = "faults.md", "faults.json"

HOW = """\
Every case starts a server of its own, drives it with a closed loop of 16 clients and breaks something meanwhile.
Requests are numbered and ask for exact answers; what the plain model answers to each text was asked before anything
broke, and no two texts have the same answer, so an answer is checked to be its own request's by its number and by its
probabilities. A client repeats what is answered 429, 503 or 504, and what a broken connection leaves open, as the
documentation asks.

- **Attempts** are counted by what clients saw: an HTTP status, or what became of the connection.
- **Failed** is a request with a 500, which no repeating would change.
- **Lost** is a request that had no answer after 30 s of repeating, **twice** an answer that nobody had asked for or
  asked for any more, **wrong** one of another request, one with other probabilities than the plain model's, or a 500
  for a text that the model can answer.
- **Full service after** is how long after the fault the last attempt was over that failed or took more than a second,
  and the processes that were gone were back and ready. It counts for as long as the fault itself lasts.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """One case, as the page has it. `outcome` is passed, failed, or skipped."""

    name: str
    outcome: str
    did: str
    attempts: dict[str, int]
    counts: dict[str, int]
    seconds: float | None
    notes: list[str]


COUNTS = ("sent", "answered", "failed", "lost", "twice", "wrong")


def result_of(name: str, finding: Finding) -> Result:
    attempts = sum((Counter(tally.statuses()) for tally in finding.tallies), Counter[str]())
    counts = {count: sum(getattr(tally, count) for tally in finding.tallies) for count in COUNTS}
    outcome = "failed" if finding.problems else "passed"
    return Result(
        name,
        outcome,
        finding.did,
        dict(attempts),
        counts if finding.tallies else {},
        finding.seconds,
        finding.notes + finding.problems,
    )


def skipped(name: str, reason: str) -> Result:
    return Result(name, "skipped", reason, {}, {}, None, [])


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Results of earlier runs, by case."""
    path = folder / FIGURES
    found: dict[str, dict[str, Any]] = json.loads(path.read_bytes()) if path.is_file() else {}
    return found


def write(results: Mapping[str, dict[str, Any]], machine: Machine, command: str, folder: Path) -> None:
    """Writes the page, and its figures as JSON."""
    (folder / FIGURES).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    rows = [Result(**fields) for fields in results.values()]
    (folder / PAGE).write_text(page(rows, machine, command), encoding="utf-8")


def page(results: Sequence[Result], machine: Machine, command: str) -> str:
    where = f"{machine.cpu}, {machine.cores} core{'s' * (machine.cores != 1)} for clients and server, {machine.system}"
    lines = ["# Faults", "", HOW, f"`{command}`, on {where}.", ""]
    lines += [
        "| case | | requests | answered | failed | lost | twice | wrong | attempts | full service after |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    lines += [_row(one) for one in results]
    lines += ["", "What was broken, and what else was seen:", ""]
    for one in results:
        lines.append(f"- **{one.name}**: {one.did}." + "".join(f"\n  - {note}" for note in one.notes))
    return "\n".join(lines) + "\n"


def _row(one: Result) -> str:
    counts = [f"{one.counts[count]:,}" if one.counts else "-" for count in COUNTS]
    attempts = ", ".join(f"{status}: {count:,}" for status, count in sorted(one.attempts.items())) or "-"
    seconds = "-" if one.seconds is None else f"{one.seconds:.1f} s"
    return f"| {' | '.join([one.name, one.outcome, *counts, attempts, seconds])} |"
