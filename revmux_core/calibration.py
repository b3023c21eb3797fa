"""Calibrates a bundle: learns how sure each point must be, and certifies how often its answers then differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from revmux_core.batch import cat_logits
from revmux_core.bundle import Bundle
from revmux_core.cascade import Cascade
from revmux_core.certificate import CalibrationError, samples_needed
from revmux_core.confidence import LearntConfidence
from revmux_core.evaluation import plain_answers
from revmux_core.manifest import Calibration, CascadeEntry
from revmux_core.offline import BATCH_TOKENS, answer_plan
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint
from revmux_core.selection import Seen, certify_chain, confidences, differs, wrong_at

LEARN_SHARE = 0.3
"""Share of the texts that scores and thresholds are chosen on; the others certify the choice."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What `calibrate` found: the manifest's entry, and the scores that were learnt for its cascades, by point."""

    calibration: Calibration
    learnt: Mapping[OperatingPoint, LearntConfidence]


def calibrate(
    bundle: Bundle,
    samples: Sequence[Tokens],
    target: float,
    confidence: float,
    widths: Sequence[int],
    data: str,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
    reference: np.ndarray | None = None,
) -> Calibrated:
    """Certifies one cascade for each of `widths`: the exits at width 1, the cheapest point of any other.

    All promises hold together with the given `confidence`: each is certified at 1 - (1 - confidence) / widths. A part
    of the texts picks the exits, learns the scores and fixes the thresholds to try; it is also where partners are
    drawn from at random. The other texts, each with partners of its own, certify. `reference` are the answers
    `[S, ...]` that those of the bundle must agree with (`Problem.agree`), by default its own plain path's in PyTorch.

    Widths whose cascade would escalate everything are left out. Raises `CalibrationError` for too few texts, or when
    no width is left; `RevmuxError` for a width that the bundle lacks.
    """
    chains = {width: points_of(bundle, width) for width in widths}
    each = 1 - (1 - confidence) / len(chains)
    _require(len(samples), target, each, confidence, len(chains))
    learn, test = split(len(samples), seed)
    progress("plain model")
    if reference is None:
        reference = plain_answers(bundle.classifier, samples, bundle.tokenizer.pad_id)
    seen = {}
    plain = bundle.classifier.plain
    for point in dict.fromkeys([*(point for chain in chains.values() for point in chain), plain]):
        progress(point.name)
        seen[point] = [see(bundle, point, samples, part, learn, reference, seed) for part in (learn, test)]
    entries: list[CascadeEntry] = []
    learnt: dict[OperatingPoint, LearntConfidence] = {}
    for width, chain in chains.items():
        found = certify_chain(
            chain,
            bundle.classifier.backbone.num_layers,
            [seen[point][0] for point in (*chain, plain)],
            [seen[point][1] for point in (*chain, plain)],
            target,
            each,
        )
        if found is not None:
            entries.append(
                CascadeEntry(
                    width=width,
                    points=tuple(point.name for point in found.cascade.points),
                    score=found.kind,
                    thresholds=found.cascade.thresholds,
                    passed_on=found.passed_on,
                    **found.figures,
                )
            )
            learnt |= found.learnt
    if not entries:
        rounded = 1 - float(seen[plain][1].agrees.double().mean())
        precision = bundle.classifier.executor.precision
        own = f" (the plain path's own answers, in {precision}, differ on {rounded:.2%})" if rounded else ""
        raise CalibrationError(
            f"no width can keep a target of {target:g} without escalating every answer{own}: give more text, a lower "
            "target, or train longer"
        )
    calibration = Calibration(
        backend=bundle.classifier.executor.backend,
        precision=bundle.classifier.executor.precision,
        target=target,
        confidence=confidence,
        data=data,
        samples=len(samples),
        seed=seed,
        cascades=entries,
    )
    return Calibrated(calibration, learnt)


