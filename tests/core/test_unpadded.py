"""Layers on texts without padding are those on padded rows.

PyTorch has this attention on GPUs alone, so the CPU is given one here, text by text: all is tested but that kernel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from revmux_core.backbones import PackingBackbone, encoder, view
from revmux_core.backends import inductor
from revmux_core.backends.graphs import GRAPH_TOKENS
from revmux_core.backends.inductor import InductorExecutor
from revmux_core.backends.pieces import LAST_LAYER
from revmux_core.backends.unpadded import Unpadded
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.offline import run_all
from revmux_core.states import Padded
from tests.core.test_backbones import make
from tests.tiny import HIDDEN, counting_capture, random_samples


def text_by_text(
    query: Tensor, key: Tensor, value: Tensor, of_queries: Tensor, of_keys: Tensor, most: int, longest: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator beneath `varlen_attn`, whose second and third output are for training."""
    read = torch.empty_like(query)
    for number in range(len(of_queries) - 1):
        asked, held = (slice(*edges[number : number + 2].tolist()) for edges in (of_queries, of_keys))
        # A GPU's kernel would leave out what is further back than it was told.
        assert asked.stop - asked.start <= most
        assert held.stop - held.start <= longest
        heads = (states[own].transpose(0, 1) for states, own in ((query, asked), (key, held), (value, held)))
        read[asked] = F.scaled_dot_product_attention(*heads).transpose(0, 1)
    return read, query.new_empty(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


@pytest.fixture(scope="module", autouse=True)
def attention_without_padding() -> torch.library.Library:
    # The kernel is there for as long as this object is, which pytest drops after the module's last test.
    kernels = torch.library.Library("torch_attn", "IMPL")
    kernels.impl("_varlen_attn", text_by_text, "CPU")
    return kernels


def states(rows: int, length: int, seed: int = 0) -> Padded:
    """Random hidden states of texts of up to `length` tokens, with NaN for padding: whoever reads it will tell."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    hidden = torch.randn(rows, length, HIDDEN, generator=generator).masked_fill(mask.unsqueeze(2) == 0, torch.nan)
    return Padded(hidden, mask, "right", tuple(lengths.flatten().tolist()))


@given(rows=st.integers(1, 9), length=st.integers(1, 12), seed=st.integers(0, 99))
def test_padding_goes_and_comes_back_as_zero(rows: int, length: int, seed: int) -> None:
    padded = states(rows, length, seed)
    assert padded.lengths is not None
    unpadded = Unpadded.of(padded)
    assert unpadded.flat.shape == (sum(padded.lengths), HIDDEN)
    assert unpadded.longest == max(padded.lengths)
    texts = [unpadded.flat[begin:end] for begin, end in unpadded.offsets.unfold(0, 2, 1).tolist()]
    assert all(torch.equal(text, padded.text(n, len(text))) for n, text in enumerate(texts))
    assert torch.equal(unpadded.padded(unpadded.flat).hidden, padded.hidden.nan_to_num(0))


@pytest.mark.parametrize("family", encoder.FAMILIES)
def test_layers_without_padding_are_the_models_own(family: str) -> None:
    backbone = cast(PackingBackbone, view(make(family)))
    padded = states(5, 9)
    unpadded = Unpadded.of(padded)
    texts = unpadded.flat, unpadded.offsets, unpadded.longest
    layers = backbone.layers(0, backbone.num_layers)
    with torch.inference_mode():
        expected = backbone.run(padded.hidden.nan_to_num(0), padded.mask, layers)
        found = unpadded.padded(backbone.run_unpadded(*texts, layers)).hidden
        all_but_last = backbone.run_unpadded(*texts, layers[:-1])
        firsts = backbone.run_firsts(all_but_last, *texts[1:], layers[-1])
    held = padded.mask.bool()
    torch.testing.assert_close(found[held], expected[held], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(firsts, expected[:, 0], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def unpadding(calibrated_path: Path) -> Bundle:
    """Ready to serve the plain path and width 2, without a recording of anything."""
    bundle = load_bundle(calibrated_path, backend="inductor")
    bundle.classifier.executor.limit([bundle.point(1), bundle.point(2)])
    return bundle


def test_points_answer_as_in_pytorch(unpadding: Bundle, calibrated_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What no program fits raises, where a server would run it uncompiled.
    monkeypatch.setattr(inductor, "STANCE", "fail_on_recompile")
    reference = load_bundle(calibrated_path).classifier
    executor = unpadding.classifier.executor
    assert executor.packs
    assert executor.last_layer == LAST_LAYER
    samples = random_samples(unpadding, 60)[1]
    assert executor.positions(list(map(len, samples))) == sum(map(len, samples))
    for point in (unpadding.point(1), unpadding.point(2)):
        found, expected = (
            run_all(classifier, samples, point, unpadding.tokenizer.pad_id, 2000)[0]
            for classifier in (unpadding.classifier, reference)
        )
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@settings(max_examples=10)
@given(seed=st.integers(0, 99))
def test_layers_leave_the_padding_out_whatever_the_lengths(unpadding: Bundle, seed: int) -> None:
    classifier = unpadding.classifier
    layers = classifier.backbone.layers(0, classifier.backbone.num_layers)
    padded = states(3 + seed % 10, 2 + seed % 31, seed)
    expected = classifier.backbone.run(padded.hidden.nan_to_num(0), padded.mask, layers)
    held = padded.mask.bool()
    found = classifier.executor.run(padded, layers, False)
    torch.testing.assert_close(found.hidden[held], expected[held], atol=1e-3, rtol=1e-3)
    assert found.lengths == padded.lengths
    firsts = classifier.executor.run(padded, layers, True).hidden
    torch.testing.assert_close(firsts, expected[:, :1], atol=1e-3, rtol=1e-3)


def test_the_longest_texts_need_no_program_of_their_own(unpadding: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "STANCE", "fail_on_recompile")
    classifier = unpadding.classifier
    layers = classifier.backbone.layers(0, classifier.backbone.num_layers)
    for length in (2, 300):
        padded = states(8, length)
        found = classifier.executor.run(padded, layers, True).hidden
        expected = classifier.backbone.run(padded.hidden.nan_to_num(0), padded.mask, layers)
        torch.testing.assert_close(found, expected[:, :1], atol=1e-3, rtol=1e-3)


def test_what_is_recorded_is_replayed_with_its_padding(unpadding: Bundle) -> None:
    capture, replayed = counting_capture()
    executor = InductorExecutor(unpadding.classifier, capture)
    small, large = [20, 10], [20] * (GRAPH_TOKENS // 20)
    assert (executor.positions(small), executor.positions([*large, 1])) == (2 * 24, sum(large) + 1)
    backbone = unpadding.classifier.backbone
    layers = backbone.layers(0, backbone.num_layers)
    for rows, recorded in ((4, True), (GRAPH_TOKENS // 20 + 5, False)):
        padded = states(rows, 20)
        # What is recorded would spread the NaN of padding.
        clean = Padded(padded.hidden.nan_to_num(0), padded.mask, "right", padded.lengths)
        before = replayed[0]
        found = executor.run(clean, layers, False).hidden
        assert (replayed[0] > before) == recorded
        expected = backbone.run(clean.hidden, padded.mask, layers)
        held = padded.mask.bool()
        torch.testing.assert_close(found[held], expected[held], atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_leaves_the_padding_out(calibrated_path: Path) -> None:
    reference = load_bundle(calibrated_path)
    bundle = load_bundle(calibrated_path, device="cuda", dtype=torch.bfloat16, backend="inductor")
    bundle.classifier.executor.limit(bundle.classifier.points)
    assert bundle.classifier.executor.packs
    samples = random_samples(bundle, 300)[1]
    for point in reference.classifier.points:
        found, expected = (
            run_all(own.classifier, samples, point, own.tokenizer.pad_id, 4 * GRAPH_TOKENS)[0]
            for own in (bundle, reference)
        )
        # As far as bfloat16 is from float32 in a model whose weights are this wide.
        assert (found - expected).norm() <= 0.1 * expected.norm()
