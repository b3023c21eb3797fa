"""Cascades: a sample is answered at the first of several points that is sure of it, and plainly where none is.

Source: BranchyNet (arXiv 1709.01686) and DeeBERT (arXiv 2004.12993), whose exits these are; here a step may multiplex
as well, and what no step is sure of goes on from the states that it stands at, never from its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from revmux_core.errors import RevmuxError
from revmux_core.points import OperatingPoint

Quality = Literal["exact", "guaranteed", "fast"]
"""What is asked of an answer: the plain model's own; one that a certified cascade stands for; or the first there is."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """`points` in turn; a sample leaves at the first whose confidence in it is at least its one of `thresholds`.

    Each point starts where the prefill of the one before it ended; what leaves at none of them runs plain from there.
    Raises `RevmuxError` without points, for prefills that do not ascend, for one that reaches the top, or unless every
    point has a threshold.
    """

    points: tuple[OperatingPoint, ...]
    thresholds: tuple[float, ...]
    num_layers: int

    def __post_init__(self) -> None:
        prefills = [point.prefill for point in self.points]
        if not prefills or prefills != sorted(set(prefills)) or prefills[-1] >= self.num_layers:
            names = ", ".join(point.name for point in self.points)
            raise RevmuxError(f"a cascade needs points whose prefills ascend and end below the top, not ({names})")
        if len(self.thresholds) != len(self.points):
            raise RevmuxError(f"a cascade of {len(self.points)} points has {len(self.thresholds)} thresholds")

    @property
    def width(self) -> int:
        """The widest composite that any step makes."""
        return max(point.width for point in self.points)

    def at(self, step: int) -> OperatingPoint:
        """The point of step `step`; step `len(points)` is the plain path."""
        return self.points[step] if step < len(self.points) else OperatingPoint.plain(self.num_layers)

    def start(self, step: int) -> int:
        """The depth from which step `step` goes on."""
        return self.points[step - 1].prefill if step else 0

    def leaves_at(self, confidences: np.ndarray) -> np.ndarray:
        """The step `[S]` at which samples leave whose confidences at the points are `[S, len(points)]`."""
        sure = confidences >= np.array(self.thresholds)
        return np.where(sure.any(axis=1), sure.argmax(axis=1), len(self.points))

    def ideal_costs(self) -> np.ndarray:
        """Layer compute of a sample that leaves at step k, as a share of plain inference: `[len(points) + 1]`."""
        own = [
            point.prefill - self.start(step) + len(point.upper) / point.width for step, point in enumerate(self.points)
        ]
        return np.cumsum([*own, self.num_layers - self.points[-1].prefill]) / self.num_layers

    def ideal_speedup(self, leaves_at: Sequence[int] | np.ndarray) -> float:
        """Plain layer compute over that of samples which left at these steps."""
        return float(1 / self.ideal_costs()[np.asarray(leaves_at)].mean())


def cascade_at_speed(
    points: tuple[OperatingPoint, ...], num_layers: int, confidences: np.ndarray, ideal_speedup: float
) -> Cascade:
    """The cascade with the highest threshold, one for all points, that still has this ideal speed-up on samples with
    these confidences, `[S, len(points)]`. It needs neither labels nor the plain model's answers.

    Raises `RevmuxError` where no threshold is that fast.
    """
    thresholds = np.unique(confidences)[::-1]
    for threshold in (np.nextafter(np.float32(1), np.float32(2)), *thresholds):
        cascade = Cascade(points, (float(threshold),) * len(points), num_layers)
        if cascade.ideal_speedup(cascade.leaves_at(confidences)) >= ideal_speedup:
            return cascade
    raise RevmuxError(f"no threshold of this cascade gives an ideal speed-up of {ideal_speedup:g}")
