"""Two pages of small plots: the engine's and the server's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.scaling.part import ENGINE_PARTS, SERVED_PARTS, Part

# Series in their order; the plain one is the first of them everywhere.
PALETTE = ("#9aa5b1", "#1f6feb", "#57a773", "#d98b2b", "#8957e5")
AXES = {
    "length": "tokens a text",
    "batch": "texts a batch",
    "width": "operating point",
    "classes": "classes",
    "connections": "connections, one text a request",
    "inputs": "texts a request, one connection",
}
MEBIBYTE = 2**20


def plot_engine(parts: Mapping[str, Part], path: Path) -> bool:
    """A column for each of the engine's parts there are: sequences and tokens a second, and memory. Says whether there
    was any to draw."""
    there = [part for part in ENGINE_PARTS if part in parts]
    if not there:
        return False
    figure = Figure(figsize=(1 + 3.1 * len(there), 7.5), layout="constrained")
    panels = figure.subplots(3, len(there), squeeze=False)
    for column, part in zip(panels.T, there, strict=True):
        for axes, field, unit, scale in (
            (column[0], "sequences_per_second", "sequences/s", 1),
            (column[1], "tokens_per_second", "tokens/s", 1),
            (column[2], "working_bytes", "memory of a run, MiB", 1 / MEBIBYTE),
        ):
            if part == "width":
                _bars(axes, parts[part].rows, field, scale)
            else:
                # A straight line where twice the tokens are half the sequences.
                straight = part == "length" and field == "sequences_per_second"
                _lines(axes, parts[part].rows, [(field, "-")], scale, logarithmic=straight)
            axes.set_ylabel(unit)
        column[0].set_title(part)
        column[2].set_xlabel(AXES[part])
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    return True


def plot_served(parts: Mapping[str, Part], path: Path) -> bool:
    """A row for each of the server's parts there are: texts a second, latency, memory. Says whether there was any."""
    there = [part for part in SERVED_PARTS if part in parts]
    if not there:
        return False
    figure = Figure(figsize=(11, 0.6 + 2.9 * len(there)), layout="constrained")
    for row, part in zip(figure.subplots(len(there), 3, squeeze=False), there, strict=True):
        rows = parts[part].rows
        _lines(row[0], rows, [("texts_per_second", "-")])
        row[0].set_ylabel("texts/s")
        _lines(row[1], rows, [("p50_seconds", "--"), ("p99_seconds", "-")], 1000, logarithmic=True)
        row[1].set_ylabel("ms (p50 dashed, p99)")
        _lines(row[2], rows, [("peak_rss_bytes", "-")], 1 / MEBIBYTE)
        row[2].set_ylabel("server's peak memory, MiB")
        for axes in row:
            axes.set_xlabel(AXES[part])
        row[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    return True


def _lines(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    fields: Sequence[tuple[str, str]],
    scale: float = 1,
    logarithmic: bool = False,
) -> None:
    """A line for each series and field; `fields` come with their styles."""
    for series, color in _colors(rows).items():
        own = [row for row in rows if row["series"] == series]
        for number, (field, style) in enumerate(fields):
            values = [math.nan if row[field] is None else scale * row[field] for row in own]
            name = series if number == 0 else None
            axes.plot([row["x"] for row in own], values, style, marker="o", ms=3, color=color, label=name)
    axes.set_xscale("log")
    ticks = sorted({row["x"] for row in rows})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    _quiet(axes)


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]], field: str, scale: float) -> None:
    values = [scale * (row[field] or 0) for row in rows]
    colors = _colors(rows)
    axes.bar([row["x"] for row in rows], values, color=[colors[row["series"]] for row in rows])
    axes.tick_params(axis="x", labelrotation=45, labelsize=8)
    _quiet(axes)


def _colors(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return dict(zip(dict.fromkeys(row["series"] for row in rows), itertools.cycle(PALETTE), strict=False))


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.2)
