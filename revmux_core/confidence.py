"""How sure a point is of an answer: its probability, or a score learnt from demultiplexed states."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revmux_core.problems import Problem

ScoreKind = Literal["top-probability", "learnt"]
TOP_PROBABILITY: ScoreKind = "top-probability"
LEARNT: ScoreKind = "learnt"
"""By name in manifests: what `Problem.confidence` says, which for one label is the top probability, or a score."""

_WEIGHT_DECAY = 1.0
_STEPS = 50


class LearntConfidence(nn.Module):
    """Logistic regression on the pooled state and the logits' `Problem.evidence`: the probability that the plain model
    gives the same answer. For one label the evidence is the logits' margin and the top probability."""

    mean: Tensor
    scale: Tensor

    def __init__(self, hidden_size: int, problem: Problem) -> None:
        super().__init__()
        self._problem = problem
        self.linear = nn.Linear(hidden_size + 2, 1)
        # Of the features, so that one strength of regularisation suits every backbone.
        self.register_buffer("mean", torch.zeros(hidden_size + 2))
        self.register_buffer("scale", torch.ones(hidden_size + 2))

    def forward(self, pooled: Tensor, logits: Tensor) -> Tensor:
        """Pooled states `[S, d]` and logits `[S, C]` to confidences `[S]`."""
        return self._score(self._features(pooled, logits)).sigmoid()

    def fit(self, pooled: Tensor, logits: Tensor, degree: Tensor) -> None:
        """Learns from samples whose answers agree with the plain model's to this `degree` `[S]` (`Problem.degree`)."""
        features = self._features(pooled, logits)
        with torch.no_grad():
            self.mean.copy_(features.mean(dim=0))
            self.scale.copy_(features.std(dim=0, correction=0).clamp_min(1e-6))
            self.linear.weight.zero_()
            self.linear.bias.zero_()
        optimizer = torch.optim.LBFGS(self.linear.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe")
        truth = degree.to(features.dtype)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(self._score(features), truth, reduction="sum")
            loss = loss + _WEIGHT_DECAY / 2 * self.linear.weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)

    def _score(self, features: Tensor) -> Tensor:
        # In float32, whatever the model around it computes in: thresholds are often close to 1.
        features = (features - self.mean.float()) / self.scale.float()
        return F.linear(features, self.linear.weight.float(), self.linear.bias.float()).squeeze(-1)

    def _features(self, pooled: Tensor, logits: Tensor) -> Tensor:
        """`[S, d + 2]` in float32."""
        evidence = torch.stack(self._problem.evidence(logits), dim=-1)
        return torch.cat([pooled.float(), evidence], dim=-1)


def kinds(problem: Problem) -> list[ScoreKind]:
    """The scores that there are for a problem: a number alone says nothing of how sure it is."""
    return [TOP_PROBABILITY, LEARNT] if problem.has_confidence else [LEARNT]
