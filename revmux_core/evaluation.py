"""How right multiplexed answers are, how often they are the plain model's, and how far partners decide them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from revmux_core.batch import Prefilled
from revmux_core.cascade import Cascade
from revmux_core.classifier import MuxClassifier
from revmux_core.errors import RevmuxError
from revmux_core.multiplexing import Multiplexer
from revmux_core.offline import BATCH_TOKENS, answer_plan, run_all, run_cascade
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint
from revmux_core.training.batches import length_grouped_batches

# As in training, so that partners are as similar in length as there; a multiple of every power-of-two width.
_BATCH = 64

_STATES_BYTES = 2**30
"""Most memory for the states at the end of the prefill, which all draws share; more text is prefilled for each."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Shares of samples, over `draws` reshuffles of partners; accuracies are None without labels.

    `agreement` is with the plain path's label. `agreement_without_composite` is that of one more draw in which every
    composite's output is blanked: what prefill and shortcut are worth alone, and so what the upper layers add. It is
    None at width 1, where there are no composites.
    `partner_sensitivity` is the share of samples whose label was not the same in every draw.
    """

    point: str
    width: int
    prefill: int
    samples: int
    draws: int
    plain_accuracy: float | None
    accuracy: float | None
    accuracy_worst: float | None
    agreement: float
    agreement_worst: float
    agreement_without_composite: float | None
    partner_sensitivity: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    classifier: MuxClassifier,
    point: OperatingPoint,
    samples: Sequence[Tokens],
    labels: Sequence[int] | None,
    pad_id: int,
    draws: int = 10,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
    reference: Tensor | None = None,
) -> Evaluation:
    """Answers every sample `draws` times at `point`, each time with other partners of similar length.

    Every sample is answered from a full composite: where the last one lacks members, samples that already have their
    answer fill it and are not counted again. `progress` is called after every draw. Agreement is with `reference`, the
    labels `[S]` of another model, or with the classifier's own plain path in PyTorch where that is None.

    Raises `RevmuxError` for fewer samples than the point's width, or no draws.
    """
    width = point.width
    if draws < 1:
        raise RevmuxError("at least one draw is needed")
    if len(samples) < width:
        raise RevmuxError(f"width {width} needs at least {width} samples, got {len(samples)}")
    plain = plain_labels(classifier, samples, pad_id) if reference is None else reference
    answers = torch.empty(draws, len(samples), dtype=torch.long)
    draw_from: Sequence[Tokens | Prefilled] = samples
    for draw in range(draws):
        # What partners cannot change is computed in the first draw only.
        answers[draw], draw_from = _draw_labels(classifier, point, draw_from, pad_id, seed, draw)
        progress()
    without_composite = None
    if width > 1:
        with _blanked(classifier.adapters_of(point).multiplexer):
            blank, _ = _draw_labels(classifier, point, draw_from, pad_id, seed, draws)
        without_composite = float((blank == plain).double().mean())
    truth = None if labels is None else torch.tensor(labels)
    agreement = (answers == plain).double().mean(dim=1)
    accuracy = None if truth is None else (answers == truth).double().mean(dim=1)
    return Evaluation(
        point=point.name,
        width=width,
        prefill=point.prefill,
        samples=len(samples),
        draws=draws,
        plain_accuracy=None if truth is None else float((plain == truth).double().mean()),
        accuracy=None if accuracy is None else float(accuracy.mean()),
        accuracy_worst=None if accuracy is None else float(accuracy.min()),
        agreement=float(agreement.mean()),
        agreement_worst=float(agreement.min()),
        agreement_without_composite=without_composite,
        partner_sensitivity=float((answers != answers[0]).any(dim=0).double().mean()),
    )


@dataclass(frozen=True, slots=True)
class CascadeEvaluation:
    """Shares of samples as in `Evaluation`; `escalation_rate` is that of samples which ended on the plain path."""

    width: int
    points: tuple[str, ...]
    threshold: float
    samples: int
    draws: int
    plain_accuracy: float | None
    accuracy: float | None
    agreement: float
    agreement_worst: float
    escalation_rate: float
    ideal_speedup: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_cascade(
    classifier: MuxClassifier,
    cascade: Cascade,
    samples: Sequence[Tokens],
    labels: Sequence[int] | None,
    pad_id: int,
    draws: int = 10,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
    reference: Tensor | None = None,
) -> CascadeEvaluation:
    """Answers every sample `draws` times with `cascade`, each time with other partners of similar length.

    Agreement is as in `evaluate`.
    """
    if reference is None:
        reference = plain_labels(classifier, samples, pad_id)
    draws = draws_at(cascade, draws)
    answers = torch.empty(draws, len(samples), dtype=torch.long)
    left_at = np.empty((draws, len(samples)), dtype=np.int64)
    for draw in range(draws):
        for batch in length_grouped_batches([len(sample) for sample in samples], _BATCH, seed, draw):
            logits, steps = run_cascade(classifier, [samples[i] for i in batch], cascade, pad_id, BATCH_TOKENS)
            answers[draw, batch] = logits.argmax(dim=-1)
            left_at[draw, batch] = steps
        progress()
    agreement = (answers == reference).double().mean(dim=1)
    truth = None if labels is None else torch.tensor(labels)
    return CascadeEvaluation(
        width=cascade.width,
        points=tuple(point.name for point in cascade.points),
        threshold=cascade.threshold,
        samples=len(samples),
        draws=draws,
        plain_accuracy=None if truth is None else float((reference == truth).double().mean()),
        accuracy=None if truth is None else float((answers == truth).double().mean()),
        agreement=float(agreement.mean()),
        agreement_worst=float(agreement.min()),
        escalation_rate=float((left_at == len(cascade.points)).mean()),
        ideal_speedup=cascade.ideal_speedup(left_at.reshape(-1)),
    )


@contextmanager
def _blanked(multiplexer: Multiplexer) -> Iterator[None]:
    """While this lasts, `multiplexer` demultiplexes zeros."""
    demultiplex = multiplexer.demultiplex

    def blank(pooled: Tensor, slots: Tensor, own: Tensor, appended: Tensor) -> Tensor:
        return demultiplex(torch.zeros_like(pooled), slots, own, torch.zeros_like(appended))

    vars(multiplexer)["demultiplex"] = blank
    try:
        yield
    finally:
        del vars(multiplexer)["demultiplex"]


def draws_at(point: OperatingPoint | Cascade, draws: int) -> int:
    """How many of `draws` say something new there: at width 1 there are no partners, so the first says it all."""
    return draws if point.width > 1 else 1


def plain_labels(classifier: MuxClassifier, samples: Sequence[Tokens], pad_id: int) -> Tensor:
    """The plain model's label of every sample, `[S]`: that of PyTorch, whichever backend `classifier` runs on."""
    reference = MuxClassifier(classifier.backbone, {})
    logits, _ = run_all(reference, samples, reference.plain, pad_id, BATCH_TOKENS)
    return logits.argmax(dim=-1)


