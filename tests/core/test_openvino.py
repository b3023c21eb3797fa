"""The compiled backend computes what PyTorch computes: every point, any shape, and the demo's labels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from revmux_core.backbones import encoder, view
from revmux_core.backends import programs
from revmux_core.backends.openvino import OpenVinoExecutor
from revmux_core.backends.packed import CELL_STEP, FEW_ROWS, SHORT_TEXT, Layout, Packed
from revmux_core.backends.programs import Compiler, PackedLayers, PlainPath, Program, has_bfloat16
from revmux_core.backends.select import choose_dtype
from revmux_core.batch import MuxBatch, Prefilled, collate, make_mask
from revmux_core.benchmark import SAMPLE_TEXTS
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.calibration import calibrate
from revmux_core.classifier import MuxClassifier, make_adapters
from revmux_core.errors import RevmuxError
from revmux_core.manifest import read_manifest, record_calibration
from revmux_core.multiplexing import DEFAULT_METHOD, EARLY_EXIT, METHODS, make_multiplexer
from revmux_core.packing import ROW_LENGTH, RowCosts
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint
from revmux_core.states import Padded
from tests.core.test_backbones import batch as inputs
from tests.core.test_backbones import make
from tests.core.test_methods import build
from tests.tiny import assert_same_answers, random_samples

needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="needs a CPU with AVX-512 BF16 or AMX")


@pytest.fixture(scope="module")
def compiled(calibrated_path: Path) -> Bundle:
    """In float32, so that what differs is not rounding."""
    return load_bundle(calibrated_path, backend="openvino")


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    together=st.sampled_from([1, 128]),
    seed=st.integers(0, 99),
)
def test_layers_are_pytorchs_whatever_the_lengths(
    compiled: Bundle, lengths: list[int], together: int, seed: int
) -> None:
    backbone, executor = compiled.classifier.backbone, compiled.classifier.executor
    torch.manual_seed(seed)
    texts = [torch.randn(length, backbone.hidden_size) for length in lengths]
    padded = Padded.of(texts, make_mask(lengths, max(lengths), backbone.padding_side), backbone.padding_side)
    layers = backbone.layers(0, backbone.num_layers)
    expected = backbone.run(padded.hidden, padded.mask, layers)
    held = padded.mask.bool()
    # As well where some of those that are laid out together go on, and in another order.
    whole = Packed.of(texts, RowCosts(0.1, together))
    # Few shapes, however many texts come to stand in a row.
    places = [block.firsts.shape[1] for block in whole.layout.blocks]
    assert all(texts == 1 or texts % CELL_STEP == 0 for texts in places)
    part = whole.split([len(texts) // 2, len(texts) - len(texts) // 2])[1]
    for packed, rows in ((whole, slice(None)), (part, slice(len(texts) // 2, None))):
        found = executor.run(packed, layers, False).padded()
        longest = found.hidden.shape[1]
        assert torch.equal(found.mask, padded.mask[rows, :longest])
        shorter = expected[rows, :longest]
        own = held[rows, :longest]
        torch.testing.assert_close(found.hidden[own], shorter[own], atol=1e-3, rtol=1e-3)
        firsts = executor.pool(executor.run(packed, layers, True), None)
        torch.testing.assert_close(firsts, expected[rows, 0], atol=1e-3, rtol=1e-3)


def test_fixed_programs_run_the_rows_that_they_are_for_and_no_others(
    compiled: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = compiled.classifier.backbone
    layers = PackedLayers(backbone, backbone.layers(0, 2))
    (program,) = Compiler(torch.float32).compile([layers], backbone.hidden_size)

    def run(rows: int, length: int) -> torch.Tensor:
        torch.manual_seed(length)
        hidden, segments = torch.randn(rows, length, backbone.hidden_size), torch.ones(rows, length, dtype=torch.long)
        output = torch.empty_like(hidden)
        program.run_into([output.numpy()], hidden.numpy(), segments.numpy())
        return output

    shapes = [(rows, length) for rows in (1, 2) for length in (16, 32, 48)]
    before = {shape: run(*shape) for shape in shapes}
    fixed = [(1, 16), (2, 48)]
    program.fix((*shape, 4) for shape in fixed)
    monkeypatch.setattr(program, "_request", None)
    for shape in shapes:
        if shape in fixed:
            assert torch.equal(run(*shape), before[shape])
        else:
            with pytest.raises(AttributeError):
                run(*shape)


@pytest.mark.parametrize(("largest", "fixed"), [(10**6, FEW_ROWS), (1, {})])
def test_who_serves_has_programs_for_few_rows_of_what_a_text_alone_begins_with_unless_it_is_large(
    calibrated_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int, fixed: dict[tuple[int, int], int]
) -> None:
    monkeypatch.setattr("revmux_core.backends.openvino.LARGEST_FIXED", largest)
    # As without AMX.
    monkeypatch.setattr("revmux_core.backends.openvino.AMX_TOGETHER", {})
    bundle = load_bundle(calibrated_path, backend="openvino")
    executor = bundle.classifier.executor
    assert isinstance(executor, OpenVinoExecutor)
    for alone in [point for point in executor._whole if point.width == 1]:
        executor.limit(bundle.classifier.points)
        executor.prepare(alone)
        made = {of: program._fixed for (_, of), program in executor._programs.items()}
        assert [shapes[1:] for shapes in made.pop(alone)] == [
            ((rows, length), (rows, places)) for (rows, length), places in fixed.items()
        ]
        assert made
        assert not any(made.values())


def test_fixed_programs_answer_as_the_one_for_all_shapes(
    compiled: Bundle, calibrated_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = load_bundle(calibrated_path, backend="openvino")
    executor, pad_id = prepared.classifier.executor, prepared.tokenizer.pad_id
    assert isinstance(executor, OpenVinoExecutor)
    for alone in [point for point in executor._whole if point.width == 1]:
        executor.limit(prepared.classifier.points)
        executor.prepare(alone)
        monkeypatch.setattr(executor._program(executor._token_path, alone), "_request", None)
        # Answers stay what they are when their program runs again.
        batches = [
            collate(samples, MuxPlan((Group(alone, tuple(range(len(samples)))),)), pad_id)
            for samples in (random_samples(compiled, count, seed=count)[1] for count in (1, 2, 3))
        ]
        fixed, free = [[bundle.classifier(batch) for batch in batches] for bundle in (prepared, compiled)]
        for own, expected in zip(fixed, free, strict=True):
            assert torch.equal(own.logits, expected.logits)
            assert torch.equal(own.pooled, expected.pooled)


class ReadingAll(PackedLayers):
    def forward(self, hidden: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden, torch.ones_like(segments))


def test_a_program_in_which_texts_read_each_other_is_refused(compiled: Bundle) -> None:
    """Though it computes what PyTorch computes."""
    backbone = compiled.classifier.backbone
    layers = ReadingAll(backbone, backbone.layers(0, 1))
    with pytest.raises(RevmuxError, match="mixes up texts that share rows"):
        Compiler(torch.float32).compile([layers], backbone.hidden_size)


def test_one_of_one_shape_is_left_out(compiled: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = compiled.classifier.backbone
    layers = PackedLayers(backbone, backbone.layers(0, 1))
    (program,) = Compiler(torch.float32).compile([layers], backbone.hidden_size)
    monkeypatch.setattr(programs, "_independent", lambda run, inputs: inputs[1].shape != (1, 16))
    program.fix([(1, 16, 4), (2, 48, 4)])
    assert [segments for _, segments in program._fixed] == [(2, 48)]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_the_demo_answers_few_texts_as_it_does_one(dtype: torch.dtype) -> None:
    """In the programs that a server has for them. OpenVINO's attention had mixed up twelve places with twelve heads."""
    bundle = load_bundle("sst2-minilm", dtype=dtype, backend="openvino")
    executor, point = bundle.classifier.executor, bundle.classifier.plain
    assert isinstance(executor, OpenVinoExecutor)
    executor.limit([point])
    executor.prepare(point)
    samples = bundle.tokenizer([(text, None) for text in SAMPLE_TEXTS.read_text().splitlines()[:48]])

    def logits(count: int) -> torch.Tensor:
        plan = MuxPlan((Group(point, tuple(range(count))),))
        batches = [samples[begin : begin + count] for begin in range(0, len(samples), count)]
        return torch.cat([bundle.classifier(collate(batch, plan, bundle.tokenizer.pad_id)).logits for batch in batches])

    alone = logits(1)
    for count in (2, 3, 4, 6, 8):
        torch.testing.assert_close(logits(count), alone, atol=0.1, rtol=0)


