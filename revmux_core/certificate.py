"""Certified agreement: how sure a point must be of an answer that the plain path is spared. Pure: numpy and scipy.

A threshold is certified on texts that had no part in choosing it: with the confidence asked for, at most a share of
1 - target of all answers differs from the plain model's, whatever the distribution of texts is and whatever the model.
The bound is the exact binomial one (Clopper and Pearson, Biometrika 26, 1934); trying thresholds from the strictest
down and stopping at the first that fails keeps it valid for the one that is kept (fixed-sequence testing in
learn-then-test: Angelopoulos et al., arXiv 2110.01052).
"""

from __future__ import annotations

import math

import numpy as np

from revmux_core.errors import RevmuxError


class CalibrationError(RevmuxError):
    """A promise that the texts at hand cannot support; the message says how many are needed."""


def samples_needed(target: float, confidence: float) -> int:
    """The fewest samples that can certify `target`: so many, and none that differs. Grows as 1 / (1 - target)."""
    return math.ceil(math.log(1 - confidence) / math.log(target))


def certify(differs: np.ndarray, target: float, confidence: float) -> int | None:
    """The last threshold that is certified to keep `target`, or None where the first is not.

    `differs` `[n, T]` says of n independent samples whether their answer differs from the plain model's at each of T
    thresholds, from the strictest down; both must have been fixed before these samples were looked at.
    """
    from scipy.stats import binom

    p_values = binom.cdf(differs.sum(axis=0), len(differs), 1 - target)
    failed = np.flatnonzero(p_values > 1 - confidence)
    certified = failed[0] if len(failed) else differs.shape[1]
    return int(certified) - 1 if certified else None


def upper_bound(differing: int, samples: int, confidence: float) -> float:
    """Clopper and Pearson's upper confidence bound of a share of which `differing` of `samples` were seen."""
    from scipy.stats import beta

    return 1.0 if differing == samples else float(beta.ppf(confidence, differing + 1, samples - differing))
