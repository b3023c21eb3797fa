"""Measures a bundle and writes its model card."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from revmux_core.benchmark import Load, measure_speed
from revmux_core.bundle import Bundle
from revmux_core.evaluation import draws_at, evaluate, plain_answers
from revmux_core.manifest import Calibration, Manifest, record_measurements
from revmux_core.offline import BATCH_TOKENS
from revmux_core.plan import Tokens
from revmux_core.points import OperatingPoint
from revmux_core.problems import MultiLabel, Problem, Regression

_ROUNDS = 5


def measure_and_write(
    folder: Path,
    bundle: Bundle,
    samples: Sequence[Tokens],
    targets: np.ndarray | None,
    data: str,
    draws: int,
    progress: Callable[[], None] = lambda: None,
) -> Manifest:
    """Evaluates and times every point of the bundle in `folder` on held-out samples, and stores and words the result.

    `data` names the samples on the card. `progress` is called after every draw and every round of timing.
    """
    layers = bundle.classifier.backbone.num_layers
    points = sorted(bundle.classifier.points, key=lambda point: -point.ideal_cost(layers))
    load = Load(bundle.classifier, samples, bundle.tokenizer.pad_id, BATCH_TOKENS)
    [speeds] = measure_speed([load], points, _ROUNDS, progress)
    reference = plain_answers(bundle.classifier, samples, bundle.tokenizer.pad_id)
    evaluations = [
        evaluate(
            bundle.classifier,
            point,
            samples,
            targets,
            bundle.tokenizer.pad_id,
            draws_at(point, draws),
            progress=progress,
            reference=reference,
        )
        for point in points
    ]
    stored = {entry.point.name: (folder / entry.file).stat().st_size for entry in bundle.manifest.adapters}
    measured = {
        "data": data,
        "machine": machine(),
        "points": [
            evaluation.to_json()
            | {
                "speedup": round(speed.speedup, 3),
                "ideal_speedup": round(speed.ideal_speedup, 3),
                "bytes": stored.get(evaluation.point, 0),
            }
            for evaluation, speed in zip(evaluations, speeds, strict=True)
        ],
    }
    manifest = record_measurements(folder, measured)
    write_card(folder, manifest)
    return manifest


def write_card(folder: Path, manifest: Manifest) -> None:
    """Writes the model card of a bundle that was measured."""
    (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")


def machine() -> str:
    """The processor and the number of cores, as figures should name them."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores"


def model_card(manifest: Manifest) -> str:
    """The card in Markdown; every figure on it comes from the manifest."""
    measured, metric = manifest.measured, manifest.problem.metrics[0]
    lines = [
        f"# {manifest.name}",
        "",
        f"{_answers(manifest)}, from 1 to {max([1, *(p.width for p in manifest.points)])} texts a sequence.",
        "",
        f"- Base model: `{manifest.base.model_id}`, frozen, not included; `model.safetensors` has SHA-256 "
        f"`{manifest.base.sha256}`.",
        f"- Tuned on the task here: {_tuned(manifest)}.",
        f"- Longest input: {manifest.max_tokens} tokens; longer ones are cut.",
        "",
        "## What each operating point costs and gains",
        "",
        f"Measured on {measured['data']}, {measured['points'][0]['samples']} samples, "
        f"{max(row['draws'] for row in measured['points'])} reshuffles of partners; speed on {measured['machine']}, "
        "float32, relative to the plain path in the same run. Ideal counts layer compute only. An answer agrees if it "
        f"has {manifest.problem.same}.",
        "",
        f"| point | texts a sequence | ideal speed-up | measured | {metric.replace('_', ' ')} (worst draw) | share of "
        "plain | agreement with plain (worst) | without its composite | answer depends on partner | stored |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_row(row, manifest.num_layers, metric) for row in measured["points"]),
        "",
        *(line for calibration in manifest.calibrations for line in _certified(calibration, manifest.problem)),
        "## Training",
        "",
        *_trained(manifest.training),
        "",
        "## Limits",
        "",
        "The plain point is the untouched model. An early exit answers from its first layers and no other text can "
        "change its answer. A multiplexed answer depends a little on the texts it shares a sequence with; the table "
        "says how often that changed the answer. Without its composite it has only its own prefill layers to go by. "
        "Figures hold for text like the data above; measure agreement on your own with `revmux eval`, which needs no "
        "labels.",
        "",
    ]
    return "\n".join(lines)


