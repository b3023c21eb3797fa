"""A smaller student of a frozen classifier: some of its layers, all of their weights trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from revmux_core.backbones import Backbone, view
from revmux_core.batch import pad
from revmux_core.plan import Tokens
from revmux_core.training.loop import Schedule, train_loop
from revmux_core.training.losses import LossWeights, distillation_loss


def train_student(
    teacher: Backbone,
    layers: Sequence[int],
    samples: Sequence[Tokens],
    logits: Tensor,
    pooled: Tensor,
    targets: np.ndarray | None,
    weights: LossWeights,
    schedule: Schedule,
    folder: Path,
    pad_id: int,
    seed: int,
    device: torch.device,
    precision: str,
) -> tuple[PreTrainedModel, float]:
    """Distils `teacher`, which gives each text one label, into a copy of it with `layers` only; the same losses as
    adapters have.

    Starting from the teacher's own layers is layer dropping (Sajjad et al. 2020, arXiv 2004.03844), the usual rival
    of early exits and of multiplexing. `logits` `[S, C]` and `pooled` `[S, d]` are the teacher's. Returns the student
    and the seconds it took.
    """
    student = teacher.pruned(layers)
    nn.Module.to(student, device)
    backbone = view(student)
    student.requires_grad_(True)
    labelled = None if targets is None else torch.from_numpy(targets)

    def loss_function(indices: list[int]) -> tuple[Tensor, dict[str, float]]:
        ids, mask, type_ids = pad([samples[i] for i in indices], pad_id, backbone.padding_side)
        ids, mask = ids.to(device), mask.to(device)
        hidden = backbone.embed(ids, mask, None if type_ids is None else type_ids.to(device))
        hidden = backbone.run(hidden, mask, backbone.layers(0, backbone.num_layers))
        state = backbone.pool(hidden, torch.arange(len(indices), device=device), mask)
        answers = backbone.head(state).float()
        truth = None if labelled is None else labelled[indices].to(device)
        expected = logits[indices].to(device)
        loss = distillation_loss(backbone.problem, weights, answers, state, expected, pooled[indices].to(device), truth)
        return loss, {"agreement": float((answers.argmax(-1) == expected.argmax(-1)).float().mean())}

    lengths = [len(sample) for sample in samples]
    trained = dict(student.named_parameters())
    seconds = train_loop("student", trained, loss_function, lengths, schedule, folder, seed, device, precision)
    student.requires_grad_(False)
    return student, seconds