@given(st.lists(st.integers(SHORT_TEXT, ROW_LENGTH // 2), min_size=1, max_size=10))
def test_few_texts_are_few_rows_of_few_shapes(lengths: list[int]) -> None:
    (block,) = Layout.of(tuple(lengths), RowCosts(1 / 1152)).blocks
    rows, length = block.segments.shape
    assert (rows == 1) == (sum(lengths) <= ROW_LENGTH)
    if rows <= 2:
        assert block.firsts.shape[1] == FEW_ROWS[rows, length]


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (["n1-l3"], ["ExitPath", "PackedEnd", "PlainPath"]),
        (["n2-l3-u5"], ["CompositePath", "PackedEnd", "PlainPath", "PrefillPath"]),
        # What the second and third step run, and a text that begins there.
        (["n1-l2", "n1-l3"], ["ExitPath", "PackedEnd", "PackedLayers", "PackedLayers", "PlainPath"]),
    ],
)
def test_whoever_is_first_compiles_what_escalated_samples_need(
    monkeypatch: pytest.MonkeyPatch, names: list[str], kinds: list[str], prepared: bool
) -> None:
    """Of a server that is warmed up from its cheapest point on, no client waits for a compiler."""
    made: list[type[nn.Module]] = []
    compile_modules = Compiler.compile

    def count(compiler: Compiler, modules: Sequence[nn.Module], size: int) -> list[Program]:
        made.extend(map(type, modules))
        return compile_modules(compiler, modules, size)

    monkeypatch.setattr(Compiler, "compile", count)
    bundle = load_bundle("sst2-minilm", backend="openvino")
    classifier, pad_id = bundle.classifier, bundle.tokenizer.pad_id
    first, *later = map(OperatingPoint.parse, names)
    classifier.executor.limit([first, *later, classifier.plain])
    if prepared:
        classifier.executor.prepare(first)
        # Nothing is left to the first batch.
        monkeypatch.setattr(Compiler, "compile", None)
        # What is in the way of later points, too.
        kinds = [*kinds, *(["Demultiplexing", "Shortcut"] * len(names) if later else [])]
    samples = bundle.tokenizer([("a gripping film", None), ("a waste of time", None)])
    group = Group(first, (0, 1))
    outcome = classifier(collate(samples, MuxPlan((group,)), pad_id))
    assert sorted(kind.__name__ for kind in made) == sorted(kinds)
    made.clear()
    standing = [outcome.prefilled(group, number) for number in group.members]
    classifier(collate(standing, MuxPlan((Group(classifier.plain, (0, 1), first.prefill),)), pad_id))
    classifier(collate(samples, MuxPlan((Group(classifier.plain, (0, 1)),)), pad_id))
    assert not made


def test_every_point_answers_as_in_pytorch(compiled: Bundle, calibrated_path: Path) -> None:
    reference = load_bundle(calibrated_path).classifier
    assert len(reference.points) == 4
    assert_same_answers(compiled, reference, reference.points)
    # And in one piece, for a server that has no other point.
    compiled.classifier.executor.limit([reference.plain])
    assert_same_answers(compiled, reference, [reference.plain])
    compiled.classifier.executor.limit(reference.points)


def test_new_texts_are_answered_beside_a_longer_one_that_goes_on(compiled: Bundle, calibrated_path: Path) -> None:
    """Whose row is as long as that of no text that starts with its tokens."""
    reference, pad_id = load_bundle(calibrated_path).classifier, compiled.tokenizer.pad_id
    plain = reference.plain
    leaves = next(point for point in reference.points if point.width == 1 and point != plain)
    samples = random_samples(compiled, 9)[1]
    long = max(samples, key=len)
    short = [sample for sample in samples if len(sample) < len(long)]
    goes_on, begin = Group(plain, (0,), leaves.prefill), Group(plain, tuple(range(1, len(short) + 1)))
    logits = []
    for classifier in (compiled.classifier, reference):
        alone = Group(leaves, (0,))
        states = classifier(collate([long], MuxPlan((alone,)), pad_id)).prefilled(alone, 0)
        logits.append(classifier(collate([states, *short], MuxPlan((goes_on, begin)), pad_id)).logits)
    torch.testing.assert_close(*logits, atol=1e-3, rtol=1e-3)


def test_a_program_whose_logits_alone_are_wrong_is_refused(compiled: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little they are beside what they are made from."""
    backbone = compiled.classifier.backbone
    assert isinstance(backbone, encoder.EncoderBackbone)
    head = encoder.EncoderBackbone.head

    def traced_wrongly(own: encoder.EncoderBackbone, pooled: torch.Tensor) -> torch.Tensor:
        return head(own, pooled) * (0.7 if torch.jit.is_tracing() else 1)

    monkeypatch.setattr(encoder.EncoderBackbone, "head", traced_wrongly)
    path = PlainPath(backbone, backbone.layers(0, backbone.num_layers))
    with pytest.raises(RevmuxError, match="does not compute what PyTorch computes"):
        Compiler(torch.float32).compile([path], backbone.hidden_size)


@pytest.mark.parametrize("family", encoder.FAMILIES)
def test_every_familys_ways_from_tokens_to_logits_are_programs(family: str) -> None:
    """The plain path, the first exit, and composites, beside a sample for which there was no partner."""
    backbone = view(make(family))
    first, later = (OperatingPoint(1, prefill, ()) for prefill in (1, 2))
    mux = OperatingPoint.mux(2, 1, backbone.num_layers)
    torch.manual_seed(0)
    adapters = {
        point: make_adapters(backbone, point, make_multiplexer(method, point.width, backbone.hidden_size), rank)
        for point, method, rank in ((later, EARLY_EXIT, 0), (first, EARLY_EXIT, 0), (mux, DEFAULT_METHOD, 2))
    }
    reference, compiled = MuxClassifier(backbone, adapters), MuxClassifier(backbone, adapters)
    compiled.executor = executor = OpenVinoExecutor(compiled, torch.float32)
    ids, mask, type_ids = inputs(backbone, segments=family in ("bert", "electra"))
    lengths = tuple(mask.sum(dim=1).tolist())
    plain = reference.plain
    for points, whole in (
        ([(plain, 4)], True),
        ([(first, 4)], True),
        ([(later, 4)], False),
        ([(mux, 4)], True),
        ([(mux, 2), (first, 1), (plain, 1)], True),
        ([(mux, 2), (later, 2)], False),
    ):
        assert (executor.answer(points, ids, type_ids, lengths) is not None) == whole
        members = iter((2, 0, 3, 1))
        groups = tuple(Group(point, tuple(islice(members, count))) for point, count in points)
        place = torch.tensor([1, 3, 0, 2])
        batch = MuxBatch(MuxPlan(groups), lengths, mask, ids, type_ids, place)
        found, expected = compiled(batch), reference(batch)
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-4, rtol=1e-4)
        for group in groups:
            for row in range(len(group.members)) if group.point != plain else ():
                states = (outcome.prefilled(group, row).states for outcome in (found, expected))
                torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)


def test_long_texts_and_composites_of_unlike_lengths_are_answered_as_in_pytorch() -> None:
    """The demo's points, texts of 5 to 512 tokens among them in one batch."""
    compiled, whole = load_bundle("sst2-minilm", backend="openvino"), load_bundle("sst2-minilm")
    words = SAMPLE_TEXTS.read_text().split()
    samples = whole.tokenizer([(" ".join(words[start : start + n]), None) for start, n in enumerate((4, 600, 130, 3))])
    assert [len(sample) for sample in samples][1] == 512
    for point in whole.classifier.points:
        plan = MuxPlan((Group(point, (0, 1, 2, 3)),))
        found, expected = (
            bundle.classifier(collate(samples, plan, bundle.tokenizer.pad_id)).logits for bundle in (compiled, whole)
        )
        torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_as_in_pytorch(tiny_bundle: Bundle, method: str) -> None:
    """Composites of unlike lengths, beside a sample for which there was no partner, new or one that goes on."""
    point, adapters = build(tiny_bundle, method, 0)
    reference = MuxClassifier(tiny_bundle.classifier.backbone, {point: adapters})
    compiled = MuxClassifier(tiny_bundle.classifier.backbone, {point: adapters})
    compiled.executor = OpenVinoExecutor(compiled, torch.float32)
    samples = random_samples(tiny_bundle, 9)[1]
    pad_id, muxed = tiny_bundle.tokenizer.pad_id, len(samples) - 1
    composites = Group(point, tuple(range(muxed)))
    alone, goes_on = (Group(reference.plain, (muxed,), start) for start in (0, point.prefill))
    for groups in ((alone, composites), (composites, alone), (composites, goes_on)):
        logits = []
        for classifier in (compiled, reference):
            last: Tokens | Prefilled = samples[muxed]
            if goes_on in groups:
                last = classifier(collate(samples[:muxed], MuxPlan((composites,)), pad_id)).prefilled(composites, 0)
            logits.append(classifier(collate([*samples[:muxed], last], MuxPlan(groups), pad_id)).logits)
        torch.testing.assert_close(*logits, atol=1e-3, rtol=1e-3)


@needs_bfloat16
def test_states_of_less_precision_go_on_as_they_stand(compiled: Bundle, calibrated_path: Path) -> None:
    """In the precision of the products, half as large as PyTorch's, at every point and beside new texts."""
    rounded = load_bundle(calibrated_path, dtype=torch.bfloat16, backend="openvino").classifier
    plain, pad_id = rounded.plain, compiled.tokenizer.pad_id
    samples = random_samples(compiled, 12)[1]
    for point in rounded.points:
        group = Group(point, tuple(range(len(samples))))
        outcomes = [
            classifier(collate(samples, MuxPlan((group,)), pad_id)) for classifier in (rounded, compiled.classifier)
        ]
        _assert_near(*(outcome.logits for outcome in outcomes))
        if point == plain:
            continue
        ways = []
        for classifier, outcome in zip((rounded, compiled.classifier), outcomes, strict=True):
            standing = [outcome.prefilled(group, number) for number in range(4)]
            groups = Group(plain, group.members[:4], point.prefill), Group(point, group.members[4:])
            ways.append((standing, classifier(collate([*standing, *samples[4:]], MuxPlan(groups), pad_id))))
        (ours, found), (_, expected) = ways
        assert {own.states.dtype for own in ours} == {torch.bfloat16}
        _assert_near(found.logits, expected.logits)


def _assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.05


@pytest.mark.parametrize(("dtype", "most"), [pytest.param(torch.bfloat16, 0, marks=needs_bfloat16), (torch.int8, 1)])
def test_the_demos_labels_are_those_of_pytorch_in_less_precision(dtype: torch.dtype, most: int) -> None:
    texts = SAMPLE_TEXTS.read_text().splitlines()[:64]
    expected = load_bundle("sst2-minilm").classify(texts, point=1)
    bundle = load_bundle("sst2-minilm", dtype=dtype, backend="openvino")
    # In one piece, as a server does that has no other point; rounding adds up most there.
    bundle.classifier.executor.limit([bundle.classifier.plain])
    found = bundle.classify(texts, point=1)
    assert f"torch.{bundle.classifier.executor.precision}" == str(dtype)
    assert sum(a.label != b.label for a, b in zip(found, expected, strict=True)) <= most
    # Really computed in less: float32 would differ by rounding only.
    assert max(abs(a.probs[0] - b.probs[0]) for a, b in zip(found, expected, strict=True)) > 1e-4


def test_a_calibration_counts_for_its_own_backend_only(
    compiled: Bundle, uncalibrated_path: Path, tmp_path: Path
) -> None:
    assert compiled.manifest.calibration is None
    path = shutil.copytree(uncalibrated_path, tmp_path / "bundle")
    bundle = load_bundle(path, backend="openvino")
    found = calibrate(bundle, random_samples(bundle, 400)[1], 0.8, 0.9, [1], "words")
    record_calibration(path, found.calibration, {p.name: s.state_dict() for p, s in found.learnt.items()})
    own = load_bundle(path, backend="openvino").manifest.calibration
    assert own == found.calibration
    assert own.backend == "openvino"
    assert load_bundle(path).manifest.calibration is None
    # And a second one beside it leaves the first alone.
    record_calibration(path, found.calibration.model_copy(update={"backend": "torch"}), {})
    assert len(read_manifest(path).calibrations) == 2


def test_int8_is_not_pytorchs() -> None:
    with pytest.raises(RevmuxError, match="of the backend openvino only"):
        choose_dtype("int8", "torch", torch.device("cpu"))


def test_it_runs_on_the_cpu_only(tiny_bundle_path: Path) -> None:
    with pytest.raises(RevmuxError, match="runs on the cpu, not on meta"):
        load_bundle(tiny_bundle_path, device="meta", backend="openvino")


def test_it_does_not_call_float32_bfloat16(tiny_bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "has_bfloat16", lambda: False)
    assert choose_dtype("auto", "openvino", torch.device("cpu")) == torch.float32
    with pytest.raises(RevmuxError, match=r"no bfloat16 on this CPU.*: use float32 or int8"):
        load_bundle(tiny_bundle_path, dtype=torch.bfloat16, backend="openvino")


@pytest.mark.parametrize(
    ("has", "warns"),
    [
        ({"avx2": True}, True),
        ({"avx2": True, "avx_vnni": True}, False),
        ({"avx2": True, "avx512_vnni": True}, False),
        ({"avx2": True, "avx512_vnni": True, "amx_tile": True}, True),
        ({"neon": True}, False),
    ],
)
def test_it_warns_where_int8_brings_no_speed(
    has: dict[str, bool],
    warns: bool,
    tiny_bundle_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: has)
    load_bundle(tiny_bundle_path, dtype=torch.int8, backend="openvino")
    assert ("int8 saves memory but no time on this CPU" in caplog.text) == warns


@pytest.mark.parametrize("command", [["bench", "--bundle", "none"], ["serve", "--bundle", "none", "--port", "0"]])
@pytest.mark.parametrize(("backend", "policy"), [("openvino", "PASSIVE"), ("torch", None)])
def test_pytorchs_threads_sleep_beside_openvino(command: list[str], backend: str, policy: str | None) -> None:
    """OpenMP reads how they wait when PyTorch is first imported, so it has to be said before."""
    code = f"""
import os, sys
os.environ.pop("OMP_WAIT_POLICY", None)
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print("torch with", os.environ.get("OMP_WAIT_POLICY"))
            sys.exit(0)
sys.meta_path.insert(0, Watch())
sys.argv = {["revmux", *command, "--backend", backend]!r}
from server.cli import main
main()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout == f"torch with {policy}\n", run.stderr
