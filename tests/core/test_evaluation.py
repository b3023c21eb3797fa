"""Agreement and its dependence on partners, over draws."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from revmux_core import evaluation
from revmux_core.bundle import Bundle
from revmux_core.evaluation import evaluate
from tests.tiny import random_samples


def test_draws_share_their_prefill_and_nothing_else(entangled_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = entangled_bundle.classifier
    _, samples = random_samples(entangled_bundle, 61)
    prefilled: list[int] = []
    embed = classifier.backbone.embed

    def counted(ids: Tensor, mask: Tensor, type_ids: Tensor | None) -> Tensor:
        prefilled.append(len(ids))
        return embed(ids, mask, type_ids)

    monkeypatch.setattr(classifier.backbone, "embed", counted)
    reference = np.zeros(len(samples), dtype=np.int64)

    def measure() -> evaluation.Evaluation:
        prefilled.clear()
        return evaluate(classifier, classifier.points[1], samples, None, 0, draws=4, reference=reference)

    shared = measure()
    assert sum(prefilled) == 62
    assert shared.partner_sensitivity > 0
    monkeypatch.setattr(evaluation, "_STATES_BYTES", 0)
    assert measure() == shared
    assert sum(prefilled) == 5 * 62
