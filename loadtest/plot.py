"""The report's picture: throughput by concurrency, latency percentiles by load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.measure import Summary
from loadtest.scenarios import Result

COLORS = {"plain": "#9aa5b1", "fast": "#1f6feb"}
BAR = 0.38
# Loads from which on they are drawn as a line, not as bars.
SWEEP = 4


def plot(result: Result, path: Path) -> None:
    """Writes a PNG with two panels of paired bars, every axis from zero."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)

    closed = [comparison.sides for comparison in result.closed]
    _bars(
        left,
        [comparison.name for comparison in result.closed],
        {side: [sides[side].throughput for sides in closed] for side in COLORS},
    )
    for place, comparison in enumerate(result.closed):
        if comparison.speedup is not None:
            top = max(summary.throughput for summary in comparison.sides.values())
            left.annotate(
                f"{comparison.speedup:.2f}x",
                (place, top),
                (0, 14),
                textcoords="offset points",
                ha="center",
                weight="bold",
            )
    left.set_title("Throughput, closed loop")
    left.set_ylabel("requests per second")

    if len(result.open) > SWEEP:
        _sweep(right, result)
    else:
        _percentiles(right, [(comparison.name, comparison.sides) for comparison in result.open])
    figure.savefig(path, dpi=150)


def _percentiles(axes: Axes, opened: Sequence[tuple[str, dict[str, Summary]]]) -> None:
    percentiles = {"p50": "p50_seconds", "p95": "p95_seconds", "p99": "p99_seconds"}
    _bars(
        axes,
        [f"{percentile}\n{name if percentile == 'p95' else ''}" for name, _ in opened for percentile in percentiles],
        {
            side: [1000 * (getattr(sides[side], field) or 0.0) for _, sides in opened for field in percentiles.values()]
            for side in COLORS
        },
    )
    for place in range(1, len(opened)):
        axes.axvline(3 * place - 0.5, color="#d0d7de", linewidth=1)
    axes.set_title("Latency, open loop (load as a share of plain capacity)")
    axes.set_ylabel("milliseconds")


def _sweep(axes: Axes, result: Result) -> None:
    """p50 and p99 of both servers over load."""
    for side, color in COLORS.items():
        loads = [(comparison.rate or 0.0) / result.capacity for comparison in result.open]
        summaries = [comparison.sides[side] for comparison in result.open]
        for field, style in (("p50_seconds", "--"), ("p99_seconds", "-")):
            values = [1000 * (getattr(summary, field) or math.nan) for summary in summaries]
            axes.plot(loads, values, style, marker="o", color=color, label=f"{side}, {field[:3]}")
    axes.set_yscale("log")
    axes.set_xlabel("arrivals as a share of plain capacity")
    axes.set_ylabel("milliseconds")
    axes.set_title("Latency over load, open loop")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, loc="upper left", fontsize=8)


def _bars(axes: Axes, groups: Sequence[str], values: dict[str, list[float]]) -> None:
    for offset, (side, heights) in zip((-BAR / 2, BAR / 2), values.items(), strict=True):
        bars = axes.bar([place + offset for place in range(len(groups))], heights, BAR, label=side, color=COLORS[side])
        axes.bar_label(bars, fmt=lambda height: f"{height:.0f}" if height >= 10 else f"{height:.1f}", fontsize=8)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, 1.2 * max(height for heights in values.values() for height in heights) or 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
