"""The search for the worst partner finds more flips than the average one, and a threshold keeps some in."""

from __future__ import annotations

from dataclasses import replace

import torch

from revmux_core.bundle import Bundle
from revmux_core.cascade import Cascade
from revmux_core.classifier import MuxClassifier, make_adapters
from revmux_core.hostile import search_partners
from revmux_core.multiplexing import make_multiplexer
from revmux_core.points import OperatingPoint
from tests.tiny import HIDDEN, LAYERS, random_samples


def test_the_worst_partner_flips_more_than_an_average_one(tiny_bundle: Bundle) -> None:
    torch.manual_seed(0)
    backbone = tiny_bundle.classifier.backbone
    point = OperatingPoint.mux(2, 1, LAYERS)
    adapters = make_adapters(backbone, point, make_multiplexer("vanilla-adapter", 2, HIDDEN), 0)
    for parameter in adapters.parameters():
        # Wide enough that partners decide labels.
        torch.nn.init.normal_(parameter, std=0.5)
    bundle = replace(tiny_bundle, classifier=MuxClassifier(backbone, {point: adapters}))
    _, samples = random_samples(bundle, 40)
    report = search_partners(bundle, point, samples[:30], samples[30:], Cascade((point,), 0.7, LAYERS))
    assert 0 < report.differs < report.flipped <= 1
    assert report.flipped_guaranteed is not None
    assert report.flipped_guaranteed < report.flipped
    assert search_partners(bundle, point, samples[:30], samples[30:], None).flipped_guaranteed is None
