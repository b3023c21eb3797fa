"""From which probability on a text has a label, where it may have any number of them. Pure: numpy."""

from __future__ import annotations

import numpy as np

from revmux_core.problems import is_labelled

_HELD_OUT = 10
"""One labelled text in so many is for thresholds, and no tuning sees it."""

_CANDIDATES = np.arange(1, 20) / 20
"""Coarse on purpose: what finer ones gain on some hundred texts is chance."""

_OCCURRENCES = 10
"""Texts of a label below which its threshold stays 0.5: fewer say too little."""


def hold_out(targets: np.ndarray, seed: int) -> list[int]:
    """Which samples, of all that have labels, are for thresholds. `targets` are those of `MultiLabel`."""
    labelled = np.flatnonzero(is_labelled(targets)[:, 0])
    return sorted(np.random.default_rng(seed).permutation(labelled)[: len(labelled) // _HELD_OUT].tolist())


def choose_thresholds(probs: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
    """For each label the threshold that has the best F1 on probabilities `[n, C]` and targets `[n, C]`; of equally good
    ones the nearest to 0.5."""
    nearest_first = sorted(_CANDIDATES.tolist(), key=lambda threshold: abs(threshold - 0.5))
    return tuple(
        max(nearest_first, key=lambda threshold: _f1(own >= threshold, due)) if due.sum() >= _OCCURRENCES else 0.5
        for own, due in zip(probs.T, targets.T.astype(bool), strict=True)
    )


def _f1(found: np.ndarray, due: np.ndarray) -> float:
    return float(2 * (found & due).sum() / (found.sum() + due.sum()))
