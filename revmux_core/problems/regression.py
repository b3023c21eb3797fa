"""A number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from revmux_core.plan import Tokens
from revmux_core.problems.base import LabelCell, LabelError, Problem, ProblemType, is_labelled, one_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Regression(Problem):
    """The one logit is the answer: `[S]`, a score. It agrees where it is at most `tolerance` from the plain model's.

    A score by itself does not tell how sure it is, so only a learnt confidence can, and a point without one is sure of
    nothing.
    """

    tolerance: float

    type: ClassVar[ProblemType] = "regression"
    fields = ("label", "score", "probs")
    metrics = ("pearson", "spearman")
    has_confidence = False

    @property
    def same(self) -> str:
        return f"the plain model's score, to within {self.tolerance:g}"

    def activate(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return logits[..., 0]

    def agree(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return np.abs(answers - reference) <= self.tolerance

    def degree(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """1 for the same score, 1/2 at the tolerance and 0 from twice of it on: among a few hundred texts few scores
        differ by too much, and how far the others are off says as much."""
        off = np.abs(answers - reference) / max(self.tolerance, np.finfo(np.float32).tiny)
        return np.clip(1 - off / 2, 0, 1).astype(np.float32)

    def closeness(self, answers: np.ndarray, reference: np.ndarray) -> Mapping[str, float]:
        return {"mean_difference": float(np.abs(answers - reference).mean())}

    def evidence(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The score and its square: near the ends of a scale there is less to get wrong than in the middle."""
        scores = logits.float()[:, 0]
        return scores, scores.square()

    def confidence(self, logits: Tensor) -> Tensor:
        return logits.new_zeros(len(logits)).float()

    def target(self, label: LabelCell, text: str) -> float:
        name = one_name(label)
        try:
            score = float(name)
        except ValueError:
            raise LabelError(f"has {name!r} for a score, which is no number") from None
        if not math.isfinite(score):
            raise LabelError(f"has the score {name}: it must be finite")
        return score

    def targets(self, own: Sequence[Any], samples: Sequence[Tokens]) -> np.ndarray:
        return np.array([math.nan if score is None else score for score in own], dtype=np.float32)

    def prior(self, targets: np.ndarray) -> np.ndarray:
        return np.nanmean(targets, keepdims=True)

    def measure(self, answers: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Pearson's and Spearman's correlation with the labels, as GLUE reports STS-B; 0 where either is constant."""
        from scipy.stats import pearsonr, spearmanr

        known = is_labelled(targets)
        pair = answers[known].astype(np.float64), targets[known].astype(np.float64)
        if len(pair[0]) < 2 or any(np.ptp(scores) == 0 for scores in pair):
            return dict.fromkeys(self.metrics, 0.0)
        return {"pearson": float(pearsonr(*pair).statistic), "spearman": float(spearmanr(*pair).statistic)}

    def answer(self, logits: Sequence[float], scores: Sequence[float], text: str, sample: Tokens) -> dict[str, Any]:
        return {"label": self.labels[0], "score": logits[0], "probs": scores, "num_classes": 1}
