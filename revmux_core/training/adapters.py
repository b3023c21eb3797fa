"""Trains the adapters of operating points around a frozen classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from revmux_core.backbones import Backbone
from revmux_core.classifier import Adapters
from revmux_core.composites import demultiplex, multiplex
from revmux_core.errors import RevmuxError
from revmux_core.points import OperatingPoint
from revmux_core.problems import Problem
from revmux_core.training.cache import FrozenStates
from revmux_core.training.loop import Schedule, train_loop
from revmux_core.training.losses import LossWeights, distillation_loss


def train_adapters(
    backbone: Backbone,
    adapters: Mapping[OperatingPoint, Adapters],
    states: FrozenStates,
    targets: np.ndarray | None,
    weights: LossWeights,
    schedule: Schedule,
    folder: Path,
    seed: int,
    device: torch.device,
    precision: str,
) -> float:
    """Trains all `adapters` in place, in the same pass over the same frozen states; returns the seconds it took.

    Without `targets` (`Problem.targets`, of the samples) the term on labels is left out: the frozen model's answers are
    then all there is to learn.
    Raises `RevmuxError` when no loss term is left, or the batch size is no multiple of every width.
    """
    if targets is None and not (weights.kl or weights.infonce):
        raise RevmuxError("without labels, give --kl or --infonce a weight above 0")
    together = math.lcm(*(point.width for point in adapters))
    if schedule.batch_size % together:
        raise RevmuxError(f"the batch size must be a multiple of {together} for these widths")
    modules = nn.ModuleDict({str(i): adapters[point] for i, point in enumerate(sorted(adapters))})
    modules.to(device)
    for adapter in adapters.values():
        # Only here is dropout part of a method; copies of frozen layers run as they will be served.
        adapter.multiplexer.train()
    problem = backbone.problem
    labelled = None if targets is None else torch.from_numpy(targets)

    def point_loss(point: OperatingPoint, indices: list[int]) -> tuple[Tensor, float]:
        # The last batch of an epoch may not fill its last composite; those samples come again next epoch.
        indices = indices[: len(indices) // point.width * point.width]
        hidden, mask = states.prefilled(point.prefill, indices, backbone.padding_side)
        multiplexer = adapters[point].multiplexer
        composites = multiplex(backbone, multiplexer, hidden.to(device), mask.to(device))
        out = composites.hidden
        for layer in point.upper:
            out = backbone.run(out, composites.mask, adapters[point].layers(backbone, point, layer, layer + 1))
        words, rows = states.words_of(indices), states.rows(indices)
        told = None if words is None else words.to(device)
        state = demultiplex(backbone, multiplexer, out, composites.own, composites.own_mask, told)
        logits = backbone.head(state).float()
        teacher = states.logits[rows].to(device)
        truth = None
        if labelled is not None:
            truth = labelled[indices] if words is None else labelled[indices][words.samples, words.nth]
            truth = truth.to(device)
        loss = distillation_loss(problem, weights, logits, state, teacher, states.pooled[rows].to(device), truth)
        return loss, _agreement(problem, logits, teacher)

    def loss_function(indices: list[int]) -> tuple[Tensor, dict[str, float]]:
        total, figures = torch.zeros((), device=device), {}
        for point in adapters:
            if len(indices) >= point.width:
                loss, agreement = point_loss(point, indices)
                total, figures[f"agreement_{point.name}"] = total + loss, agreement
        return total, figures

    trained = {name: parameter for name, parameter in modules.named_parameters() if parameter.requires_grad}
    lengths = [int(n) for n in states.offsets[1:] - states.offsets[:-1]]
    seconds = train_loop("adapters", trained, loss_function, lengths, schedule, folder, seed, device, precision)
    modules.eval()
    return seconds


def _agreement(problem: Problem, logits: Tensor, teacher: Tensor) -> float:
    """The share of rows, of samples or of words, that answer as the frozen model does."""
    # A word by itself is a text of one.
    shape = (len(logits), *(abs(size) for size in problem.row_shape))
    own, plain = (problem.decide(rows.detach().cpu().numpy().reshape(shape)) for rows in (logits, teacher))
    return float(problem.agree(own, plain).mean())
