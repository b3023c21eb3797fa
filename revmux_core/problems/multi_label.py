"""Any number of labels, none among them, each by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from revmux_core.plan import Tokens
from revmux_core.problems.base import LabelCell, LabelError, Problem, ProblemType, class_index, is_labelled

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MultiLabel(Problem):
    """The labels whose probability reaches their threshold are the answer: `[S, C]`, 1 for each of them. It agrees
    where the whole set is the same.

    The confidence is the probability of the set, its labels taken as independent. What a label contributes is the
    sigmoid of its logit's distance from where its threshold lies: at one of 0.5, the probability of the decision.
    """

    thresholds: tuple[float, ...]

    type: ClassVar[ProblemType] = "multi_label_classification"
    fields = ("label", "labels", "probs")
    metrics = ("micro_f1", "subset_accuracy")

    @property
    def same(self) -> str:
        return "the plain model's set of labels, all of it"

    @cached_property
    def _cuts(self) -> list[float]:
        """The thresholds as logits."""
        return [math.log(threshold / (1 - threshold)) for threshold in self.thresholds]

    def activate(self, logits: np.ndarray) -> np.ndarray:
        # Not 1 / (1 + exp(-x)), which overflows in float32 below -88.
        return (1 + np.tanh(logits / 2)) / 2

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return (logits >= np.asarray(self._cuts, dtype=logits.dtype)).astype(np.int64)

    def agree(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return (answers == reference).all(axis=-1)

    def evidence(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The least distance of a logit from where its threshold lies, and the confidence."""
        distances = self._distances(logits)
        return distances.amin(dim=-1), distances.sigmoid().prod(dim=-1)

    def confidence(self, logits: Tensor) -> Tensor:
        return self._distances(logits).sigmoid().prod(dim=-1)

    def _distances(self, logits: Tensor) -> Tensor:
        # Here, as a process that speaks HTTP alone has neither.
        import torch

        from revmux_core.batch import move

        # Not `new_tensor`, which waits for a GPU.
        return (logits.float() - move(torch.tensor(self._cuts), logits.device)).abs()

    def target(self, label: LabelCell, text: str) -> list[float]:
        """Several labels are a list in the file, or names with commas between them; an empty cell is none of them."""
        names = label if isinstance(label, tuple) else [name.strip() for name in label.split(",") if name.strip()]
        held = {class_index(name, self.labels) for name in names}
        return [float(index in held) for index in range(len(self.labels))]

    def targets(self, own: Sequence[Any], samples: Sequence[Tokens]) -> np.ndarray:
        unknown = [math.nan] * len(self.labels)
        return np.array([unknown if row is None else row for row in own], dtype=np.float32)

    def prior(self, targets: np.ndarray) -> np.ndarray:
        """The log odds of every label (Lin et al. 2017, arXiv 1708.02002, section 4.1): of many labels each is rare,
        and a model that has to learn that first learns little else."""
        held, known = np.nansum(targets, axis=0), (~np.isnan(targets[:, 0])).sum()
        return np.log((held + 1) / (known - held + 1))

    def measure(self, answers: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """F1 over all decisions together, and the share of texts with exactly their labels (scikit-learn's names)."""
        known = is_labelled(targets)[:, 0]
        answers, targets = answers[known], targets[known]
        found, due = answers.sum() + targets.sum(), (answers * targets).sum()
        return {
            "micro_f1": float(2 * due / found) if found else 1.0,
            "subset_accuracy": float((answers == targets).all(axis=1).mean()),
        }

    def answer(self, logits: Sequence[float], scores: Sequence[float], text: str, sample: Tokens) -> dict[str, Any]:
        return {
            "label": self.labels[logits.index(max(logits))],
            "labels": [name for name, own, cut in zip(self.labels, logits, self._cuts, strict=True) if own >= cut],
            "probs": scores,
            "num_classes": len(scores),
        }


def check_thresholds(thresholds: Sequence[float], labels: Sequence[str]) -> None:
    """Raises `LabelError` unless every label has a threshold between 0 and 1."""
    if len(thresholds) != len(labels) or not all(0 < threshold < 1 for threshold in thresholds):
        raise LabelError(f"there must be a threshold between 0 and 1 for each of the {len(labels)} labels")
