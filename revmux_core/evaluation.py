"""How right multiplexed answers are, how often they agree with the plain model's, and how far partners decide them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from revmux_core.batch import Prefilled, cat_logits
from revmux_core.cascade import Cascade
from revmux_core.classifier import MuxClassifier
from revmux_core.errors import RevmuxError
from revmux_core.multiplexing import Multiplexer
from revmux_core.offline import BATCH_TOKENS, answer_plan, run_all, run_cascade
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint
from revmux_core.problems import Problem
from revmux_core.training.batches import length_grouped_batches

# As in training, so that partners are as similar in length as there; a multiple of every power-of-two width.
_BATCH = 64

_STATES_BYTES = 2**30
"""Most memory for the states at the end of the prefill, which all draws share; more text is prefilled for each."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a point came to, over `draws` reshuffles of partners.

    `agreement` is the share of samples whose answer agrees with the plain path's (`Problem.agree`).
    `agreement_without_composite` is that of one more draw in which every composite's output is blanked: what prefill
    and shortcut are worth alone, and so what the upper layers add. It is None at width 1, where no composites are.
    `partner_sensitivity` is the share of samples whose answer did not agree in all draws. `closeness` has the problem's
    own figures beside agreement, `metrics` its metrics against labels, and the plain path's (`plain_...`): means over
    draws, and the worst draw (`..._worst`); None without labels.
    """

    point: str
    width: int
    prefill: int
    samples: int
    draws: int
    metrics: Mapping[str, float | None]
    agreement: float
    agreement_worst: float
    agreement_without_composite: float | None
    partner_sensitivity: float
    closeness: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return _flat(self)


def _flat(evaluation: Evaluation | CascadeEvaluation) -> dict[str, Any]:
    """Figures by name, those of metrics and closeness among them."""
    figures: dict[str, Any] = {}
    for name, value in asdict(evaluation).items():
        figures |= value if isinstance(value, Mapping) else {name: value}
    return figures


def evaluate(
    classifier: MuxClassifier,
    point: OperatingPoint,
    samples: Sequence[Tokens],
    targets: np.ndarray | None,
    pad_id: int,
    draws: int = 10,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
    reference: np.ndarray | None = None,
) -> Evaluation:
    """Answers every sample `draws` times at `point`, each time with other partners of similar length.

    Every sample is answered from a full composite: where the last one lacks members, samples that already have their
    answer fill it and are not counted again. `targets` are what labels say (`Problem.targets`). `progress` is called
    after every draw. Agreement is with `reference`, the answers `[S, ...]` of another model, or with those of the
    classifier's own plain path in PyTorch where that is None.

    Raises `RevmuxError` for fewer samples than the point's width, or no draws.
    """
    width = point.width
    if draws < 1:
        raise RevmuxError("at least one draw is needed")
    if len(samples) < width:
        raise RevmuxError(f"width {width} needs at least {width} samples, got {len(samples)}")
    problem = classifier.backbone.problem
    plain = plain_answers(classifier, samples, pad_id) if reference is None else reference
    answers = []
    draw_from: Sequence[Tokens | Prefilled] = samples
    for draw in range(draws):
        # What partners cannot change is computed in the first draw only.
        answered, draw_from = _draw(classifier, point, draw_from, pad_id, seed, draw)
        answers.append(answered)
        progress()
    without_composite = None
    if width > 1:
        # In PyTorch: what is compiled does not ask the multiplexer any more.
        uncompiled = MuxClassifier(classifier.backbone, {point: classifier.adapters_of(point)})
        with _blanked(classifier.adapters_of(point).multiplexer):
            blank, _ = _draw(uncompiled, point, draw_from, pad_id, seed, draws)
        without_composite = float(problem.agree(blank, plain).mean())
    agreement = [float(problem.agree(own, plain).mean()) for own in answers]
    moved = ~np.array([problem.agree(own, answers[0]) for own in answers])
    return Evaluation(
        point=point.name,
        width=width,
        prefill=point.prefill,
        samples=len(samples),
        draws=draws,
        metrics=_metrics(problem, answers, plain, targets),
        agreement=float(np.mean(agreement)),
        agreement_worst=min(agreement),
        agreement_without_composite=without_composite,
        partner_sensitivity=float(moved.any(axis=0).mean()),
        closeness=_means([problem.closeness(own, plain) for own in answers]),
    )


def _metrics(
    problem: Problem, answers: Sequence[np.ndarray], plain: np.ndarray, targets: np.ndarray | None
) -> dict[str, float | None]:
    if targets is None:
        names = [name for metric in problem.metrics for name in (f"plain_{metric}", metric, f"{metric}_worst")]
        return dict.fromkeys(names)
    draws = [problem.measure(own, targets) for own in answers]
    means, of_plain = _means(draws), problem.measure(plain, targets)
    return {
        name: value
        for metric in problem.metrics
        for name, value in (
            (f"plain_{metric}", of_plain[metric]),
            (metric, means[metric]),
            (f"{metric}_worst", min(draw[metric] for draw in draws)),
        )
    }


def _means(draws: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}


@dataclass(frozen=True, slots=True)
class CascadeEvaluation:
    """Figures as in `Evaluation`; `escalation_rate` is the share of samples which ended on the plain path."""

    width: int
    points: tuple[str, ...]
    thresholds: tuple[float, ...]
    samples: int
    draws: int
    metrics: Mapping[str, float | None]
    agreement: float
    agreement_worst: float
    escalation_rate: float
    ideal_speedup: float
    closeness: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return _flat(self)


def evaluate_cascade(
    classifier: MuxClassifier,
    cascade: Cascade,
    samples: Sequence[Tokens],
    targets: np.ndarray | None,
    pad_id: int,
    draws: int = 10,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
    reference: np.ndarray | None = None,
) -> CascadeEvaluation:
    """Answers every sample `draws` times with `cascade`, each time with other partners of similar length.

    Agreement is as in `evaluate`.
    """
    if reference is None:
        reference = plain_answers(classifier, samples, pad_id)
    problem = classifier.backbone.problem
    draws = draws_at(cascade, draws)
    answers = []
    left_at = np.empty((draws, len(samples)), dtype=np.int64)
    for draw in range(draws):
        logits = []
        order = []
        for batch in length_grouped_batches([len(sample) for sample in samples], _BATCH, seed, draw):
            own, steps = run_cascade(classifier, [samples[i] for i in batch], cascade, pad_id, BATCH_TOKENS)
            logits.append(own)
            order += batch
            left_at[draw, batch] = steps
        answers.append(_in_order(problem, logits, order))
        progress()
    agreement = [float(problem.agree(own, reference).mean()) for own in answers]
    return CascadeEvaluation(
        width=cascade.width,
        points=tuple(point.name for point in cascade.points),
        thresholds=cascade.thresholds,
        samples=len(samples),
        draws=draws,
        metrics=_metrics(problem, answers, reference, targets),
        agreement=float(np.mean(agreement)),
        agreement_worst=min(agreement),
        escalation_rate=float((left_at == len(cascade.points)).mean()),
        ideal_speedup=cascade.ideal_speedup(left_at.reshape(-1)),
        closeness=_means([problem.closeness(own, reference) for own in answers]),
    )


def _in_order(problem: Problem, logits: Sequence[Tensor], order: Sequence[int]) -> np.ndarray:
    """The answers of all samples, whose logits come in batches and in another `order`."""
    return problem.decide(cat_logits(logits).numpy())[np.argsort(order)]


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


def plain_answers(classifier: MuxClassifier, samples: Sequence[Tokens], pad_id: int) -> np.ndarray:
    """The plain model's answer to every sample, `[S, ...]` (`Problem.decide`): that of PyTorch, whichever backend
    `classifier` runs on."""
    reference = MuxClassifier(classifier.backbone, {})
    logits, _ = run_all(reference, samples, reference.plain, pad_id, BATCH_TOKENS)
    return reference.backbone.problem.decide(logits.numpy())


def _draw(
    classifier: MuxClassifier,
    point: OperatingPoint,
    samples: Sequence[Tokens | Prefilled],
    pad_id: int,
    seed: int,
    draw: int,
) -> tuple[np.ndarray, Sequence[Tokens | Prefilled]]:
    """The answer to every sample, `[S, ...]`, for one draw of partners; and the samples as further draws should have
    them: prefilled, where the states of all fit in memory."""
    logits = []
    order: list[int] = []
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
        logits.append(outcome.logits[:answered].float().cpu())
        order += batch[:answered]
        if keep:
            kept.update((i, outcome.prefilled(group, position)) for position, i in enumerate(batch[:answered]))
    answers = _in_order(classifier.backbone.problem, logits, order)
    return answers, [kept[i] for i in range(len(samples))] if keep else samples
