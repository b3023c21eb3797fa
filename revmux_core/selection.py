"""Which cascade to certify: the cheapest over some of a width's points, with the best of the confidence scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import torch
from torch import Tensor

from revmux_core.cascade import Cascade
from revmux_core.certificate import certify, upper_bound
from revmux_core.confidence import (
    LEARNT,
    TEMPERED,
    TOP_PROBABILITY,
    Confidence,
    LearntConfidence,
    ScoreKind,
    TemperedConfidence,
    kinds,
)
from revmux_core.points import OperatingPoint
from revmux_core.problems import Problem

_THRESHOLDS = 200
_LEAST_OFF = 1e-6
"""Logits: points that are off by less are as near to the plain path as each other."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One point's answers: `logits` `[n, C]`, `[n, words, C]` where words are answered, `pooled` `[n, d]`, whether each
    agrees with the plain model's `[n]`, and to what `degree` (`Problem.degree`)."""

    problem: Problem
    logits: Tensor
    pooled: Tensor
    agrees: Tensor
    degree: Tensor

    def take(self, rows: np.ndarray | slice) -> Seen:
        index = rows if isinstance(rows, slice) else torch.from_numpy(np.asarray(rows))
        return Seen(self.problem, self.logits[index], self.pooled[index], self.agrees[index], self.degree[index])


@dataclass(frozen=True, slots=True)
class Certified:
    """A cascade, its kind of score, the scores of its points unless it is the problem's own, and what it came to:
    `passed_on` and the other `figures` of `manifest.CascadeEntry`."""

    cascade: Cascade
    kind: ScoreKind
    scores: Mapping[OperatingPoint, Confidence]
    passed_on: tuple[float, ...]
    figures: Mapping[str, float]

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Of the cascade's points in turn, where that is its kind of score."""
        return tuple(score.temperature for score in self.scores.values() if isinstance(score, TemperedConfidence))

    @property
    def learnt(self) -> dict[OperatingPoint, LearntConfidence]:
        """The scores that were learnt."""
        return {point: score for point, score in self.scores.items() if isinstance(score, LearntConfidence)}


def certify_chain(
    points: Sequence[OperatingPoint],
    num_layers: int,
    learn: Sequence[Seen],
    test: Sequence[Seen],
    target: float,
    confidence: float,
) -> Certified | None:
    """The cheapest cascade over some of `points`, with the lowest threshold whose promise holds.

    `learn` and `test` are the answers at each point, and at last on the plain path, on the texts that choose and on
    those that certify. None where every answer would have to be escalated.
    """
    tempered = _tempered(points, learn)
    sure: dict[ScoreKind, np.ndarray] = {
        TOP_PROBABILITY: confidences(points, learn[:-1], {}),
        TEMPERED: confidences(points, learn[:-1], tempered),
        LEARNT: np.stack([_cross_fitted(seen) for seen in learn[:-1]], axis=1),
    }
    differing = differs(learn)
    steps, kind = min(
        ((steps, kind) for steps in _choices(len(points)) for kind in kinds(learn[0].problem)),
        key=lambda choice: _cost_at_target(points, num_layers, sure[choice[1]], differing, choice[0], target),
    )
    chain = tuple(points[step] for step in steps)
    scores: dict[OperatingPoint, Confidence] = {}
    if kind == TEMPERED:
        scores = {point: tempered[point] for point in chain}
    elif kind == LEARNT:
        scores = {points[step]: _fitted(learn[step]) for step in steps}
    own = [test[step] for step in steps]
    asked = confidences(chain, own, scores)
    tested = differs([*own, test[-1]])
    thresholds = _thresholds(sure[kind][:, steps])
    cascades = [Cascade(chain, float(threshold), num_layers) for threshold in thresholds]
    wrong = np.stack([wrong_at(cascade.leaves_at(asked), tested) for cascade in cascades], axis=1)
    last = certify(wrong, target, confidence)
    if last is None:
        return None
    cascade = cascades[last]
    leaves_at = cascade.leaves_at(asked)
    escalated = float((leaves_at == len(chain)).mean())
    if escalated == 1:
        return None
    reached = [int((leaves_at >= step).sum()) for step in range(len(chain) + 1)]
    # What nothing reaches any more passes nothing on.
    passed_on = tuple(after / max(before, 1) for before, after in pairwise(reached))
    figures = {
        "escalation_rate": escalated,
        "agreement": float(1 - wrong[:, last].mean()),
        "certified_agreement": 1 - upper_bound(int(wrong[:, last].sum()), len(wrong), confidence),
        "ideal_speedup": cascade.ideal_speedup(leaves_at),
    }
    return Certified(cascade, kind, scores, passed_on, figures)


