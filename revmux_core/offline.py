"""Classifies a whole list at once: plans every batch up front and runs them in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from revmux_core.batch import collate
from revmux_core.classifier import MuxClassifier
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint

# Padded tokens a batch. On two cores throughput is flat from 500 tokens up; more only costs memory.
BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer: the most probable label, all class probabilities, and the width of the composite it came from."""

    label: str
    probs: list[float]
    mux_width: int


def plan_batches(
    lengths: Sequence[int], point: OperatingPoint, plain: OperatingPoint, max_tokens: int
) -> Iterator[tuple[list[int], MuxPlan]]:
    """Cuts samples, longest first, into batches of at most `max_tokens` padded tokens (at least one composite each).

    Neighbours in length share a composite; samples that fill none at the end run plain. Yields, per batch, the sample
    indices and the plan over them.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        fitting = max_tokens // lengths[order[start]] // point.width * point.width
        indices = order[start : start + max(point.width, fitting)]
        start += len(indices)
        muxed = len(indices) // point.width * point.width
        groups = []
        if muxed:
            groups.append(Group(point, tuple(range(muxed))))
        if muxed < len(indices):
            groups.append(Group(plain, tuple(range(muxed, len(indices)))))
        yield indices, MuxPlan(tuple(groups))


def run_plan(classifier: MuxClassifier, samples: Sequence[Tokens], plan: MuxPlan, pad_id: int) -> Tensor:
    """Logits `[S, C]` in float32 on the host, in the order of `samples`."""
    device = next(classifier.frozen.parameters()).device
    batch = collate(samples, plan, pad_id, classifier.backbone.padding_side)
    return classifier(batch.to(device)).float().cpu()


def run_all(
    classifier: MuxClassifier, samples: Sequence[Tokens], point: OperatingPoint, pad_id: int, max_tokens: int
) -> tuple[Tensor, list[int]]:
    """Logits `[S, C]` of all samples at `point`, and the mux width that each of them had."""
    logits: list[Tensor | None] = [None] * len(samples)
    widths = [1] * len(samples)
    for indices, plan in plan_batches([len(s) for s in samples], point, classifier.plain, max_tokens):
        rows = run_plan(classifier, [samples[i] for i in indices], plan, pad_id)
        for index, row in zip(indices, rows, strict=True):
            logits[index] = row
        for group in plan.groups:
            for member in group.members:
                widths[indices[member]] = group.point.width
    return torch.stack([row for row in logits if row is not None]), widths
