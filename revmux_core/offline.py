"""Classifies a whole list at once: plans every batch up front and runs them in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from revmux_core.batch import Prefilled, cat_logits, collate
from revmux_core.cascade import Cascade
from revmux_core.classifier import MuxClassifier, Outcome
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint

# Padded tokens a batch. On two cores throughput is flat from 500 tokens up; more only costs memory.
BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer: the most probable label, all class probabilities, the width of the composite it came from, and
    whether it was escalated to the plain path.

    Beside them the `labels` that reach their thresholds where any number may be given, the `score` of a regression
    (whose one probability is the score again), or the `entities` of token classification, in the format of Hugging
    Face's pipeline, which has no label and no probabilities of the whole.
    """

    label: str | None
    probs: list[float]
    mux_width: int
    escalated: bool
    labels: list[str] | None = None
    score: float | None = None
    entities: list[dict[str, Any]] | None = None


def plan_batches(
    lengths: Sequence[int], point: OperatingPoint, plain: OperatingPoint, max_tokens: int, start: int = 0
) -> Iterator[tuple[list[int], MuxPlan]]:
    """Cuts samples, longest first, into batches of at most `max_tokens` padded tokens (at least one composite each).

    Neighbours in length share a composite; samples that fill none at the end run plain. The first `start` layers were
    already run on all. Yields, per batch, the sample indices and the plan over them.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    done = 0
    while done < len(order):
        fitting = max_tokens // lengths[order[done]] // point.width * point.width
        indices = order[done : done + max(point.width, fitting)]
        done += len(indices)
        muxed = len(indices) // point.width * point.width
        groups = []
        if muxed:
            groups.append(Group(point, tuple(range(muxed)), start))
        if muxed < len(indices):
            groups.append(Group(plain, tuple(range(muxed, len(indices))), start))
        yield indices, MuxPlan(tuple(groups))


def answer_plan(
    classifier: MuxClassifier, samples: Sequence[Tokens | Prefilled], plan: MuxPlan, pad_id: int
) -> Outcome:
    """Answers of `samples`, and the states to go on from, on the classifier's device."""
    device = next(classifier.frozen.parameters()).device
    batch = collate(samples, plan, pad_id, classifier.backbone.padding_side)
    return classifier(batch.to(device))


def run_plan(classifier: MuxClassifier, samples: Sequence[Tokens], plan: MuxPlan, pad_id: int) -> Tensor:
    """Logits `[S, C]` in float32 on the host, in the order of `samples`; by word, they are those of `Outcome`."""
    return answer_plan(classifier, samples, plan, pad_id).logits.float().cpu()


def run_all(
    classifier: MuxClassifier, samples: Sequence[Tokens], point: OperatingPoint, pad_id: int, max_tokens: int
) -> tuple[Tensor, list[int]]:
    """Logits `[S, C]` of all samples at `point`, see `run_plan`, and the mux width that each of them had."""
    logits: list[Tensor | None] = [None] * len(samples)
    widths = [1] * len(samples)
    for indices, plan in plan_batches([len(s) for s in samples], point, classifier.plain, max_tokens):
        rows = run_plan(classifier, [samples[i] for i in indices], plan, pad_id)
        for index, row in zip(indices, rows, strict=True):
            logits[index] = row
        for group in plan.groups:
            for member in group.members:
                widths[indices[member]] = group.point.width
    return cat_logits([row.unsqueeze(0) for row in logits if row is not None]), widths


def run_cascade(
    classifier: MuxClassifier, samples: Sequence[Tokens], cascade: Cascade, pad_id: int, max_tokens: int
) -> tuple[Tensor, list[int]]:
    """Logits `[S, C]` of all samples, see `run_plan`, and the step of `cascade` that each left at."""
    logits: list[Tensor | None] = [None] * len(samples)
    left_at = [0] * len(samples)

    def step(number: int, waiting: Sequence[Tokens | Prefilled], names: Sequence[int]) -> None:
        """Answers the samples `waiting`, which are called `names` outside."""
        last = number == len(cascade.points)
        point = classifier.plain if last else cascade.points[number]
        least = 0.0 if last else cascade.thresholds[number]
        lengths = [len(sample) for sample in waiting]
        for indices, plan in plan_batches(lengths, point, classifier.plain, max_tokens, cascade.start(number)):
            outcome = answer_plan(classifier, [waiting[i] for i in indices], plan, pad_id)
            rows = outcome.logits.float().cpu()
            sure = (outcome.confidences >= least).tolist()
            unsure, unsure_names = [], []
            for group in plan.groups:
                for position, member in enumerate(group.members):
                    name = names[indices[member]]
                    if group.point == classifier.plain or sure[member]:
                        logits[name] = rows[member]
                        left_at[name] = len(cascade.points) if group.point == classifier.plain else number
                    else:
                        unsure.append(outcome.prefilled(group, position))
                        unsure_names.append(name)
            if unsure:
                step(number + 1, unsure, unsure_names)

    step(0, samples, range(len(samples)))
    return cat_logits([row.unsqueeze(0) for row in logits if row is not None]), left_at
