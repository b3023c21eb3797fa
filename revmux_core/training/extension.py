"""Other operating points around the frozen model of a bundle, which stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from revmux_core.bundle import load_bundle
from revmux_core.data import Example, label_targets
from revmux_core.manifest import read_manifest, resolve_bundle
from revmux_core.points import OperatingPoint
from revmux_core.saving import save_extended
from revmux_core.training.joining import join_texts
from revmux_core.training.loop import default_precision
from revmux_core.training.run import Recipe, TrainingError, begin, fit, multiplexers_of, points_of, record


def extend(
    recipe: Recipe,
    examples: Sequence[Example],
    out: Path,
    name: str | None = None,
    base: Path | None = None,
    device: torch.device | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Writes a bundle of the model of the bundle `recipe.model`, with the points that `recipe` names.

    Those that the bundle has are taken over, unless the recipe has them retrained, the others are trained. Taken over
    are its tokenizer, tuned weights, soft prompt, labels, its name unless `name` is given, and what is certified of
    cascades of points that are. What it measured is not: it has to be measured anew, and calibrated for the rest. All
    else is as in `train`.

    Raises `TrainingError` for a recipe that asks for another task, that has points retrained which the bundle lacks, or
    none that is to be trained, and what `load_bundle` raises.
    """
    if recipe.labels or recipe.label_words or recipe.problem_type is not None or recipe.tolerance is not None:
        raise TrainingError(
            f"{recipe.model} is a bundle, whose model answers as it does: leave out --labels, --label-word, "
            "--problem-type and --tolerance"
        )
    source = resolve_bundle(recipe.model).resolve()
    if out.resolve() == source:
        raise TrainingError(f"{out} is the bundle whose model is taken: name another --out")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = default_precision(device) if recipe.precision == "auto" else recipe.precision
    torch.manual_seed(recipe.seed)
    bundle, manifest = load_bundle(source, base, device), read_manifest(source)
    backbone, tokenizer = bundle.classifier.backbone, bundle.tokenizer
    joined = join_texts(examples, recipe.join_rounds, recipe.seed)
    samples = tokenizer([(example.text, example.pair) for example in (*examples, *joined)])
    targets = label_targets(examples, backbone.problem, samples)
    points = points_of(recipe, backbone.num_layers)
    retrained = [OperatingPoint.parse(name) for name in recipe.retrained]
    for point in retrained:
        if point not in manifest.points:
            raise TrainingError(f"{recipe.model} has no point {point.name} to --retrain: name it with --point")
    kept = [point for point in points if point in manifest.points and point not in retrained]
    multiplexers = multiplexers_of(recipe, backbone, [point for point in points if point not in kept], device)
    if not multiplexers:
        raise TrainingError(f"{recipe.model} has all of these points: name one that is to be trained")
    work = begin(out, recipe, examples)
    adapters, seconds = fit(backbone, multiplexers, samples, targets, recipe, work, tokenizer.pad_id, device, precision)
    trained = record(recipe, examples, joined, precision, device, {"adapters": seconds}, provenance)
    save_extended(
        out,
        name=name or manifest.name,
        source=source,
        manifest=manifest,
        kept=kept,
        adapters=adapters,
        training=trained
        | {
            "points": [point.name for point in adapters],
            "before": _told(manifest.training, {point.name for point in kept}),
        },
    )


def _told(training: dict[str, Any], kept: set[str]) -> dict[str, Any]:
    """What a manifest says of trainings, without those around its model none of whose points are `kept`."""
    if "before" not in training:
        return training
    before = _told(training["before"], kept)
    return training | {"before": before} if kept & {*training["points"]} else before