def _draw_labels(
    classifier: MuxClassifier,
    point: OperatingPoint,
    samples: Sequence[Tokens | Prefilled],
    pad_id: int,
    seed: int,
    draw: int,
) -> tuple[Tensor, Sequence[Tokens | Prefilled]]:
    """The label of every sample, `[S]`, for one draw of partners; and the samples as further draws should have them:
    prefilled, where the states of all fit in memory."""
    labels = torch.empty(len(samples), dtype=torch.long)
    lengths = [len(sample) for sample in samples]
    start = samples[0].depth if isinstance(samples[0], Prefilled) else 0
    fits = 4 * sum(lengths) * classifier.backbone.hidden_size <= _STATES_BYTES
    keep = point.width > 1 and start < point.prefill and fits
    kept: dict[int, Prefilled] = {}
    generator = np.random.default_rng((seed, draw, len(samples)))
    for batch in length_grouped_batches(lengths, _BATCH, seed, draw):
        answered = len(batch)
        tail = answered % point.width
        if tail:
            others = np.setdiff1d(np.arange(len(samples)), batch[-tail:])
            batch = batch + generator.choice(others, point.width - tail, replace=False).tolist()
        group = Group(point, tuple(range(len(batch))), start)
        outcome = answer_plan(classifier, [samples[i] for i in batch], MuxPlan((group,)), pad_id)
        labels[batch[:answered]] = outcome.logits.argmax(dim=-1)[:answered].cpu()
        if keep:
            kept.update((i, outcome.prefilled(group, position)) for position, i in enumerate(batch[:answered]))
    return labels, [kept[i] for i in range(len(samples))] if keep else samples
