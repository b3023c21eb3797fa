"""A planned batch answers every sample from its own text, point and partners."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revmux_core.batch import collate
from revmux_core.bundle import Bundle
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint


def tokens(*lengths: int) -> list[Tokens]:
    return [
        Tokens([2, *((7 * i + j) % 180 + 4 for j in range(length)), 3], [0] * (length + 2))
        for i, length in enumerate(lengths)
    ]


def logits(bundle: Bundle, samples: list[Tokens], *groups: Group) -> torch.Tensor:
    return bundle.classifier(collate(samples, MuxPlan(groups), bundle.tokenizer.pad_id)).logits


@settings(max_examples=20)
@given(order=st.permutations(range(9)), lengths=st.lists(st.integers(1, 20), min_size=9, max_size=9))
def test_points_of_one_batch_do_not_disturb_each_other(
    tiny_bundle: Bundle, order: list[int], lengths: list[int]
) -> None:
    """Each group answers as it does alone, whatever else is in the batch and wherever it stands."""
    plain, two, four = tiny_bundle.classifier.points
    samples = tokens(*lengths)
    groups = [
        Group(two, tuple(order[:2])),
        Group(plain, tuple(order[2:4])),
        Group(four, tuple(order[4:8])),
        Group(plain, (order[8],)),
    ]
    together = logits(tiny_bundle, samples, *groups)
    for group in groups:
        members = list(group.members)
        alone = logits(tiny_bundle, [samples[i] for i in members], Group(group.point, tuple(range(len(members)))))
        torch.testing.assert_close(together[members], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("width", [2, 4])
def test_padding_never_reaches_a_partner(tiny_bundle: Bundle, width: int) -> None:
    """A composite answers the same whether or not a long stranger stretches the batch."""
    point = tiny_bundle.point(width)
    composite = Group(point, tuple(range(width)))
    lengths = (3, 9, 5, 7)[:width]
    alone = logits(tiny_bundle, tokens(*lengths), composite)
    stretched = logits(tiny_bundle, tokens(*lengths, 40), composite, Group(tiny_bundle.classifier.plain, (width,)))
    torch.testing.assert_close(stretched[:width], alone, atol=2e-5, rtol=1e-4)


def test_a_partner_does_matter_inside_a_composite(tiny_bundle: Bundle) -> None:
    group = Group(tiny_bundle.point(2), (0, 1))
    first, other = tokens(6, 6), tokens(6, 3)
    assert not torch.allclose(
        logits(tiny_bundle, first, group)[0], logits(tiny_bundle, [first[0], other[1]], group)[0], atol=1e-4
    )


def test_points_may_leave_out_upper_layers(tiny_bundle: Bundle) -> None:
    """A point that skips layers runs beside points that do not."""
    classifier = tiny_bundle.classifier
    full = tiny_bundle.point(2)
    short = OperatingPoint(2, full.prefill, full.upper[-1:])
    assert short.ideal_cost(4) < full.ideal_cost(4)
    mixed = type(classifier)(
        classifier.backbone, {full: classifier.adapters_of(full), short: classifier.adapters_of(full)}
    )
    samples = tokens(5, 6, 5, 6)
    both = mixed(collate(samples, MuxPlan((Group(full, (0, 1)), Group(short, (2, 3)))))).logits
    torch.testing.assert_close(both[:2], logits(tiny_bundle, samples[:2], Group(full, (0, 1))), atol=2e-5, rtol=1e-4)
    alone = mixed(collate(samples[2:], MuxPlan((Group(short, (0, 1)),)))).logits
    torch.testing.assert_close(both[2:], alone, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(alone, logits(tiny_bundle, samples[2:], Group(full, (0, 1))), atol=1e-3)


def test_a_plan_cannot_lose_or_double_a_sample(tiny_bundle: Bundle) -> None:
    plain = tiny_bundle.classifier.plain
    with pytest.raises(ValueError, match="exactly once"):
        MuxPlan((Group(plain, (0, 0)),))
    with pytest.raises(ValueError, match="exactly once"):
        MuxPlan((Group(plain, (0, 2)),))
    with pytest.raises(ValueError, match="multiple"):
        Group(tiny_bundle.point(2), (0, 1, 2))
