"""A label for every word of a text."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from revmux_core.plan import Tokens
from revmux_core.problems.base import (
    UNLABELLED,
    LabelCell,
    LabelError,
    Problem,
    ProblemType,
    class_index,
    is_labelled,
    softmax,
)

if TYPE_CHECKING:
    from torch import Tensor

OUTSIDE = "O"
"""The label of words that are no entity, which Hugging Face's pipeline leaves out of its answers (`ignore_labels`)."""

NO_WORD = -1
"""The answer where a text has no more words."""

_FAR = 20.0
"""The margin of a text without words, whose answer nobody can get wrong."""


class TokenClassification(Problem):
    """Every word is read at its first word piece, and its most probable label is its answer: `[S, W]`, `NO_WORD` after
    a text's last one. A text agrees where all of its words do.

    Words are what the tokenizer splits texts into before it looks for word pieces. The confidence is the probability of
    all words' labels together, taken as independent.
    """

    type: ClassVar[ProblemType] = "token_classification"
    fields = ("entities",)
    metrics = ("word_accuracy", "macro_f1")
    by_word = True

    @property
    def same(self) -> str:
        return "the plain model's label for every one of its words"

    def activate(self, logits: np.ndarray) -> np.ndarray:
        return softmax(logits)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(logits[..., 0]), NO_WORD, logits.argmax(axis=-1))

    def agree(self, answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return (_as_wide(answers, reference) == _as_wide(reference, answers)).all(axis=-1)

    def closeness(self, answers: np.ndarray, reference: np.ndarray) -> Mapping[str, float]:
        held = reference != NO_WORD
        return {"word_agreement": float((_as_wide(answers, reference) == reference)[held].mean())}

    def evidence(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The least margin between a word's two best logits, and the confidence."""
        best = logits.float().topk(2, dim=-1).values
        return (best[..., 0] - best[..., 1]).nan_to_num(_FAR).amin(dim=-1), self.confidence(logits)

    def confidence(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(dim=-1).amax(dim=-1).nan_to_num(1.0).prod(dim=-1)

    def target(self, label: LabelCell, text: str) -> list[tuple[int, int, int]]:
        """The label of every word between white space, with where it begins and ends: its index last.

        Labels are a list in the file, or stand with white space between them.
        """
        names = label if isinstance(label, tuple) else tuple(label.split())
        words = [match.span() for match in re.finditer(r"\S+", text)]
        if len(names) != len(words):
            raise LabelError(f"has {len(names)} labels for {len(words)} words: words have white space between them")
        return [(*span, class_index(name, self.labels)) for span, name in zip(words, names, strict=True)]

    def targets(self, own: Sequence[Any], samples: Sequence[Tokens]) -> np.ndarray:
        """Where the tokenizer splits a labelled word further, its first part has the label, as is usual in training."""
        rows = np.full((len(samples), max(len(sample.words or ()) for sample in samples)), UNLABELLED)
        for row, labelled, sample in zip(rows, own, samples, strict=True):
            starts = [start for start, _ in sample.spans or ()]
            for begin, end, index in labelled or ():
                nth = bisect_left(starts, begin)
                if nth < len(starts) and starts[nth] < end:
                    row[nth] = index
        return rows

    def measure(self, answers: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Share of words that have their label, and the mean of the labels' F1 over those that occur."""
        known = is_labelled(targets)
        found, due = _as_wide(answers, targets)[known], targets[known]
        scores = [
            2 * ((found == index) & (due == index)).sum() / ((found == index).sum() + (due == index).sum())
            for index in np.union1d(found, due)
        ]
        return {"word_accuracy": float((found == due).mean()), "macro_f1": float(np.mean(scores))}

    def answer(self, logits: Sequence[float], scores: Sequence[float], text: str, sample: Tokens) -> dict[str, Any]:
        count = len(self.labels)
        entities = []
        for nth, (index, (start, end)) in enumerate(zip(sample.words or (), sample.spans or (), strict=True)):
            own = scores[nth * count : (nth + 1) * count]
            best = max(own)
            label = self.labels[own.index(best)]
            if label != OUTSIDE:
                word = text[start:end]
                entities.append(
                    {"entity": label, "score": best, "index": index, "word": word, "start": start, "end": end}
                )
        return {"entities": entities, "num_classes": count}


def _as_wide(answers: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`answers` `[S, W]` with as many columns as `other`, at least."""
    missing = max(other.shape[1] - answers.shape[1], 0)
    return np.pad(answers, ((0, 0), (0, missing)), constant_values=NO_WORD)
