"""Cascades: every sample leaves where the first point is sure of it, and goes on from where it stands otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revmux_core.batch import Prefilled, collate
from revmux_core.bundle import Bundle
from revmux_core.cascade import Cascade, cascade_at_speed
from revmux_core.classifier import MuxClassifier, make_adapters
from revmux_core.errors import RevmuxError
from revmux_core.multiplexing import make_multiplexer, method_at
from revmux_core.offline import run_all, run_cascade
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint
from tests.core.test_classifier import tokens

EXIT_1, EXIT_2, MUX = OperatingPoint(1, 1, ()), OperatingPoint(1, 2, ()), OperatingPoint(2, 2, (2, 3))
LAYERS = 4


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Bundle) -> MuxClassifier:
    backbone = tiny_bundle.classifier.backbone
    torch.manual_seed(0)
    adapters = {
        point: make_adapters(
            backbone, point, make_multiplexer(method_at(point.width), point.width, backbone.hidden_size), 0
        )
        for point in (EXIT_1, EXIT_2, MUX)
    }
    return MuxClassifier(backbone, adapters)


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 20), min_size=8, max_size=8), order=st.permutations(range(8)))
def test_a_sample_goes_on_from_its_states(classifier: MuxClassifier, lengths: list[int], order: list[int]) -> None:
    """Resumed beside fresh samples and at any place of the batch, it answers as it does from its tokens."""
    samples = tokens(*lengths)
    first = MuxPlan((Group(EXIT_1, (0, 1)), Group(MUX, (2, 3, 4, 5)), Group(EXIT_2, (6, 7))))
    outcome = classifier(collate(samples, first))
    waiting = {
        member: outcome.prefilled(group, place) for group in first.groups for place, member in enumerate(group.members)
    }
    plain = classifier.plain
    mixed: list[Tokens | Prefilled] = [waiting[i] if i < 6 else samples[i] for i in range(8)]
    groups = (
        Group(EXIT_2, (0,), start=1),
        Group(plain, (1,), start=1),
        Group(plain, (6,)),
        Group(plain, (2, 3), start=2),
        Group(MUX, (4, 5), start=2),
        Group(EXIT_1, (7,)),
    )
    shuffled = [mixed[i] for i in order]
    moved = tuple(Group(g.point, tuple(order.index(m) for m in g.members), g.start) for g in groups)
    answers = classifier(collate(shuffled, MuxPlan(moved))).logits[[order.index(i) for i in range(8)]]
    from_tokens = [Group(g.point, g.members) for g in groups]
    expected = classifier(collate(samples, MuxPlan(tuple(from_tokens)))).logits
    torch.testing.assert_close(answers, expected, atol=2e-5, rtol=1e-4)


def test_a_plan_starts_samples_where_they_stand(classifier: MuxClassifier) -> None:
    samples = tokens(3)
    with pytest.raises(ValueError, match="does not stand at"):
        collate(samples, MuxPlan((Group(classifier.plain, (0,), start=1),)))
    with pytest.raises(ValueError, match="cannot start after 3 layers"):
        Group(EXIT_2, (0,), start=3)


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12), quantiles=st.tuples(*[st.floats(0, 1)] * 2))
def test_every_sample_leaves_at_the_first_point_that_is_sure(
    classifier: MuxClassifier, lengths: list[int], quantiles: tuple[float, float]
) -> None:
    samples = tokens(*lengths)
    alone = [run_all(classifier, samples, point, 0, 512)[0] for point in (EXIT_1, EXIT_2, classifier.plain)]
    confidences = torch.stack([logits.softmax(-1).amax(-1) for logits in alone[:2]], dim=1).numpy()
    # Between two confidences, so that the last digits decide nothing.
    known = np.unique(np.append(confidences, [0, 1]))
    cuts = [min(int(quantile * (len(known) - 1)), len(known) - 2) for quantile in quantiles]
    cascade = Cascade((EXIT_1, EXIT_2), tuple(float((known[cut] + known[cut + 1]) / 2) for cut in cuts), LAYERS)
    logits, left_at = run_cascade(classifier, samples, cascade, 0, 64)
    assert left_at == cascade.leaves_at(confidences).tolist()
    expected = torch.stack([alone[step][sample] for sample, step in enumerate(left_at)])
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


def test_a_multiplexing_step_passes_on_what_it_is_not_sure_of(classifier: MuxClassifier) -> None:
    samples = tokens(5, 6, 7, 8, 9)
    plain, _ = run_all(classifier, samples, classifier.plain, 0, 512)
    logits, left_at = run_cascade(classifier, samples, Cascade((EXIT_1, MUX), (1.1, 1.1), LAYERS), 0, 512)
    assert left_at == [2] * 5
    torch.testing.assert_close(logits, plain, atol=2e-5, rtol=1e-4)


def test_costs_count_every_layer_once() -> None:
    cascade = Cascade((EXIT_1, MUX), (0.9, 0.9), LAYERS)
    assert cascade.ideal_costs().tolist() == [1 / 4, (1 + 1 + 2 / 2) / 4, (1 + 1 + 2 / 2 + 2) / 4]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30), st.floats(1, 4))
def test_the_threshold_is_the_highest_that_is_fast_enough(rows: list[tuple[float, float]], speedup: float) -> None:
    confidences = np.array(rows, dtype=np.float32)
    cascade = cascade_at_speed((EXIT_1, EXIT_2), LAYERS, confidences, speedup)
    assert cascade.ideal_speedup(cascade.leaves_at(confidences)) >= speedup
    (threshold,) = set(cascade.thresholds)
    for higher in np.unique(confidences[confidences > threshold]):
        slower = Cascade((EXIT_1, EXIT_2), (float(higher),) * 2, LAYERS)
        assert slower.ideal_speedup(slower.leaves_at(confidences)) < speedup


def test_a_cascade_only_goes_up() -> None:
    for points in ((), (EXIT_2, EXIT_1), (EXIT_2, MUX), (OperatingPoint.plain(LAYERS),)):
        with pytest.raises(RevmuxError, match="prefills ascend"):
            Cascade(points, (0.9,) * len(points), LAYERS)
    with pytest.raises(RevmuxError, match="a cascade of 2 points has 1 thresholds"):
        Cascade((EXIT_1, EXIT_2), (0.9,), LAYERS)
