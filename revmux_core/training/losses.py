"""The three training losses; the frozen model is the teacher of two of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of the terms; 0 leaves a term out.

    `ce`: cross-entropy on the labels, as in the paper; `infonce`: the paper's contrastive term, lambda 0.25 to 0.5
    there; `kl`: distillation to the frozen model's logits, which needs no labels.
    """

    ce: float = 1.0
    kl: float = 1.0
    infonce: float = 0.25


UNLABELLED = -100
"""Class index of a sample without a label."""


def labelled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits `[S, C]` on labels `[S]`, a mean over S in which an unlabelled sample counts as 0."""
    return F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum") / len(labels)


def infonce(states: Tensor, teacher: Tensor, temperature: float = 0.05) -> Tensor:
    """InfoNCE of demultiplexed `states` against the frozen model's own `teacher` states, both `[S, d]`.

    Each sample's teacher state is its positive, those of the batch's other samples are the negatives; cosine
    similarity, temperature 1/20 (RevMUX, equation 8).
    """
    similarity = F.normalize(states, dim=-1) @ F.normalize(teacher, dim=-1).T
    return F.cross_entropy(similarity / temperature, torch.arange(len(states), device=states.device))


def distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence from the frozen model's class probabilities to the demultiplexed ones; logits `[S, C]`."""
    return F.kl_div(
        F.log_softmax(logits, dim=-1), F.log_softmax(teacher, dim=-1), log_target=True, reduction="batchmean"
    )


def distillation_loss(
    weights: LossWeights, logits: Tensor, states: Tensor, teacher: Tensor, pooled: Tensor, labels: Tensor | None
) -> Tensor:
    """The weighted sum of the terms for `logits` `[S, C]` and the `states` `[S, d]` that they were read from.

    `teacher` `[S, C]` and `pooled` `[S, d]` are the frozen model's; without `labels` `[S]` that term is left out.
    """
    loss = torch.zeros((), device=logits.device)
    if weights.ce and labels is not None:
        loss = loss + weights.ce * labelled_cross_entropy(logits, labels)
    if weights.kl:
        loss = loss + weights.kl * distillation(logits, teacher)
    if weights.infonce:
        loss = loss + weights.infonce * infonce(states.float(), pooled)
    return loss
