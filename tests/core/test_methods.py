"""Every method and the updates of upper layers train, are kept in a bundle, and answer from it as they did before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revmux_core.batch import collate
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.classifier import Adapters, MuxClassifier
from revmux_core.deltas import DeltaLayers
from revmux_core.errors import RevmuxError
from revmux_core.multiplexing import EARLY_EXIT, METHODS, make_multiplexer
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint
from tests.tiny import HIDDEN, LAYERS, save_tiny_bundle

SAMPLES = [Tokens([2, *range(4 + i, 4 + 3 * i + 1), 3], [0] * (2 * i + 3)) for i in range(5)]


def build(bundle: Bundle, method: str, rank: int) -> tuple[OperatingPoint, Adapters]:
    """Random adapters of width 2, or 1 for an early exit; updates of upper layers are as if trained: not zero."""
    torch.manual_seed(3)
    point = OperatingPoint(1, 2, ()) if method == EARLY_EXIT else OperatingPoint.mux(2, 2, LAYERS)
    backbone = bundle.classifier.backbone
    deltas = DeltaLayers(backbone.layers(2, LAYERS), rank) if rank else None
    adapters = Adapters(make_multiplexer(method, point.width, HIDDEN), deltas).eval()
    if deltas is not None:
        for name, tensor in deltas.updates().items():
            if ".lora_B" in name:
                tensor.normal_(std=0.3)
    # Bundles keep half precision: compare on values that it holds exactly.
    for tensor in (*adapters.multiplexer.state_dict().values(), *(deltas.updates().values() if deltas else ())):
        tensor.copy_(tensor.half())
    return point, adapters


def answers(classifier: MuxClassifier, point: OperatingPoint, samples: list[Tokens]) -> torch.Tensor:
    """Two composites of `point` and one plain sample, in one batch."""
    plan = MuxPlan((Group(point, (0, 1, 2, 3)), Group(classifier.plain, (4,))))
    return classifier(collate(samples, plan)).logits


@pytest.mark.parametrize(("method", "rank"), [*((method, 0) for method in METHODS), ("revmux", 4), ("datamux", 4)])
def test_a_bundle_answers_as_what_was_saved(
    method: str, rank: int, tiny_bundle: Bundle, tiny_base_path: Path, tmp_path: Path
) -> None:
    point, adapters = build(tiny_bundle, method, rank)
    before = MuxClassifier(tiny_bundle.classifier.backbone, {point: adapters})
    save_tiny_bundle(tmp_path / "bundle", tiny_base_path, {point: adapters})
    loaded = load_bundle(tmp_path / "bundle").classifier
    expected = answers(before, point, SAMPLES)
    torch.testing.assert_close(answers(loaded, point, SAMPLES), expected, atol=1e-4, rtol=1e-3)
    # The plain sample beside the composites is the frozen model's, whatever the composites ran through.
    alone = loaded(collate(SAMPLES[4:], MuxPlan((Group(loaded.plain, (0,)),)))).logits
    torch.testing.assert_close(expected[4:], alone, atol=2e-5, rtol=1e-4)


def test_updates_act_in_multiplexed_mode_only(tiny_bundle: Bundle) -> None:
    point, adapters = build(tiny_bundle, "revmux", 4)
    backbone = tiny_bundle.classifier.backbone
    frozen = answers(MuxClassifier(backbone, {point: Adapters(adapters.multiplexer)}), point, SAMPLES)
    updated = answers(MuxClassifier(backbone, {point: adapters}), point, SAMPLES)
    assert not torch.allclose(updated[:4], frozen[:4], atol=1e-2)
    torch.testing.assert_close(updated[4:], frozen[4:], atol=2e-5, rtol=1e-4)
    assert adapters.deltas is not None
    adapters.deltas.merge()
    merged = answers(MuxClassifier(backbone, {point: adapters}), point, SAMPLES)
    torch.testing.assert_close(merged, updated, atol=2e-5, rtol=1e-4)


@settings(max_examples=20)
@given(method=st.sampled_from(sorted(METHODS)), width=st.sampled_from([2, 4, 8]), stranger=st.integers(10, 40))
def test_padding_reaches_nobody(tiny_bundle: Bundle, method: str, width: int, stranger: int) -> None:
    """However far a longer sample stretches the batch, a composite answers the same."""
    torch.manual_seed(width)
    point = OperatingPoint.mux(width, 1, LAYERS)
    if method == EARLY_EXIT:
        width, point = 1, OperatingPoint(1, 2, ())
    classifier = MuxClassifier(
        tiny_bundle.classifier.backbone, {point: Adapters(make_multiplexer(method, width, HIDDEN).eval())}
    )
    members = [Tokens([2, 10 + i, 3], [0] * 3) for i in range(width)]
    group = Group(point, tuple(range(width)))
    alone = classifier(collate(members, MuxPlan((group,)))).logits
    longer = [*members, Tokens([2, *range(4, 4 + stranger), 3], [0] * (stranger + 2))]
    stretched = classifier(collate(longer, MuxPlan((group, Group(classifier.plain, (width,)))))).logits
    torch.testing.assert_close(stretched[:width], alone, atol=2e-5, rtol=1e-4)


def test_an_unknown_method_and_a_width_that_does_not_fit_are_refused() -> None:
    with pytest.raises(RevmuxError, match="one of revmux, revmux-published"):
        make_multiplexer("revmax", 2, HIDDEN)
    with pytest.raises(RevmuxError, match="divide the hidden size 32"):
        make_multiplexer("mux-plm", 3, HIDDEN)
    with pytest.raises(RevmuxError, match="its width is 1, not 2"):
        make_multiplexer(EARLY_EXIT, 2, HIDDEN)
