"""Task types, one class each: how logits become an answer, when two agree, how sure one is, what is measured."""

from __future__ import annotations

from collections.abc import Sequence

from revmux_core.problems.base import UNLABELLED, LabelCell, LabelError, Problem, ProblemType, is_labelled
from revmux_core.problems.multi_label import MultiLabel, check_thresholds
from revmux_core.problems.regression import Regression
from revmux_core.problems.single_label import SingleLabel
from revmux_core.problems.token import TokenClassification

__all__ = [
    "UNLABELLED",
    "LabelCell",
    "LabelError",
    "MultiLabel",
    "Problem",
    "ProblemType",
    "Regression",
    "SingleLabel",
    "TokenClassification",
    "is_labelled",
    "make_problem",
]


def make_problem(
    kind: ProblemType,
    labels: Sequence[str],
    thresholds: Sequence[float] | None = None,
    tolerance: float | None = None,
) -> Problem:
    """A problem by its type. Thresholds are 0.5, and the tolerance 0, where they are not given.

    Raises `LabelError` for thresholds, a tolerance or a number of labels that do not fit the type.
    """
    names = tuple(labels)
    if kind == "regression":
        if len(names) != 1:
            raise LabelError(f"regression is of one score, not of {len(names)}")
        if tolerance is not None and not 0 <= tolerance < float("inf"):
            raise LabelError(f"a tolerance of {tolerance:g} is none: it must be finite and at least 0")
        return Regression(names, tolerance or 0.0)
    if kind == "multi_label_classification":
        own = (0.5,) * len(names) if thresholds is None else tuple(thresholds)
        check_thresholds(own, names)
        return MultiLabel(names, own)
    if len(names) < 2:
        raise LabelError(f"{kind} needs at least two labels, not {len(names)}")
    return TokenClassification(names) if kind == "token_classification" else SingleLabel(names)