@dataclass(frozen=True, slots=True)
class Validation:
    """Over `splits` random splits of the samples, a third of them calibrating and two thirds testing.

    Per width: `broken`, the share of splits whose test part has more differing answers than the target allows, and
    means over splits of the test part's agreement, escalation rate and ideal speed-up. The promise is of the share in
    the long run; what a test part adds to it by chance counts as broken too, so the smaller that part the stricter.
    """

    target: float
    confidence: float
    splits: int
    samples: int
    widths: list[dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def validate(
    bundle: Bundle,
    samples: Sequence[Tokens],
    target: float,
    confidence: float,
    widths: Sequence[int],
    splits: int,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
    reference: np.ndarray | None = None,
) -> Validation:
    """Repeats `calibrate` on random thirds of the samples and tests every promise on the others.

    Answers are computed once, with partners from all samples, and split afterwards. Raises what `calibrate` raises.
    """
    chains = {width: points_of(bundle, width) for width in widths}
    each = 1 - (1 - confidence) / len(chains)
    everything = range(len(samples))
    third = len(samples) // 3
    _require(third, target, each, confidence, len(chains), " to calibrate with")
    progress("plain model")
    if reference is None:
        reference = plain_answers(bundle.classifier, samples, bundle.tokenizer.pad_id)
    seen = {}
    plain = bundle.classifier.plain
    for point in dict.fromkeys([*(point for chain in chains.values() for point in chain), plain]):
        progress(point.name)
        seen[point] = see(bundle, point, samples, everything, everything, reference, seed)
    layers = bundle.classifier.backbone.num_layers
    rows = []
    for width, chain in chains.items():
        tests = []
        for number in range(splits):
            order = np.random.default_rng((seed, number)).permutation(len(samples))
            learn, certifying = (order[:third][part] for part in split(third, number))
            test = order[third:]
            found = certify_chain(
                chain,
                layers,
                [seen[point].take(learn) for point in (*chain, plain)],
                [seen[point].take(certifying) for point in (*chain, plain)],
                target,
                each,
            )
            tests.append((1.0, 1.0, 1.0) if found is None else _tested(found.cascade, found.learnt, seen, plain, test))
            progress(f"width {width}")
        agreement, escalated, ideal = np.array(tests).T
        rows.append(
            {
                "width": width,
                "broken": float((agreement < target).mean()),
                "agreement": float(agreement.mean()),
                "agreement_worst": float(agreement.min()),
                "escalation_rate": float(escalated.mean()),
                "ideal_speedup": float(ideal.mean()),
            }
        )
    return Validation(target, confidence, splits, len(samples), rows)


def _tested(
    cascade: Cascade,
    learnt: Mapping[OperatingPoint, LearntConfidence],
    seen: Mapping[OperatingPoint, Seen],
    plain: OperatingPoint,
    test: np.ndarray,
) -> tuple[float, float, float]:
    """Agreement, escalation rate and ideal speed-up of a cascade on the samples `test`."""
    own = [seen[point].take(test) for point in cascade.points]
    leaves_at = cascade.leaves_at(confidences(cascade.points, own, learnt))
    wrong = wrong_at(leaves_at, differs([*own, seen[plain].take(test)]))
    escalated = float((leaves_at == len(cascade.points)).mean())
    return float(1 - wrong.mean()), escalated, cascade.ideal_speedup(leaves_at)


def _require(samples: int, target: float, each: float, confidence: float, widths: int, where: str = "") -> None:
    needed = math.ceil(samples_needed(target, each) / (1 - LEARN_SHARE))
    if samples < needed:
        raise CalibrationError(
            f"to certify a target of {target:g} with confidence {confidence:g} for {widths} width(s) takes at least "
            f"{needed} texts, and there are {samples}{where}: give more text, fewer widths or a lower target"
        )


def points_of(bundle: Bundle, width: int) -> list[OperatingPoint]:
    """What a cascade of `width` may consist of, in the order of its steps. Raises `RevmuxError` where nothing is."""
    layers = bundle.classifier.backbone.num_layers
    if width > 1:
        return [bundle.point(width)]
    exits = [point for point in bundle.classifier.points if point.kind(layers) == "early exit"]
    if not exits:
        raise CalibrationError(f"bundle {bundle.manifest.name} has no early exit to calibrate at width 1")
    return sorted(exits, key=lambda point: point.prefill)


def split(samples: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the texts to learn on, and of those to certify with."""
    order = np.random.default_rng(seed).permutation(samples).tolist()
    learn = round(LEARN_SHARE * samples)
    return order[:learn], order[learn:]


def see(
    bundle: Bundle,
    point: OperatingPoint,
    samples: Sequence[Tokens],
    asked: Sequence[int],
    pool: Sequence[int],
    reference: np.ndarray,
    seed: int,
) -> Seen:
    """Answers of the samples `asked` at `point`, each in a composite of its own with partners drawn from `pool`.

    Every sample and its partners are drawn apart from all others, so that, the pool given, they are independent.
    """
    rng = np.random.default_rng((seed, point.width, len(asked)))
    composites = []
    for sample in asked:
        members = [sample]
        while len(members) < point.width:
            partner = pool[int(rng.integers(len(pool)))]
            if partner != sample:
                members.append(partner)
        slot = int(rng.integers(point.width))
        members[0], members[slot] = members[slot], members[0]
        composites.append((members, slot))
    order = sorted(range(len(asked)), key=lambda i: -max(len(samples[member]) for member in composites[i][0]))
    logits: list[Tensor] = []
    pooled: list[Tensor] = []
    done = 0
    while done < len(order):
        longest = max(len(samples[member]) for member in composites[order[done]][0])
        batch = order[done : done + max(1, BATCH_TOKENS // (longest * point.width))]
        done += len(batch)
        members = [member for i in batch for member in composites[i][0]]
        plan = MuxPlan((Group(point, tuple(range(len(members)))),))
        outcome = answer_plan(bundle.classifier, [samples[i] for i in members], plan, bundle.tokenizer.pad_id)
        rows = [place * point.width + composites[i][1] for place, i in enumerate(batch)]
        logits.append(outcome.logits[rows].float().cpu())
        pooled.append(outcome.pooled[rows].float().cpu())
    back = torch.tensor(order).argsort()
    answers, problem = cat_logits(logits)[back], bundle.classifier.backbone.problem
    pair = problem.decide(answers.numpy()), reference[list(asked)]
    agrees, degree = torch.from_numpy(problem.agree(*pair)), torch.from_numpy(problem.degree(*pair))
    return Seen(problem, answers, torch.cat(pooled)[back], agrees, degree)