def _trained(training: dict[str, Any]) -> list[str]:
    """What was run, the first training first."""
    lines = []
    if "before" in training:
        names = " and ".join(f"`{name}`" for name in training["points"])
        lines += [*_trained(training["before"]), "", f"Around that model {names} later:", ""]
    for key in ("command", "data", "licence"):
        if key in training:
            value = f"`{training[key]}`" if key == "command" else training[key]
            lines.append(f"- {key.capitalize()}: {value}")
    recipe = training.get("recipe", {})
    if recipe:
        losses = ", ".join(f"{name} {weight:g}" for name, weight in recipe["losses"].items())
        seconds = ", ".join(f"{stage} {value / 60:.0f} min" for stage, value in training["seconds"].items())
        lines += [
            f"- {training['samples']} samples and {training['joined_samples']} joined from them, "
            f"seed {recipe['seed']}, {training['precision']} on {training['device']}; loss weights: {losses}; "
            f"time: {seconds}.",
        ]
    return lines


def _answers(manifest: Manifest) -> str:
    problem = manifest.problem
    names = ", ".join(manifest.labels[:10]) + (" ..." if len(manifest.labels) > 10 else "")
    count = f"{names} ({len(manifest.labels)} labels)"
    if isinstance(problem, Regression):
        return f"Scores text: {names}"
    if isinstance(problem, MultiLabel):
        return f"Classifies text as any of {count}"
    return f"Classifies {'every word of a text' if problem.by_word else 'text'} as {count}"


def _certified(calibration: Calibration, problem: Problem) -> list[str]:
    rows = [
        f"| {entry.width} | {', '.join(f'`{name}`' for name in entry.points)} | {entry.score} | "
        f"{', '.join(f'{threshold:.3f}' for threshold in entry.thresholds)} | {entry.escalation_rate:.1%} | "
        f"{entry.agreement:.1%} | {entry.certified_agreement:.1%} | {entry.ideal_speedup:.2f} |"
        for entry in calibration.cascades
    ]
    return [
        f"## Certified agreement ({calibration.backend}, {calibration.precision})",
        "",
        f"With confidence {calibration.confidence:.0%}, at least {calibration.target:.1%} of guaranteed answers have "
        f"{problem.same}, on texts like {calibration.data} ({calibration.samples} samples, 30% to choose, 70% to "
        "certify) with random partners. What a point is not sure enough of goes on to the next, and plain in the end.",
        "",
        "| texts a sequence | points in turn | confidence | thresholds | escalated to plain | agreement seen | lower "
        "bound | ideal speed-up |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
    ]


def _tuned(manifest: Manifest) -> str:
    if manifest.tuned:
        return "yes, low-rank updates and a head, merged at load"
    if manifest.prompt_tokens:
        return f"yes, a soft prompt of {manifest.prompt_tokens} embeddings in front of every text"
    return "no"


def _row(row: dict[str, Any], num_layers: int, metric: str) -> str:
    kind = OperatingPoint.parse(row["point"]).kind(num_layers)
    without = row["agreement_without_composite"]
    against_labels = share = "not measured"
    if row[metric] is not None:
        against_labels = f"{row[metric]:.1%} ({row[f'{metric}_worst']:.1%})"
        share = f"{row[metric] / row[f'plain_{metric}']:.1%}" if row[f"plain_{metric}"] else "-"
    return (
        f"| `{row['point']}` {kind} | {row['width']} | {row['ideal_speedup']:.2f} | {row['speedup']:.2f} | "
        f"{against_labels} | {share} | {row['agreement']:.1%} ({row['agreement_worst']:.1%}) | "
        f"{'-' if without is None else f'{without:.1%}'} | {row['partner_sensitivity']:.1%} | "
        f"{row['bytes'] / 1e6:.1f} MB |"
    )
