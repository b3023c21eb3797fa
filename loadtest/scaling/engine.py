"""The engine alone, by `revmux bench`: what it does as texts, batches, widths and classes grow."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of every width there is a composite of random texts; the bundle's own points are the part `width`.
WIDTHS = (2, 4)
# Tokens of a text where something else grows: about the mean of SST-2's sentences.
LENGTH = 32
BENCH_SECONDS = 1800.0


class BenchError(RuntimeError):
    """`revmux bench` failed; the message ends with what it said."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What each part goes through; `rows` are texts a batch. `shape` is that of the random weights, which all parts
    but `width` take."""

    shape: str
    lengths: Sequence[int]
    rows: Sequence[int]
    classes: Sequence[int]

    def options(self, part: str) -> list[str]:
        """What `revmux bench` is asked for a part other than `width`."""
        grown: Mapping[str, tuple[str, Sequence[int]]] = {
            "length": ("--length", self.lengths),
            "batch": ("--batch-tokens", [LENGTH * rows for rows in self.rows]),
            "classes": ("--classes", self.classes),
        }
        flag, values = grown[part]
        fixed = [] if part == "length" else ["--length", str(LENGTH)]
        widths = [text for width in WIDTHS for text in ("--width", str(width))]
        return ["--shape", self.shape, *fixed, *widths, *(text for value in values for text in (flag, str(value)))]


def measure(part: str, options: Sequence[str], rounds: int, log: Path) -> list[dict[str, Any]]:
    """Rows of a part, see `Part`. Raises `BenchError`."""
    command = [sys.executable, "-m", "server.cli", "bench", *options, "--rounds", str(rounds), "--json"]
    with log.open("w") as errors:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, timeout=BENCH_SECONDS, text=True)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"revmux bench took more than {BENCH_SECONDS:.0f} s; see {log}") from error
    if done.returncode:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise BenchError(f"revmux bench ended with {done.returncode}:\n{said}")
    return read(part, json.loads(done.stdout))


def read(part: str, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a part from what `revmux bench --json` printed."""
    grown: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
        "length": lambda row: round(row["mean_tokens"]),
        "batch": lambda row: round(row["batch_tokens"] / row["mean_tokens"]),
        "width": lambda row: row["point"],
        "classes": lambda row: row["classes"],
    }
    return [
        {
            "x": grown[part](row),
            "series": series or ("plain" if row["width"] == 1 else f"width {row['width']}"),
            "sequences_per_second": row["sequences_per_second"],
            "tokens_per_second": row["sequences_per_second"] * row["mean_tokens"],
            "working_bytes": row["working_bytes"],
        }
        for series, rows in ((None, report["widths"]), ("early exit", report["early_exits"]))
        for row in rows
    ]
