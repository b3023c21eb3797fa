"""The search for the worst partner finds more flips than the average one, and a threshold keeps some in."""

from __future__ import annotations

from revmux_core.bundle import Bundle
from revmux_core.cascade import Cascade
from revmux_core.hostile import search_partners
from tests.tiny import LAYERS, random_samples


def test_the_worst_partner_flips_more_than_an_average_one(entangled_bundle: Bundle) -> None:
    bundle = entangled_bundle
    point = bundle.classifier.points[1]
    _, samples = random_samples(bundle, 40)
    report = search_partners(bundle, point, samples[:30], samples[30:], Cascade((point,), (0.7,), LAYERS))
    assert 0 < report.differs < report.flipped <= 1
    assert report.flipped_guaranteed is not None
    assert report.flipped_guaranteed < report.flipped
    assert search_partners(bundle, point, samples[:30], samples[30:], None).flipped_guaranteed is None
