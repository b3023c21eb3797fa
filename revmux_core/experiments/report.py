"""An experiment's results as Markdown and as a picture: accuracy and agreement against measured speed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revmux_core.experiments.matrix import CASCADE, PLAIN, Experiment, Run
from revmux_core.multiplexing import EARLY_EXIT


@dataclass(frozen=True, slots=True)
class Row:
    """One contender: means over its seeds. Shares are of the plain model's accuracy, speed-ups over its path."""

    run: Run
    name: str
    seeds: int
    ideal_speedup: float
    speedup: float
    accuracy: float
    accuracy_spread: float
    share: float
    agreement: float
    agreement_worst: float
    agreement_without_composite: float | None
    partner_sensitivity: float
    training_minutes: float


def rows_of(results: Sequence[dict[str, Any]]) -> list[Row]:
    """Results averaged over seeds, in the order in which contenders first appear."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(Run.model_validate(result["run"]).contender.key, []).append(result)
    rows = []
    for group in groups.values():

        def mean(key: str, group: list[dict[str, Any]] = group) -> float:
            return statistics.fmean(result[key] for result in group)

        run = Run.model_validate(group[0]["run"]).contender
        accuracies = [result["accuracy"] for result in group]
        rows.append(
            Row(
                run=run,
                name=contender_name(run, group[0]["point"]),
                seeds=len(group),
                ideal_speedup=mean("ideal_speedup"),
                speedup=mean("speedup"),
                accuracy=mean("accuracy"),
                accuracy_spread=statistics.pstdev(accuracies),
                share=statistics.fmean(result["accuracy"] / result["plain_accuracy"] for result in group),
                agreement=mean("agreement"),
                agreement_without_composite=mean("agreement_without_composite") if run.width > 1 else None,
                agreement_worst=min(result["agreement_worst"] for result in group),
                partner_sensitivity=mean("partner_sensitivity"),
                training_minutes=mean("training_seconds") / 60,
            )
        )
    return rows


def contender_name(run: Run, point: str) -> str:
    """How a report calls a contender: the method, and what sets it apart from the method's usual settings."""
    usual = Run.model_fields
    parts = [run.method]
    if run.width > 1 or run.method in (EARLY_EXIT, CASCADE):
        parts.append(point)
    if run.speedup is not None:
        parts.append(f"aimed at {run.speedup:g}")
    if run.layers is not None:
        parts.append(f"layers {'.'.join(map(str, run.layers))}")
    if run.int8:
        parts.append("int8")
    if run.delta_rank:
        parts.append(f"deltas of rank {run.delta_rank}")
    for name in ("ce", "kl", "infonce"):
        value = getattr(run, name)
        if value != usual[name].default and run.method != PLAIN:
            parts.append(f"{name} {value:g}")
    if run.join_rounds:
        parts.append("joined text")
    return ", ".join(parts)


def write_report(experiment: Experiment, results: Sequence[dict[str, Any]], out: Path) -> Path:
    """Writes `report.md` and, per task, `TASK.png` into `out`; returns the report's path."""
    rows = rows_of(results)
    machines = sorted({f"{result['machine']}, trained in {result['precision']}" for result in results})
    lines = [
        f"# {experiment.title}",
        "",
        f"Model: `{experiment.model}`. Accuracy and agreement are means over {experiment.draws} draws of partners and "
        "over seeds; share is of the plain model's accuracy on the same text; speed-up is the engine's, float32, "
        "relative to the plain path in the same run, and ideal counts layer compute only. "
        f"{'; '.join(machines)}.",
    ]
    if any(row.run.method == CASCADE for row in rows):
        lines += [
            "",
            "A cascade answers a sample at the first of its exits that is sure of it, and plainly where none is. Each "
            "half of the held-out text has the threshold with which the other half reached the ideal speed-up aimed "
            "at; no label and no plain answer sets it.",
        ]
    for task in experiment.tasks:
        own = [row for row in rows if row.run.task == task]
        if not own:
            continue
        first = next(result for result in results if result["run"]["task"] == task)
        lines += [
            "",
            f"## {task}",
            "",
            f"Plain accuracy {first['plain_accuracy']:.1%} on {first['samples']} held-out samples.",
            "",
            f"![{task}]({task}.png)",
            "",
            "| contender | ideal | measured | accuracy | share of plain | agreement (worst draw) | "
            "without its composite | label depends on partner | seeds | epochs | minutes of training |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(_line(row) for row in sorted(own, key=lambda row: (row.ideal_speedup, -row.share))),
        ]
        plot(own, out / f"{task}.png")
    path = out / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _line(row: Row) -> str:
    without = row.agreement_without_composite
    spread = f" ± {row.accuracy_spread:.1%}" if row.seeds > 1 else ""
    return (
        f"| {row.name} | {row.ideal_speedup:.2f} | {row.speedup:.2f} | {row.accuracy:.1%}{spread} | {row.share:.1%} | "
        f"{row.agreement:.1%} ({row.agreement_worst:.1%}) | "
        f"{'-' if without is None else f'{without:.1%}'} | {row.partner_sensitivity:.1%} | {row.seeds} | "
        f"{row.run.epochs:g} | {row.training_minutes:.1f} |"
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Two panels: share of the plain accuracy, and agreement, against measured speed-up; a cross marks the ideal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    methods = list(dict.fromkeys(row.run.method for row in rows))
    for axes, field, title in zip(
        panels, ("share", "agreement"), ("Share of the plain accuracy", "Agreement with the plain model"), strict=True
    ):
        for number, method in enumerate(methods):
            own = sorted((row for row in rows if row.run.method == method), key=lambda row: row.speedup)
            color = f"C{number}"
            values = [getattr(row, field) for row in own]
            axes.plot([row.speedup for row in own], values, "o", color=color, label=method)
            for row, value in zip(own, values, strict=True):
                axes.plot([row.speedup, row.ideal_speedup], [value, value], color=color, alpha=0.3, linewidth=1)
                axes.plot([row.ideal_speedup], [value], "x", color=color, alpha=0.5)
        axes.set_xlabel("speed-up over the plain path: measured (dot), ideal (cross)")
        axes.set_title(title)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
