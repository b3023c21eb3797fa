"""Trains the adapters of operating points around a frozen classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from revmux_core.backbones import Backbone
from revmux_core.classifier import Adapters
from revmux_core.composites import demultiplex, multiplex
from revmux_core.errors import RevmuxError
from revmux_core.points import OperatingPoint
from revmux_core.training.cache import FrozenStates
from revmux_core.training.loop import Schedule, train_loop
from revmux_core.training.losses import LossWeights, distillation_loss


def train_adapters(
    backbone: Backbone,
    adapters: Mapping[OperatingPoint, Adapters],
    states: FrozenStates,
    labels: Sequence[int] | None,
    weights: LossWeights,
    schedule: Schedule,
    folder: Path,
    seed: int,
    device: torch.device,
    precision: str,
) -> float:
    """Trains all `adapters` in place, in the same pass over the same frozen states; returns the seconds it took.

    Without `labels` the cross-entropy term is left out: the frozen model's answers are then all there is to learn. A
    single sample without one has the label `UNLABELLED`.
    Raises `RevmuxError` when no loss term is left, or the batch size is no multiple of every width.
    """
    if labels is None and not (weights.kl or weights.infonce):
        raise RevmuxError("without labels, give --kl or --infonce a weight above 0")
    together = math.lcm(*(point.width for point in adapters))
    if schedule.batch_size % together:
        raise RevmuxError(f"the batch size must be a multiple of {together} for these widths")
    modules = nn.ModuleDict({str(i): adapters[point] for i, point in enumerate(sorted(adapters))})
    modules.to(device)
    for adapter in adapters.values():
        # Only here is dropout part of a method; copies of frozen layers run as they will be served.
        adapter.multiplexer.train()
    targets = None if labels is None else torch.tensor(labels)

    def point_loss(point: OperatingPoint, indices: list[int]) -> tuple[Tensor, float]:
        # The last batch of an epoch may not fill its last composite; those samples come again next epoch.
        indices = indices[: len(indices) // point.width * point.width]
        hidden, mask = states.prefilled(point.prefill, indices, backbone.padding_side)
        multiplexer = adapters[point].multiplexer
        composites = multiplex(backbone, multiplexer, hidden.to(device), mask.to(device))
        out = composites.hidden
        for layer in point.upper:
            out = backbone.run(out, composites.mask, adapters[point].layers(backbone, point, layer, layer + 1))
        state = demultiplex(backbone, multiplexer, out, composites)
        logits = backbone.head(state).float()
        teacher = states.logits[indices].to(device)
        truth = None if targets is None else targets[indices].to(device)
        loss = distillation_loss(weights, logits, state, teacher, states.pooled[indices].to(device), truth)
        return loss, float((logits.argmax(-1) == teacher.argmax(-1)).float().mean())

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
