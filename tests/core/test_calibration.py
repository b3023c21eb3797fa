"""Certified agreement: the bound holds, thresholds come with it, and a calibrated bundle keeps its promise."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from revmux_core.bundle import load_bundle
from revmux_core.calibration import calibrate, validate
from revmux_core.cascade import Cascade
from revmux_core.certificate import CalibrationError, certify, samples_needed, upper_bound
from revmux_core.confidence import LearntConfidence
from revmux_core.errors import RevmuxError
from revmux_core.evaluation import evaluate_cascade, plain_answers
from revmux_core.manifest import BundleError, CascadeEntry, read_manifest, record_calibration
from revmux_core.points import OperatingPoint
from revmux_core.problems import SingleLabel
from revmux_core.selection import Seen, certify_chain, confidences, differs, ladder, wrong_at
from tests.tiny import HIDDEN, random_samples


@pytest.mark.parametrize("target", [0.97, 0.99])
def test_a_certified_threshold_breaks_the_target_as_rarely_as_promised(target: float) -> None:
    """2,000 calibrations of a model whose true risk at every threshold is known, and not monotonous."""
    rng = np.random.default_rng(0)
    risks = (1 - target) * np.array([0.1, 0.3, 0.2, 0.6, 0.9, 1.05, 1.2, 1.5, 3.0])
    broken = 0
    for _ in range(2000):
        differs = rng.random((1000, 1)) < risks
        last = certify(differs, target, 0.95)
        broken += last is not None and risks[last] > 1 - target
    assert 0.01 < broken / 2000 <= 0.05


def test_the_fewest_samples_are_those_that_can_certify_at_all() -> None:
    assert samples_needed(0.99, 0.95) == 299
    assert samples_needed(0.995, 0.95) == 598
    assert certify(np.zeros((299, 3), dtype=bool), 0.99, 0.95) == 2
    assert certify(np.zeros((298, 3), dtype=bool), 0.99, 0.95) is None
    # The first failure ends it, whatever comes after.
    differs = np.zeros((299, 3), dtype=bool)
    differs[0, 1] = True
    assert certify(differs, 0.99, 0.95) == 0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_bound_lies_above_what_was_seen(counts: tuple[int, int]) -> None:
    differing, samples = counts
    bound = upper_bound(differing, samples, 0.95)
    assert differing / samples <= bound <= 1
    assert upper_bound(0, 298, 0.95) > 0.01 > upper_bound(0, 299, 0.95)


def test_what_may_go_straight_to_the_plain_path_counts_with_both_answers() -> None:
    """Serving may cut a cascade short after its first step, and a plain path in another precision may be wrong."""
    differing = np.array([[0, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=bool)
    assert wrong_at(np.array([0, 1, 1, 2, 0]), differing).tolist() == [False, True, True, False, True]


def test_a_learnt_score_finds_what_the_top_probability_does_not_show() -> None:
    torch.manual_seed(0)
    pooled, logits = torch.randn(400, 16), torch.randn(400, 3)
    agrees = pooled[:, 3] > -0.5
    score = LearntConfidence(16, SingleLabel(("a", "b", "c")))
    score.fit(pooled[:200], logits[:200], agrees[:200].float())
    confidence = score(pooled[200:], logits[200:])
    right = (confidence > 0.5) == agrees[200:]
    assert right.float().mean() > 0.9
    assert confidence.min() >= 0
    assert confidence.max() <= 1


@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=20), st.floats(1, 50)
)
def test_a_ladder_begins_with_the_surest_and_ends_with_all(rows: list[tuple[float, float]], further: float) -> None:
    """No threshold rises, each asks the first point for odds to the power of what the second is asked for, and where
    both are alike all are scores that some text has."""
    sure = np.array(rows, dtype=np.float32)
    thresholds = np.array(ladder(sure, np.array([further, 1.0])))
    assert (np.diff(thresholds, axis=0) <= 0).all()
    first, second = torch.from_numpy(thresholds).logit().T
    inside = (first.abs() < 10) & (second.abs() < 10)
    torch.testing.assert_close(first[inside], further * second[inside], atol=1e-2, rtol=0)
    assert (sure >= thresholds[-1]).any(axis=1).all()
    alike = np.array(ladder(sure, np.ones(2)))
    assert set(alike.ravel().tolist()) <= set(sure.ravel().tolist())
    assert alike[0].tolist() == [sure.max()] * 2


def test_points_that_are_further_off_have_to_be_surer() -> None:
    """The first exit is off the plain model's margins by 2 logits and the second by 0.25: one threshold for both costs
    more than two that are as far apart, and fresh texts agree as promised."""
    rng = np.random.default_rng(0)
    exits = [OperatingPoint(1, prefill, ()) for prefill in (2, 4)]

    def seen(count: int) -> list[Seen]:
        plain = 3 * rng.standard_normal(count)
        made = []
        for off in (2, 0.25, 0):
            margin = plain + off * rng.standard_normal(count)
            logits = torch.tensor(np.stack([-margin / 2, margin / 2], axis=1), dtype=torch.float32)
            agrees = torch.from_numpy((margin > 0) == (plain > 0))
            # Pooled states that say nothing, so that there is nothing to be learnt of them.
            made.append(Seen(SingleLabel(("a", "b")), logits, torch.zeros(count, 1), agrees, agrees.float()))
        return made

    learn, test, fresh = seen(2000), seen(4000), seen(20000)
    found = certify_chain(exits, 6, learn, test, 0.99, 0.95)
    assert found is not None
    assert found.kind == "top-probability"
    first, second = torch.tensor(found.cascade.thresholds).logit()
    # A margin that changes sides is off by less than its logits are.
    assert float(first / second) == pytest.approx(7, rel=0.1)
    own = confidences(exits, fresh[:-1], {})
    leaves_at = found.cascade.leaves_at(own)
    assert wrong_at(leaves_at, differs(fresh)).mean() < 0.01
    reached = [(leaves_at >= step).mean() for step in range(3)]
    assert found.passed_on == pytest.approx((reached[1], reached[2] / reached[1]), abs=0.03)
    # One for both, the lowest that these very texts allow.
    cascades = (Cascade(tuple(exits), (float(at),) * 2, 6) for at in np.quantile(own, np.linspace(1, 0, 200)))
    kept = [c for c in cascades if wrong_at(c.leaves_at(own), differs(fresh)).mean() < 0.01]
    assert found.cascade.ideal_speedup(leaves_at) > 1.1 * max(c.ideal_speedup(c.leaves_at(own)) for c in kept)


def test_a_calibrated_bundle_keeps_its_promise(calibrated_path: Path) -> None:
    loaded = load_bundle(calibrated_path)
    calibration = loaded.manifest.calibration
    assert calibration is not None
    assert [entry.width for entry in calibration.cascades] == [1, 2]
    lines, fresh = random_samples(loaded, 400, seed=1)
    reference = plain_answers(loaded.classifier, fresh, 0)
    for entry in calibration.cascades:
        result = evaluate_cascade(loaded.classifier, loaded.cascade(entry.width), fresh, None, 0, draws=3)
        assert 0 < result.escalation_rate < 1
        assert result.escalation_rate == pytest.approx(entry.escalation_rate, abs=0.12)
        assert result.agreement > 0.8
        answers = loaded.classify(lines, entry.width, quality="guaranteed")
        labels = [loaded.manifest.labels[label] for label in reference]
        assert np.mean([answer.label == label for answer, label in zip(answers, labels, strict=True)]) > 0.8
        for answer, label in zip(answers, labels, strict=True):
            assert answer.label == label or not answer.escalated
            assert answer.mux_width == (1 if answer.escalated else entry.width)
    assert loaded.classify(lines[:9]) == loaded.classify(lines[:9], quality="guaranteed")


def test_a_new_calibration_takes_the_place_of_the_old(calibrated_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(calibrated_path, path)
    loaded = load_bundle(path)
    calibration = loaded.manifest.calibration
    assert calibration is not None
    entry = calibration.cascades[0].model_copy(update={"score": "learnt"})
    (name,) = entry.points
    score = LearntConfidence(HIDDEN, loaded.classifier.backbone.problem)
    learnt = calibration.model_copy(update={"cascades": [entry]})
    record_calibration(path, learnt, {name: score.state_dict()})
    again = load_bundle(path)
    assert [cascade.points[0].name for cascade, _ in again.cascades()] == [name]
    assert again.classifier.adapters_of(again.point(name)).confidence is not None
    (path / learnt.files[name]).write_bytes(b"altered")
    with pytest.raises(BundleError, match="SHA-256"):
        load_bundle(path)
    plain = calibration.model_copy(update={"cascades": []})
    record_calibration(path, plain, {})
    assert not load_bundle(path).cascades()


def test_a_cascade_says_as_much_of_every_point(calibrated_path: Path) -> None:
    entry = read_manifest(calibrated_path).calibrations[0].cascades[0].model_dump()
    with pytest.raises(ValidationError, match="1 points says what 2 passed on"):
        CascadeEntry.model_validate(entry | {"passed_on": (0.5, 0.5)})
    with pytest.raises(ValidationError, match="finite number"):
        CascadeEntry.model_validate(entry | {"thresholds": (float("nan"),)})


def test_a_cascade_of_one_threshold_asks_the_same_as_ever(calibrated_path: Path) -> None:
    """Until version 4 there was one, in version 4 of log-odds that temperatures divided for some."""
    entry = read_manifest(calibrated_path).calibrations[0].cascades[0]
    rest = entry.model_dump(exclude={"thresholds"}) | {"points": ("n1-l1", "n1-l2"), "passed_on": None}
    old = CascadeEntry.model_validate(rest | {"threshold": 0.8, "temperatures": ()})
    assert old.thresholds == (0.8, 0.8)
    tempered = rest | {"score": "tempered-probability", "threshold": 0.8, "temperatures": (2.0, 1.0)}
    # Odds of 4 to 1, so that those that were halved as logarithms were 16 to 1.
    assert CascadeEntry.model_validate(tempered).thresholds == pytest.approx((16 / 17, 0.8))
    assert CascadeEntry.model_validate(tempered).score == "top-probability"
    for wrong in ({"threshold": 1.5}, {"temperatures": ("hot",)}, {"temperatures": (math.inf, 1.0), "threshold": 0.5}):
        with pytest.raises(ValidationError, match=r"finite number|valid number"):
            CascadeEntry.model_validate(tempered | wrong)


def test_steps_of_which_nothing_is_known_pass_on_as_much_as_each_other(calibrated_path: Path) -> None:
    entry = read_manifest(calibrated_path).calibrations[0].cascades[0]
    assert entry.expected_on == entry.passed_on == pytest.approx([entry.escalation_rate])
    older = entry.model_copy(update={"points": ("n1-l1", "n1-l2"), "escalation_rate": 0.25, "passed_on": None})
    assert older.expected_on == (0.5, 0.5)


def test_too_little_text_says_how_much_is_needed(uncalibrated_path: Path) -> None:
    bundle = load_bundle(uncalibrated_path)
    _, samples = random_samples(bundle, 100)
    with pytest.raises(CalibrationError, match=r"takes at least 428 texts, and there are 100: give more text"):
        calibrate(bundle, samples, 0.99, 0.95, [2], "words")
    with pytest.raises(RevmuxError, match="calibrated at no width: run `revmux calibrate`"):
        bundle.classify(["a film"], quality="guaranteed")


def test_a_validation_counts_broken_promises(uncalibrated_path: Path) -> None:
    bundle = load_bundle(uncalibrated_path)
    _, samples = random_samples(bundle, 900)
    report = validate(bundle, samples, 0.7, 0.95, [1, 2], splits=40)
    for row in report.widths:
        assert row["broken"] <= 0.1
        assert row["agreement"] > 0.7
        assert 0 < row["escalation_rate"] < 1
