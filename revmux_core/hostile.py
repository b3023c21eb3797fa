"""How far a hostile partner can move an answer: a search for the worst text to share a composite with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from revmux_core.bundle import Bundle
from revmux_core.cascade import Cascade
from revmux_core.evaluation import plain_answers
from revmux_core.offline import BATCH_TOKENS, answer_plan
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint


@dataclass(frozen=True, slots=True)
class HostileReport:
    """Shares of `victims`, over all `partners` that were tried in every other slot of the victim's composite.

    `differs` is that of an average partner, `flipped` that of victims for whom some partner gives another answer than
    the plain model's; `flipped_guaranteed` counts only flips that the width's certified cascade would let out (None
    where it has none).
    """

    point: str
    victims: int
    partners: int
    differs: float
    flipped: float
    flipped_guaranteed: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def search_partners(
    bundle: Bundle,
    point: OperatingPoint,
    victims: Sequence[Tokens],
    partners: Sequence[Tokens],
    cascade: Cascade | None,
    progress: Callable[[], None] = lambda: None,
) -> HostileReport:
    """Answers every victim once with every partner. Costs `point.width` x victims x partners samples."""
    width = point.width
    problem = bundle.classifier.backbone.problem
    reference = plain_answers(bundle.classifier, victims, bundle.tokenizer.pad_id)
    differs = torch.empty(len(partners), len(victims), dtype=torch.bool)
    let_out = torch.ones_like(differs)
    order = sorted(range(len(victims)), key=lambda i: -len(victims[i]))
    for number, partner in enumerate(partners):
        done = 0
        while done < len(order):
            longest = max(len(victims[order[done]]), len(partner))
            batch = order[done : done + max(1, BATCH_TOKENS // (longest * width))]
            done += len(batch)
            samples = [sample for i in batch for sample in (victims[i], *[partner] * (width - 1))]
            plan = MuxPlan((Group(point, tuple(range(len(samples)))),))
            outcome = answer_plan(bundle.classifier, samples, plan, bundle.tokenizer.pad_id)
            rows = slice(0, None, width)
            answers = problem.decide(outcome.logits[rows].float().cpu().numpy())
            differs[number, batch] = torch.from_numpy(~problem.agree(answers, reference[batch]))
            if cascade is not None:
                threshold = cascade.thresholds[cascade.points.index(point)]
                let_out[number, batch] = outcome.confidences[rows].cpu() >= threshold
        progress()
    return HostileReport(
        point=point.name,
        victims=len(victims),
        partners=len(partners),
        differs=float(differs.double().mean()),
        flipped=float(differs.any(dim=0).double().mean()),
        flipped_guaranteed=None if cascade is None else float((differs & let_out).any(dim=0).double().mean()),
    )
