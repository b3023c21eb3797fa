"""Which cascade to certify: the cheapest over some of a width's points, with the better of two confidence scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from revmux_core.cascade import Cascade
from revmux_core.certificate import certify, upper_bound
from revmux_core.confidence import LEARNT, LearntConfidence, ScoreKind, kinds
from revmux_core.points import OperatingPoint
from revmux_core.problems import Problem

_THRESHOLDS = 200


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
    """A cascade, its kind of score, the scores that were learnt for its points, and what it came to: the figures of
    `manifest.CascadeEntry`."""

    cascade: Cascade
    kind: ScoreKind
    learnt: Mapping[OperatingPoint, LearntConfidence]
    figures: Mapping[str, float]


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
    scores: dict[ScoreKind, np.ndarray] = {
        kind: np.stack([_cross_fitted(seen) if kind == LEARNT else _by_itself(seen) for seen in learn[:-1]], axis=1)
        for kind in kinds(learn[0].problem)
    }
    differing = differs(learn)
    steps, kind = min(
        ((steps, kind) for steps in _choices(len(points)) for kind in scores),
        key=lambda choice: _cost_at_target(points, num_layers, scores[choice[1]], differing, choice[0], target),
    )
    chain = tuple(points[step] for step in steps)
    learnt = {points[step]: _fitted(learn[step]) for step in steps} if kind == LEARNT else {}
    own = [test[step] for step in steps]
    asked = confidences(chain, own, learnt)
    tested = differs([*own, test[-1]])
    thresholds = _thresholds(scores[kind][:, steps])
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
    figures = {
        "escalation_rate": escalated,
        "agreement": float(1 - wrong[:, last].mean()),
        "certified_agreement": 1 - upper_bound(int(wrong[:, last].sum()), len(wrong), confidence),
        "ideal_speedup": cascade.ideal_speedup(leaves_at),
    }
    return Certified(cascade, kind, learnt, figures)


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
    points: Sequence[OperatingPoint], seen: Sequence[Seen], learnt: Mapping[OperatingPoint, LearntConfidence]
) -> np.ndarray:
    """How sure each point is of each of its answers, `[n, len(points)]`."""
    with torch.inference_mode():
        columns = [
            learnt[point](one.pooled, one.logits).numpy() if point in learnt else _by_itself(one)
            for point, one in zip(points, seen, strict=True)
        ]
    return np.stack(columns, axis=1)


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


def _by_itself(seen: Seen) -> np.ndarray:
    return seen.problem.confidence(seen.logits).numpy()


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