def _choices(points: int) -> list[list[int]]:
    return [list(chosen) for size in range(1, points + 1) for chosen in combinations(range(points), size)]


def _cost_at_target(
    points: Sequence[OperatingPoint],
    num_layers: int,
    scores: np.ndarray,
    differing: np.ndarray,
    steps: list[int],
    target: float,
) -> float:
    """Ideal cost of the cascade over `steps` at the lowest threshold that keeps the target on these samples."""
    chain = tuple(points[step] for step in steps)
    cost = 1 + len(steps) * 1e-9
    for threshold in _thresholds(scores[:, steps]):
        cascade = Cascade(chain, float(threshold), num_layers)
        leaves_at = cascade.leaves_at(scores[:, steps])
        if wrong_at(leaves_at, differing[:, [*steps, -1]]).mean() > 1 - target:
            break
        cost = 1 / cascade.ideal_speedup(leaves_at)
    return cost


def confidences(
    points: Sequence[OperatingPoint], seen: Sequence[Seen], scores: Mapping[OperatingPoint, Confidence]
) -> np.ndarray:
    """How sure each point is of each of its answers, `[n, len(points)]`: by its score, or by the problem's own."""
    with torch.inference_mode():
        columns = [
            scores[point](one.pooled, one.logits) if point in scores else one.problem.confidence(one.logits)
            for point, one in zip(points, seen, strict=True)
        ]
    return torch.stack(columns, dim=1).numpy()


def differs(seen: Sequence[Seen]) -> np.ndarray:
    """`[n, len(seen)]`, which answers are not the plain model's."""
    return ~np.stack([one.agrees.numpy() for one in seen], axis=1)


def wrong_at(leaves_at: np.ndarray, differing: np.ndarray) -> np.ndarray:
    """Whether samples `[n]` leave, or may leave, with another answer than the plain model's, given `[n, steps + 1]`
    which steps' answers are others.

    The last step is the plain path: in another precision not even that is always the model's. Serving may send there
    whatever the first step passes on, so of those both answers count.
    """
    return differing[np.arange(len(differing)), leaves_at] | ((leaves_at > 0) & differing[:, -1])


def _thresholds(scores: np.ndarray) -> np.ndarray:
    """Thresholds to try, from the strictest down: evenly spread over the ranks of all scores."""
    return np.unique(np.quantile(scores, np.linspace(0, 1, _THRESHOLDS), method="higher"))[::-1]


def _tempered(points: Sequence[OperatingPoint], seen: Sequence[Seen]) -> dict[OperatingPoint, TemperedConfidence]:
    """Scores for points whose answers are `seen`, and at last the plain path's.

    Temperatures are as far apart as the points are from the plain path, by the standard deviation of what their margins
    (`Problem.evidence`) are off it, and 1 for the nearest. All texts tell that, not only the few that differ.
    """
    with torch.inference_mode():
        margins = torch.stack([one.problem.evidence(one.logits)[0] for one in seen]).double()
    off = (margins[:-1] - margins[-1]).std(dim=1, correction=0).clamp_min(_LEAST_OFF)
    temperatures = (off / off.min()).tolist()
    problem = seen[0].problem
    return {point: TemperedConfidence(at, problem) for point, at in zip(points, temperatures, strict=True)}


def _fitted(seen: Seen) -> LearntConfidence:
    score = LearntConfidence(seen.pooled.shape[1], seen.problem)
    score.fit(seen.pooled, seen.logits, seen.degree)
    return score


def _cross_fitted(seen: Seen) -> np.ndarray:
    """Every sample's confidence `[n]` by a score that was learnt on the other half."""
    scores = torch.empty(len(seen.logits))
    for odd in (0, 1):
        own, other = (slice(start, None, 2) for start in (odd, 1 - odd))
        fitted = _fitted(seen.take(other))
        with torch.inference_mode():
            scores[own] = fitted(seen.pooled[own], seen.logits[own])
    return scores.numpy()
