"""Measures a bundle and writes its model card."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from revmux_core.benchmark import measure_speed
from revmux_core.bundle import Bundle, Manifest, record_measurements
from revmux_core.evaluation import evaluate
from revmux_core.offline import BATCH_TOKENS
from revmux_core.plan import Tokens

_ROUNDS = 5


def measure_and_write(
    folder: Path,
    bundle: Bundle,
    samples: Sequence[Tokens],
    labels: Sequence[int] | None,
    data: str,
    draws: int,
    progress: Callable[[], None] = lambda: None,
) -> Manifest:
    """Evaluates and times every width of the bundle in `folder` on held-out samples, and stores and words the result.

    `data` names the samples on the card. `progress` is called after every draw and every round of timing.
    """
    widths = [point.width for point in bundle.classifier.points]
    speeds = measure_speed(bundle, samples, widths, _ROUNDS, BATCH_TOKENS, progress)
    # Width 1 has no partners to draw.
    evaluations = [
        evaluate(
            bundle.classifier,
            bundle.point(width),
            samples,
            labels,
            bundle.tokenizer.pad_id,
            draws if width > 1 else 1,
            progress=progress,
        )
        for width in widths
    ]
    adapters = {
        point.width: sum(tensor.numel() for tensor in bundle.classifier.adapters_of(point).multiplexer.parameters())
        for point in bundle.classifier.points
        if not point.is_plain
    }
    measured = {
        "data": data,
        "machine": machine(),
        "widths": [
            evaluation.to_json()
            | {
                "speedup": round(speed.speedup, 3),
                "ideal_speedup": round(speed.ideal_speedup, 3),
                "adapter_parameters": adapters.get(evaluation.width, 0),
            }
            for evaluation, speed in zip(evaluations, speeds, strict=True)
        ],
    }
    manifest = record_measurements(folder, measured)
    (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")
    return manifest


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
    measured, training = manifest.measured, manifest.training
    lines = [
        f"# {manifest.name}",
        "",
        f"Classifies text as {', '.join(manifest.labels[:10])}{' ...' if len(manifest.labels) > 10 else ''} "
        f"({len(manifest.labels)} labels), from 1 to {max([1, *(p.width for p in manifest.points)])} texts a sequence.",
        "",
        f"- Base model: `{manifest.base.model_id}`, frozen, not included; `model.safetensors` has SHA-256 "
        f"`{manifest.base.sha256}`.",
        f"- Tuned on the task here: {'yes, low-rank updates and a head, merged at load' if manifest.tuned else 'no'}.",
        f"- Longest input: {manifest.max_tokens} tokens; longer ones are cut.",
        "",
        "## What each width costs and gains",
        "",
        f"Measured on {measured['data']}, {measured['widths'][0]['samples']} samples, "
        f"{measured['widths'][-1]['draws']} reshuffles of partners; speed on {measured['machine']}, float32, "
        "relative to width 1 in the same run. Ideal counts layer compute only.",
        "",
        "| width | prefill layers | ideal speed-up | measured | accuracy (worst draw) | share of plain | "
        "agreement with plain (worst) | without its composite | label depends on partner | multiplexer parameters |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_row(row) for row in measured["widths"]),
        "",
        "## Training",
        "",
    ]
    for key in ("command", "data", "licence"):
        if key in training:
            value = f"`{training[key]}`" if key == "command" else training[key]
            lines.append(f"- {key.capitalize()}: {value}")
    recipe = training.get("recipe", {})
    if recipe:
        losses = ", ".join(f"{name} {weight:g}" for name, weight in recipe["losses"].items())
        seconds = ", ".join(f"{stage} {value / 60:.0f} min" for stage, value in training["seconds"].items())
        lines += [
            f"- {training['samples']} samples, seed {recipe['seed']}, {training['precision']} on {training['device']}; "
            f"loss weights: {losses}; time: {seconds}.",
        ]
    lines += [
        "",
        "## Limits",
        "",
        "A multiplexed answer depends a little on the texts it shares a sequence with; the table says how often that "
        "changed the label. Without its composite an answer has only its own prefill layers to go by. Width 1 is the "
        "untouched model. Figures hold for text like the data above; measure agreement on your own with `revmux eval`, "
        "which needs no labels.",
        "",
    ]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    accuracy = share = "not measured"
    if row["accuracy"] is not None:
        accuracy = f"{row['accuracy']:.1%} ({row['accuracy_worst']:.1%})"
        share = f"{row['accuracy'] / row['plain_accuracy']:.1%}"
    return (
        f"| {row['width']} | {row['prefill']} | {row['ideal_speedup']:.2f} | {row['speedup']:.2f} | {accuracy} | "
        f"{share} | {row['agreement']:.1%} ({row['agreement_worst']:.1%}) | "
        f"{row['agreement_without_composite']:.1%} | {row['partner_sensitivity']:.1%} | "
        f"{row['adapter_parameters'] / 1e6:.1f} M |"
    )
