"""Longer unlabelled texts from short ones, for a model whose labelled texts are shorter than those it will be sent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from revmux_core.data import Example
from revmux_core.errors import RevmuxError

# Texts that are joined into one. SST-2's phrases (mean 13 tokens) so become 30 long, its sentences are 25.
_TOGETHER = (2, 3)


def join_texts(examples: Sequence[Example], rounds: int, seed: int) -> list[Example]:
    """Every round shuffles the texts and joins each two or three that then follow each other.

    The joined texts have no label: they are for distillation, where the frozen model says what they are. Each round
    holds every text at most once.

    Raises `RevmuxError` for pairs of texts, which have no end to be joined at.
    """
    if rounds and any(example.pair is not None for example in examples):
        raise RevmuxError("--join-rounds works on single texts, not on pairs: leave it out")
    joined = []
    for number in range(rounds):
        generator = np.random.default_rng((seed, number))
        order = generator.permutation(len(examples)).tolist()
        while len(order) >= max(_TOGETHER):
            members = [order.pop() for _ in range(generator.choice(_TOGETHER))]
            joined.append(Example(" ".join(examples[i].text.strip() for i in members)))
    return joined
