"""The three training losses; the frozen model is the teacher of two of them.

What labels and teacher say is another loss for every type of task. Rows are samples, or words where those are answered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from revmux_core.problems import UNLABELLED, MultiLabel, Problem, Regression


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of the terms; 0 leaves a term out.

    `ce`: cross-entropy on the labels, as in the paper (`labelled_loss`); `infonce`: the paper's contrastive term,
    lambda 0.25 to 0.5 there; `kl`: distillation to the frozen model's logits (`distillation`), which needs no labels.
    """

    ce: float = 1.0
    kl: float = 1.0
    infonce: float = 0.25


def labelled_loss(problem: Problem, logits: Tensor, targets: Tensor) -> Tensor:
    """How far logits `[R, C]` are from what labels say (`Problem.targets`), a mean over R in which an unlabelled row
    counts as 0.

    The negative log probability of the answer: cross-entropy of one label, its sum over independent labels where there
    may be any number. For a score it is the squared error, as in Hugging Face's models.
    """
    if isinstance(problem, Regression | MultiLabel):
        known = ~targets.isnan()
        expected = targets.nan_to_num()
        if isinstance(problem, Regression):
            losses = F.mse_loss(logits[:, 0], expected, reduction="none")
        else:
            losses = F.binary_cross_entropy_with_logits(logits, expected, reduction="none")
        return (losses * known).sum() / len(logits)
    return F.cross_entropy(logits, targets, ignore_index=UNLABELLED, reduction="sum") / len(targets)


def infonce(states: Tensor, teacher: Tensor, temperature: float = 0.05) -> Tensor:
    """InfoNCE of demultiplexed `states` against the frozen model's own `teacher` states, both `[S, d]`.

    Each sample's teacher state is its positive, those of the batch's other samples are the negatives; cosine
    similarity, temperature 1/20 (RevMUX, equation 8).
    """
    similarity = F.normalize(states, dim=-1) @ F.normalize(teacher, dim=-1).T
    return F.cross_entropy(similarity / temperature, torch.arange(len(states), device=states.device))


def distillation(problem: Problem, logits: Tensor, teacher: Tensor) -> Tensor:
    """How far logits `[R, C]` are from the frozen model's, a mean over R.

    KL divergence from its class probabilities to theirs: of one label, or summed over independent labels. The squared
    difference of scores, which is the KL divergence of Gaussians around them, up to a factor.
    """
    if isinstance(problem, Regression):
        return F.mse_loss(logits, teacher)
    if isinstance(problem, MultiLabel):
        expected = teacher.sigmoid()
        cross, own = (F.binary_cross_entropy_with_logits(rows, expected, reduction="sum") for rows in (logits, teacher))
        return (cross - own) / len(logits)
    return F.kl_div(
        F.log_softmax(logits, dim=-1), F.log_softmax(teacher, dim=-1), log_target=True, reduction="batchmean"
    )


def distillation_loss(
    problem: Problem,
    weights: LossWeights,
    logits: Tensor,
    states: Tensor,
    teacher: Tensor,
    pooled: Tensor,
    targets: Tensor | None,
) -> Tensor:
    """The weighted sum of the terms for `logits` `[R, C]` and the `states` `[R, d]` that they were read from.

    `teacher` `[R, C]` and `pooled` `[R, d]` are the frozen model's; without `targets` of the rows their term is left
    out.
    """
    loss = torch.zeros((), device=logits.device)
    if weights.ce and targets is not None:
        loss = loss + weights.ce * labelled_loss(problem, logits, targets)
    if weights.kl:
        loss = loss + weights.kl * distillation(problem, logits, teacher)
    if weights.infonce:
        loss = loss + weights.infonce * infonce(states.float(), pooled)
    return loss
