"""One label out of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from revmux_core.plan import Tokens
from revmux_core.problems.base import (
    UNLABELLED,
    LabelCell,
    Problem,
    ProblemType,
    class_index,
    is_labelled,
    one_name,
    softmax,
)

if TYPE_CHECKING:
    from torch import Tensor


class SingleLabel(Problem):
    """The most probable label is the answer: `[S]`, its index. The confidence in it is its probability."""

    type: ClassVar[ProblemType] = "single_label_classification"
    fields = ("label", "probs")
    metrics = ("accuracy",)

    @property
    def same(self) -> str:
        return "the plain model's label"

    def activate(self, logits: np.ndarray) -> np.ndarray:
        return softmax(logits)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(axis=-1)

    def agree(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return answers == reference

    def evidence(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The margin between the two best logits, and the confidence."""
        best = logits.float().topk(2, dim=-1).values
        return best[:, 0] - best[:, 1], self.confidence(logits)

    def confidence(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(dim=-1).amax(dim=-1)

    def target(self, label: LabelCell, text: str) -> int:
        return class_index(one_name(label), self.labels)

    def targets(self, own: Sequence[Any], samples: Sequence[Tokens]) -> np.ndarray:
        return np.array([UNLABELLED if index is None else index for index in own])

    def measure(self, answers: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        return {"accuracy": float((answers == targets)[is_labelled(targets)].mean())}

    def answer(self, logits: Sequence[float], scores: Sequence[float], text: str, sample: Tokens) -> dict[str, Any]:
        return {"label": self.labels[scores.index(max(scores))], "probs": scores, "num_classes": len(scores)}
