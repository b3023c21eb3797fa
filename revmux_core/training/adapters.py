"""Trains the adapters of operating points around a frozen classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revmux_core.backbones import Backbone
from revmux_core.classifier import demultiplex, multiplex
from revmux_core.errors import RevmuxError
from revmux_core.multiplexing import ReversibleMultiplexer
from revmux_core.points import OperatingPoint
from revmux_core.training.cache import FrozenStates
from revmux_core.training.loop import Schedule, train_loop
from revmux_core.training.losses import LossWeights, distillation, infonce


def train_adapters(
    backbone: Backbone,
    multiplexers: Mapping[OperatingPoint, ReversibleMultiplexer],
    states: FrozenStates,
    labels: Sequence[int] | None,
    weights: LossWeights,
    schedule: Schedule,
    folder: Path,
    seed: int,
    device: torch.device,
    precision: str,
) -> float:
    """Trains all `multiplexers` in place, in the same pass over the same frozen states; returns the seconds it took.

    Without `labels` the cross-entropy term is left out: the frozen model's answers are then all there is to learn.
    Raises `RevmuxError` when no loss term is left, or the batch size is no multiple of every width.
    """
    if labels is None and not (weights.kl or weights.infonce):
        raise RevmuxError("without labels, give --kl or --infonce a weight above 0")
    together = math.lcm(*(point.width for point in multiplexers))
    if schedule.batch_size % together:
        raise RevmuxError(f"the batch size must be a multiple of {together} for these widths")
    modules = nn.ModuleDict({str(i): multiplexers[point] for i, point in enumerate(sorted(multiplexers))})
    modules.to(device).train()
    targets = None if labels is None else torch.tensor(labels)

    def point_loss(point: OperatingPoint, indices: list[int]) -> tuple[Tensor, float]:
        # The last batch of an epoch may not fill its last composite; those samples come again next epoch.
        indices = indices[: len(indices) // point.width * point.width]
        hidden, mask = states.prefilled(point.prefill, indices, backbone.padding_side)
        composites = multiplex(backbone, multiplexers[point], hidden.to(device), mask.to(device))
        out = composites.hidden
        for layer in point.upper:
            out = backbone.run(out, composites.mask, layer, layer + 1)
        state = demultiplex(backbone, multiplexers[point], out, composites)
        logits = backbone.head(state).float()
        teacher = states.logits[indices].to(device)
        loss = torch.zeros((), device=device)
        if weights.ce and targets is not None:
            loss = loss + weights.ce * F.cross_entropy(logits, targets[indices].to(device))
        if weights.kl:
            loss = loss + weights.kl * distillation(logits, teacher)
        if weights.infonce:
            loss = loss + weights.infonce * infonce(state.float(), states.pooled[indices].to(device))
        return loss, float((logits.argmax(-1) == teacher.argmax(-1)).float().mean())

    def loss_function(indices: list[int]) -> tuple[Tensor, dict[str, float]]:
        total, figures = torch.zeros((), device=device), {}
        for point in multiplexers:
            if len(indices) >= point.width:
                loss, agreement = point_loss(point, indices)
                total, figures[f"agreement_{point.name}"] = total + loss, agreement
        return total, figures

    lengths = [int(n) for n in states.offsets[1:] - states.offsets[:-1]]
    seconds = train_loop(
        "adapters", dict(modules.named_parameters()), loss_function, lengths, schedule, folder, seed, device, precision
    )
    modules.eval()
    return seconds
