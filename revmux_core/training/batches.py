"""Which samples a training step sees, and in which order: pure functions of a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Samples are sorted by length inside blocks of this many batches: wide enough to leave next to no padding, narrow
# enough that partners differ from epoch to epoch.
_BLOCK = 32


def length_grouped_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """All sample indices once, shuffled, cut into batches of similar length (tokens); partners are neighbours.

    The same arguments give the same batches. The order inside a batch is random, so that which of its batch mates a
    sample is multiplexed with is drawn anew every epoch. The last batch may be smaller.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    sizes = np.asarray(lengths)
    block = _BLOCK * batch_size
    batches: list[list[int]] = []
    for start in range(0, len(order), block):
        chunk = order[start : start + block]
        chunk = chunk[np.argsort(sizes[chunk], kind="stable")]
        for first in range(0, len(chunk), batch_size):
            batches.append(generator.permutation(chunk[first : first + batch_size]).tolist())
    generator.shuffle(batches)
    return batches
