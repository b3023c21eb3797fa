"""Which cascade to certify: the cheapest over some of a width's points, by the better of two confidence scores and with
the better spacing of its thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import torch
from torch import Tensor

from revmux_core.cascade import Cascade
from revmux_core.certificate import certify, upper_bound
from revmux_core.confidence import LEARNT, LearntConfidence, ScoreKind, kinds
from revmux_core.points import OperatingPoint
from revmux_core.problems import Problem

_LEVELS = 200
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
    """A cascade, its kind of score, the scores that were learnt for its points, and what it came to: `passed_on` and
    the other `figures` of `manifest.CascadeEntry`."""

    cascade: Cascade
    kind: ScoreKind
    learnt: Mapping[OperatingPoint, LearntConfidence]
    passed_on: tuple[float, ...]
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """A way to tell who leaves: the kind of score, how sure each point is by it of the texts that choose
    `[n, points]`, and the points' temperatures `[points]`, see `ladder`."""

    kind: ScoreKind
    sure: np.ndarray
    temperatures: np.ndarray

    def of(self, steps: Sequence[int]) -> _Way:
        """The same for some of the points."""
        return _Way(self.kind, self.sure[:, steps], self.temperatures[steps])


def certify_chain(
    points: Sequence[OperatingPoint],
    num_layers: int,
    learn: Sequence[Seen],
    test: Sequence[Seen],
    target: float,
    confidence: float,
) -> Certified | None:
    """The cheapest cascade over some of `points`, with the lowest thresholds whose promise holds.

    `learn` and `test` are the answers at each point, and at last on the plain path, on the texts that choose and on
    those that certify. None where every answer would have to be escalated.
    """
    differing = differs(learn)
    ways = _ways(points, learn)
    steps, way = min(
        ((steps, way.of(steps)) for steps in _choices(len(points)) for way in ways),
        key=lambda choice: _cost_at_target(points, num_layers, choice[1], differing, choice[0], target),
    )
    chain = tuple(points[step] for step in steps)
    learnt = {points[step]: _fitted(learn[step]) for step in steps} if way.kind == LEARNT else {}
    own = [test[step] for step in steps]
    asked = confidences(chain, own, learnt)
    tested = differs([*own, test[-1]])
    cascades = [Cascade(chain, thresholds, num_layers) for thresholds in ladder(way.sure, way.temperatures)]
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
    return Certified(cascade, way.kind, learnt, passed_on, figures)


def _choices(points: int) -> list[list[int]]:
    return [list(chosen) for size in range(1, points + 1) for chosen in combinations(range(points), size)]


def _cost_at_target(
    points: Sequence[OperatingPoint],
    num_layers: int,
    way: _Way,
    differing: np.ndarray,
    steps: list[int],
    target: float,
) -> float:
    """Ideal cost of the cascade over `steps` at the lowest thresholds that keep the target on these samples."""
    chain = tuple(points[step] for step in steps)
    cost = 1 + len(steps) * 1e-9
    for thresholds in ladder(way.sure, way.temperatures):
        cascade = Cascade(chain, thresholds, num_layers)
        leaves_at = cascade.leaves_at(way.sure)
        if wrong_at(leaves_at, differing[:, [*steps, -1]]).mean() > 1 - target:
            break
        cost = 1 / cascade.ideal_speedup(leaves_at)
    return cost


def confidences(
    points: Sequence[OperatingPoint], seen: Sequence[Seen], learnt: Mapping[OperatingPoint, LearntConfidence]
) -> np.ndarray:
    """How sure each point is of each of its answers, `[n, len(points)]`: by its learnt score, or by the problem's."""
    with torch.inference_mode():
        columns = [
            learnt[point](one.pooled, one.logits) if point in learnt else one.problem.confidence(one.logits)
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


def _ways(points: Sequence[OperatingPoint], learn: Sequence[Seen]) -> list[_Way]:
    """By what the problem says with one threshold for all points, or with thresholds as far apart as the points'
    temperatures; or by a learnt score with one threshold."""
    alike = np.ones(len(points))
    ways = []
    for kind in kinds(learn[0].problem):
        if kind == LEARNT:
            ways.append(_Way(kind, np.stack([_cross_fitted(seen) for seen in learn[:-1]], axis=1), alike))
        else:
            own = confidences(points, learn[:-1], {})
            ways += [_Way(kind, own, alike), _Way(kind, own, _temperatures(learn))]
    return ways


def ladder(sure: np.ndarray, temperatures: np.ndarray) -> list[tuple[float, ...]]:
    """Thresholds of all points to try, from the strictest down, for scores `sure` `[n, points]`.

    The log-odds of each, divided by its point's of `temperatures` `[points]`, are alike: a level. Levels are spread
    evenly over the ranks of all scores so divided.
    """
    odds = torch.from_numpy(sure).double().logit().numpy() / temperatures
    levels = np.unique(np.quantile(odds, np.linspace(0, 1, _LEVELS), method="higher"))[::-1]
    # In the precision of scores, so that a text with just that score reaches it.
    thresholds = torch.from_numpy(np.outer(levels, temperatures)).sigmoid().float()
    return list(map(tuple, thresholds.tolist()))


def _temperatures(seen: Sequence[Seen]) -> np.ndarray:
    """How far each point is from the plain path, whose answers are the last of `seen`, relative to the nearest.

    That is the standard deviation of what its margins (`Problem.evidence`) are off the plain path's: all texts tell it,
    not only the few that differ. One threshold for all asks too little of points that are further off: the demo's exits
    pass 10% on to the plain path in place of 17% since theirs are apart (`docs/performance/promise.md`). Source:
    temperature scaling (Guo et al., arXiv 1706.04599), here to the plain model's answers in place of labels.
    """
    with torch.inference_mode():
        margins = torch.stack([one.problem.evidence(one.logits)[0] for one in seen]).double()
    off = (margins[:-1] - margins[-1]).std(dim=1, correction=0).clamp_min(_LEAST_OFF)
    return (off / off.min()).numpy()


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
