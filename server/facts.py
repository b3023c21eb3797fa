"""What the routes tell of a loaded model: plain data, so that it can cross to processes that hold no model."""

from __future__ import annotations

from functools import cached_property

import msgspec

from revmux_core.cascade import Quality
from revmux_core.problems import Problem, ProblemType, make_problem


class ServedPoint(msgspec.Struct, frozen=True):
    """An operating point that is served; `measured_agreement` is None where it was not measured."""

    name: str
    width: int
    prefill_layers: int
    ideal_speedup: float
    measured_agreement: float | None


class ServedCascade(msgspec.Struct, frozen=True):
    """A certified cascade that is served."""

    width: int
    points: list[str]
    score: str
    thresholds: list[float]
    predicted_escalation_rate: float
    ideal_speedup: float


class Facts(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A model that is loaded and warm, and what it is served with.

    `widths` ascend; `quality` is that of requests which name none; `loaded_at` is in seconds of the epoch. What was
    certified is None where no cascade is served. `thresholds` and `tolerance` are as in the manifest.
    """

    name: str
    base: str
    labels: list[str]
    problem_type: ProblemType
    thresholds: list[float] | None
    tolerance: float | None
    widths: list[int]
    points: list[ServedPoint]
    cascades: list[ServedCascade]
    certified_agreement: float | None
    certified_confidence: float | None
    quality: Quality
    device: str
    dtype: str
    max_tokens: int
    max_batch_tokens: int
    loaded_at: int

    @cached_property
    def problem(self) -> Problem:
        """What the model answers."""
        return make_problem(self.problem_type, self.labels, self.thresholds, self.tolerance)
