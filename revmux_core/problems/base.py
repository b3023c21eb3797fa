"""What kind of answer a model gives: the one seam where task types differ. Pure: numpy, and tensors as they come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from revmux_core.errors import RevmuxError
from revmux_core.plan import Tokens

if TYPE_CHECKING:
    # Processes that only speak HTTP have no torch.
    from torch import Tensor

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression", "token_classification"]
"""As Hugging Face's configurations spell it (`problem_type`), and its pipelines the last."""

UNLABELLED = -100
"""Class of what has no label, as in PyTorch's losses."""

LabelCell = str | tuple[str, ...]
"""A label as a data file spells it; several where it holds a list of them."""


class LabelError(RevmuxError):
    """A label that the problem has no place for; the message says what is wrong with it."""


@dataclass(frozen=True)
class Problem(ABC):
    """One type of task. Logits are `[S, C]` of S texts and C labels, or `[S, W, C]` where each of a text's words has
    its own (`by_word`), NaN beyond its last one. Answers are arrays whose first dimension is S.

    `fields` names those of an `answer`. `metrics` names what is measured against labels, the one that counts first.
    `has_confidence` says whether logits by themselves tell how sure they are.
    """

    labels: tuple[str, ...]

    type: ClassVar[ProblemType]
    fields: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[str, ...]]
    by_word: ClassVar[bool] = False
    has_confidence: ClassVar[bool] = True

    @property
    @abstractmethod
    def same(self) -> str:
        """What an answer must have to agree with the plain model's, in words that follow "it has"."""

    @abstractmethod
    def activate(self, logits: np.ndarray) -> np.ndarray:
        """Logits to what clients are sent as probabilities, of the same shape."""

    @abstractmethod
    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Logits to answers: what agreement and metrics are about."""

    @abstractmethod
    def agree(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Which texts `[S]` have the same answer in both."""

    def degree(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """What a learnt confidence aims at: 1 where an answer agrees and 0 where it does not `[S]`, or in between where
        a type knows how nearly."""
        return self.agree(answers, reference).astype(np.float32)

    @abstractmethod
    def evidence(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """What a learnt confidence reads of logits, beside pooled states: two figures a text, `[S]` in float32."""

    @abstractmethod
    def confidence(self, logits: Tensor) -> Tensor:
        """How sure an answer is by its logits alone: `[S]` in float32, 0 to 1; the model's probability of it."""

    @abstractmethod
    def target(self, label: LabelCell, text: str) -> Any:
        """What the answer of `text` should be by its label. Raises `LabelError`."""

    @abstractmethod
    def targets(self, own: Sequence[Any], samples: Sequence[Tokens]) -> np.ndarray:
        """What `target` says of each sample, None where it has no label, as an array like the answers: `UNLABELLED`, or
        NaN among floats, where nothing is known."""

    def prior(self, targets: np.ndarray) -> np.ndarray | None:
        """Logits `[C]` that say what labels say on average, for a head to begin at; None where 0 is near enough."""
        return None

    @abstractmethod
    def measure(self, answers: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """All of `metrics`, over what is labelled."""

    def closeness(self, answers: np.ndarray, reference: np.ndarray) -> Mapping[str, float]:
        """Figures beside agreement that say how near answers are to the plain model's."""
        return {}

    @abstractmethod
    def answer(self, logits: Sequence[float], scores: Sequence[float], text: str, sample: Tokens) -> dict[str, Any]:
        """One text's answer for clients: the `fields`, and `num_classes`.

        `logits` are all of the text's in one row, `scores` the same activated, or the logits again where raw scores are
        wanted. `sample` are the tokens of `text`.
        """

    def agrees(self, logits: Sequence[float], reference: Sequence[float]) -> bool:
        """Whether one text's logits, all in one row, give the answer of the plain model's."""
        pair = (np.reshape(np.asarray(row), self.row_shape)[None] for row in (logits, reference))
        return bool(self.agree(*map(self.decide, pair))[0])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one text's logits; -1 stands for its number of words."""
        return (-1, len(self.labels)) if self.by_word else (len(self.labels),)


def is_labelled(targets: np.ndarray) -> np.ndarray:
    """Where `Problem.targets` say something, of their shape."""
    return ~np.isnan(targets) if targets.dtype.kind == "f" else targets != UNLABELLED


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last dimension."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def class_index(label: str, labels: Sequence[str]) -> int:
    """The index of a label that is spelt as its name or its index. Raises `LabelError` for any other."""
    if label in labels:
        return labels.index(label)
    if label.isdecimal() and int(label) < len(labels):
        return int(label)
    raise LabelError(f"has label {label!r}, which is none of {', '.join(labels)}")


def one_name(label: LabelCell) -> str:
    """The label of a cell that may hold one only. Raises `LabelError` for a list."""
    if isinstance(label, tuple):
        raise LabelError(f"has a list of labels ({', '.join(label)}), where one is wanted: see --problem-type")
    return label
