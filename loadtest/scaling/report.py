"""Parts on disk: JSON that runs of single parts are merged into, and the page that is written from all there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.measure import EXPECTED_STATUSES
from loadtest.report import milliseconds, size, table
from loadtest.scaling.part import ENGINE_PARTS, PARTS, SERVED_PARTS, Part
from loadtest.scaling.plot import AXES, plot_engine, plot_served

JSON, PAGE = "scaling.json", "scaling.md"

TITLES = {
    "length": "Length of texts",
    "batch": "Texts a batch",
    "width": "Operating points of the bundle",
    "classes": "Classes",
    "connections": "Connections",
    "inputs": "Texts a request",
    "start": "Start, and nothing to do",
}


def read(folder: Path) -> dict[str, Part]:
    """The parts that were measured before, in the order of `PARTS`; none where nothing was."""
    path = folder / JSON
    stored = json.loads(path.read_text()) if path.is_file() else {}
    return {name: Part(**stored[name]) for name in PARTS if name in stored}


def write(parts: Mapping[str, Part], folder: Path) -> None:
    """Writes `scaling.json`, `scaling.md`, and `engine.png` and `served.png` where there is something to draw."""
    parts = {name: parts[name] for name in PARTS if name in parts}
    document = {name: asdict(part) for name, part in parts.items()}
    (folder / JSON).write_text(json.dumps(document, indent=1) + "\n")
    pictures = [
        f"![{alt}]({name})"
        for draw, name, alt in (
            (plot_engine, "engine.png", "The engine's throughput and memory"),
            (plot_served, "served.png", "The server's throughput, latency and memory"),
        )
        if draw(parts, folder / name)
    ]
    (folder / PAGE).write_text(to_markdown(parts, pictures))


def unexpected_errors(part: Part) -> int:
    """Requests that got neither an answer nor a 429 or 504."""
    counts = [(status, count) for row in part.rows for status, count in row.get("errors", {}).items()]
    return sum(count for status, count in counts if status not in EXPECTED_STATUSES)


def to_markdown(parts: Mapping[str, Part], pictures: Sequence[str]) -> str:
    sections = [
        "# How cost grows",
        "Points of a curve are measured in turn, several rounds (A B A B); figures are medians over rounds. *Memory "
        "of a run* is what a pass over all texts holds beyond the weights and libraries. A server's memory is the sum "
        "of the peaks of its processes in the first round, which goes from small to large. Throughput counts to the "
        "last answer. *plain* is `--width 1`, *fast* `--width max`.",
        *pictures,
    ]
    for name, part in parts.items():
        machine = part.machine
        sections += [
            f"## {TITLES[name]}",
            f"`{part.command}`",
            f"{machine['cpu']}, {machine['cores']} cores, {size(machine['memory_bytes'])} of memory "
            f"({machine['system']}, Python {machine['python']}).",
            _table(name, part.rows),
            *_warnings(part.rows),
        ]
    return "\n\n".join(sections) + "\n"


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    cells: list[tuple[str, ...]]
    if name in ENGINE_PARTS:
        head: tuple[str, ...] = (AXES[name], "path", "sequences/s", "tokens/s", "memory of a run")
        cells = [
            (
                f"{row['x']}",
                row["series"],
                f"{row['sequences_per_second']:,.1f}",
                f"{row['tokens_per_second']:,.0f}",
                size(row["working_bytes"]),
            )
            for row in rows
        ]
    elif name in SERVED_PARTS:
        head = (AXES[name], "server", "texts/s", "p50 ms", "p99 ms", "peak memory", "requests", "errors")
        cells = [
            (
                f"{row['x']}",
                row["series"],
                f"{row['texts_per_second']:,.1f}",
                milliseconds(row["p50_seconds"]),
                milliseconds(row["p99_seconds"]),
                size(row["peak_rss_bytes"]),
                f"{row['requests']}",
                ", ".join(f"{count} x {status}" for status, count in sorted(row["errors"].items())) or "none",
            )
            for row in rows
        ]
    else:
        head = ("server", "ready after, s", "cores used while idle", "peak memory")
        cells = [
            (
                f"`{row['series']}`",
                f"{row['start_seconds']:.1f}",
                "-" if row["idle_cores"] is None else f"{row['idle_cores']:.2%}",
                size(row["peak_rss_bytes"]),
            )
            for row in rows
        ]
    return table(head, cells)


def _warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for the points at which the load generator was short of something itself."""
    limits = [
        f"{row['x']}, {row['series']}: {', '.join(row['generator_limits'])}"
        for row in rows
        if row.get("generator_limits")
    ]
    return [f"**The load generator was a bottleneck** at {'; '.join(limits)}."] if limits else []
