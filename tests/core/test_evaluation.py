"""Agreement and its dependence on partners, over draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from revmux_core import evaluation
from revmux_core.bundle import Bundle
from revmux_core.classifier import MuxClassifier, make_adapters
from revmux_core.evaluation import evaluate
from revmux_core.multiplexing import make_multiplexer
from revmux_core.points import OperatingPoint
from tests.tiny import HIDDEN, LAYERS, random_samples


@pytest.fixture(scope="module")
def entangled(tiny_bundle: Bundle) -> Bundle:
    """A bundle whose one composite lets partners decide labels."""
    torch.manual_seed(0)
    point = OperatingPoint.mux(2, 1, LAYERS)
    backbone = tiny_bundle.classifier.backbone
    adapters = make_adapters(backbone, point, make_multiplexer("vanilla-adapter", 2, HIDDEN), 0)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return replace(tiny_bundle, classifier=MuxClassifier(backbone, {point: adapters}))


def test_draws_share_their_prefill_and_nothing_else(entangled: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = entangled.classifier
    _, samples = random_samples(entangled, 61)
    prefilled: list[int] = []
    embed = classifier.backbone.embed

    def counted(ids: Tensor, mask: Tensor, type_ids: Tensor | None) -> Tensor:
        prefilled.append(len(ids))
        return embed(ids, mask, type_ids)

    monkeypatch.setattr(classifier.backbone, "embed", counted)
    reference = torch.zeros(len(samples), dtype=torch.long)

    def measure() -> evaluation.Evaluation:
        prefilled.clear()
        return evaluate(classifier, classifier.points[1], samples, None, 0, draws=4, reference=reference)

    shared = measure()
    assert sum(prefilled) == 62
    assert shared.partner_sensitivity > 0
    monkeypatch.setattr(evaluation, "_STATES_BYTES", 0)
    assert measure() == shared
    assert sum(prefilled) == 5 * 62
