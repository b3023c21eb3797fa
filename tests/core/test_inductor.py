"""The backend inductor computes what PyTorch computes, without compiling anything while it serves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from revmux_core.backends import inductor
from revmux_core.backends.graphs import GRAPH_TOKENS, MIN_LENGTH, bucket_of, buckets, round_up
from revmux_core.backends.inductor import InductorExecutor
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.composites import multiplex
from revmux_core.errors import RevmuxError
from revmux_core.offline import run_all
from revmux_core.states import Padded
from tests.tiny import assert_same_answers, counting_capture, random_samples


@pytest.fixture(scope="module")
def compiled(calibrated_path: Path) -> Bundle:
    """In float32, so that what differs is not rounding; ready to serve all its points."""
    bundle = load_bundle(calibrated_path, backend="inductor")
    bundle.classifier.executor.limit(bundle.classifier.points)
    return bundle


@pytest.fixture
def programs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no program fits raises, where a server would run it uncompiled."""
    monkeypatch.setattr(inductor, "STANCE", "fail_on_recompile")


@pytest.mark.usefixtures("programs_only")
def test_every_point_answers_as_in_pytorch(compiled: Bundle, calibrated_path: Path) -> None:
    reference = load_bundle(calibrated_path).classifier
    assert len(reference.points) == 4
    assert_same_answers(compiled, reference, reference.points)


@pytest.mark.usefixtures("programs_only")
def test_layers_are_pytorchs_whatever_the_shape(compiled: Bundle) -> None:
    classifier = compiled.classifier
    layers = classifier.backbone.layers(0, classifier.backbone.num_layers)
    for rows, length in [(1, 2), (1, 40), (2, 2), (3, 64), (17, 17), (32, 32)]:
        hidden, mask = _states(compiled, rows, length)
        found = classifier.executor.run(Padded(hidden, mask, "right"), layers, False).hidden
        expected = classifier.backbone.run(hidden, mask, layers)
        held = mask.bool()
        torch.testing.assert_close(found[held], expected[held], atol=1e-3, rtol=1e-3)


def test_what_no_program_fits_runs_uncompiled(compiled: Bundle) -> None:
    classifier = compiled.classifier
    multiplexer = next(classifier.adapters_of(point).multiplexer for point in classifier.points if point.width == 2)
    hidden, mask = _states(compiled, 2, 9)
    before = counters["stats"]["unique_graphs"]
    found, own, _ = classifier.executor.multiplex(multiplexer, Padded(hidden, mask, "right"))
    expected = multiplex(classifier.backbone, multiplexer, hidden, mask)
    assert torch.equal(found.hidden, expected.hidden)
    assert torch.equal(own, expected.own)
    assert counters["stats"]["unique_graphs"] == before


def test_without_a_compiler_it_says_so(tiny_bundle_path: Path) -> None:
    bundle = load_bundle(tiny_bundle_path, dtype=torch.float64, backend="inductor")
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "/no/compiler")}),
        fresh_cache(),
        pytest.raises(RevmuxError, match=r"cannot compile this model here.*/no/compiler"),
    ):
        bundle.classifier.executor.limit(bundle.classifier.points)


def test_nothing_is_guaranteed_until_it_is_calibrated(compiled: Bundle, calibrated_path: Path) -> None:
    assert load_bundle(calibrated_path).cascades()
    assert compiled.cascades() == []
    with pytest.raises(RevmuxError, match="run `revmux calibrate`"):
        compiled.classify(["a good film"], quality="guaranteed")
    assert not compiled.classify(["a good film"])[0].escalated


@given(number=st.integers(1, 10_000))
def test_a_size_is_rounded_up_by_less_than_half(number: int) -> None:
    assert number <= round_up(number) < 1.5 * number
    assert round_up(round_up(number)) == round_up(number)


@given(rows=st.integers(1, 2000), length=st.integers(1, 512))
def test_a_batch_has_its_bucket_or_is_too_large(rows: int, length: int) -> None:
    bucket = bucket_of(rows, length)
    if bucket is None:
        assert round_up(rows) * round_up(max(length, MIN_LENGTH)) > GRAPH_TOKENS
    else:
        assert bucket in buckets(512)
        assert bucket_of(*bucket) == bucket


@pytest.fixture(scope="module")
def recorded(compiled: Bundle) -> tuple[InductorExecutor, list[int]]:
    """An executor that records as on a GPU, where a recording is the call itself, and how many were replayed."""
    capture, replayed = counting_capture()
    executor = InductorExecutor(compiled.classifier, capture)
    executor.limit(compiled.classifier.points)
    return executor, replayed


@settings(max_examples=15)
@given(rows=st.integers(1, 16), length=st.integers(2, 40), seed=st.integers(0, 99))
def test_a_recording_is_a_batch_of_its_own(
    compiled: Bundle, recorded: tuple[InductorExecutor, list[int]], rows: int, length: int, seed: int
) -> None:
    """Whatever the shape, and whatever the batch before left in its buffers."""
    executor, replayed = recorded
    backbone = compiled.classifier.backbone
    layers = backbone.layers(0, backbone.num_layers)
    hidden, mask = _states(compiled, rows, length, seed)
    bucket = bucket_of(rows, length)
    assert bucket is not None
    spoilt = torch.full((*bucket, backbone.hidden_size), torch.nan)
    executor.run_rows(spoilt, torch.ones(bucket, dtype=torch.int64), layers)
    before = replayed[0]
    found = executor.run_rows(hidden, mask, layers)
    assert replayed[0] == before + 2, "one for each side of the seam at layer 2"
    held = mask.bool()
    torch.testing.assert_close(found[held], backbone.run(hidden, mask, layers)[held], atol=1e-3, rtol=1e-3)
    # Not the buffer itself, which the next batch overwrites.
    kept = found.clone()
    executor.run_rows(hidden + 1, mask, layers)
    assert torch.equal(found, kept)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_replays_what_a_cpu_computes(calibrated_path: Path) -> None:
    reference = load_bundle(calibrated_path)
    bundle = load_bundle(calibrated_path, device="cuda", backend="inductor")
    bundle.classifier.executor.limit(bundle.classifier.points)
    samples = random_samples(bundle, 60)[1]
    for point in reference.classifier.points:
        # Batches within a bucket, and one beyond all of them.
        for batch_tokens in (200, 4 * GRAPH_TOKENS):
            found, _ = run_all(bundle.classifier, samples, point, bundle.tokenizer.pad_id, batch_tokens)
            expected, _ = run_all(reference.classifier, samples, point, bundle.tokenizer.pad_id, batch_tokens)
            torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)


def _states(bundle: Bundle, rows: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random hidden states and a mask of which every row holds another number of tokens."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, bundle.classifier.backbone.hidden_size, generator=generator)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return hidden, (torch.arange(length) < lengths).long()
