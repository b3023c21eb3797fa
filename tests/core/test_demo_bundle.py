"""The embedded demo bundle keeps what its card promises, on real text."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from revmux_core.bundle import Bundle, load_bundle
from revmux_core.card import model_card
from revmux_core.data import Example, label_targets, read_examples
from revmux_core.evaluation import evaluate, evaluate_cascade, plain_answers
from revmux_core.manifest import BUILT_IN, read_manifest
from revmux_core.plan import Tokens

# SST-2's development set may not be redistributed, so it is not part of the project.
SST2_DEV = Path(os.environ.get("SST2_DEV", Path(__file__).parents[3] / "shared/data/sst2/dev.tsv"))
needs_sst2 = pytest.mark.skipif(not SST2_DEV.is_file(), reason=f"needs SST-2's dev.tsv at {SST2_DEV}, or at $SST2_DEV")
NAME, INTENTS = "sst2-minilm", "banking77-minilm"


@pytest.fixture(scope="module")
def demo() -> Bundle:
    return load_bundle(NAME)


@dataclass(frozen=True)
class Sst2:
    """The development set: its examples, their tokens, and what the plain model answers to them."""

    examples: list[Example]
    samples: list[Tokens]
    plain: np.ndarray


@pytest.fixture(scope="module")
def sst2(demo: Bundle) -> Sst2:
    examples = read_examples(SST2_DEV)
    samples = demo.tokenizer([(example.text, None) for example in examples])
    return Sst2(examples, samples, plain_answers(demo.classifier, samples, demo.tokenizer.pad_id))


@pytest.mark.parametrize("name", [NAME, INTENTS])
def test_a_demo_is_small_and_its_card_is_its_manifest(name: str) -> None:
    folder = BUILT_IN / name
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 15e6
    assert (folder / "README.md").read_text() == model_card(read_manifest(folder))


def test_three_lines_classify(demo: Bundle) -> None:
    texts = ["a gripping, generous film", "a waste of two hours", "wonderful", "it limps and then it falls over"]
    for width in (1, 2, 4):
        answers = demo.classify(texts, point=width)
        assert [answer.label for answer in answers] == ["positive", "negative", "positive", "negative"]
        assert {answer.mux_width for answer in answers} == {width}


def test_the_other_demo_knows_77_intents() -> None:
    texts = ["My card was stolen yesterday", "When will my new card arrive?", "How do I change my PIN?"]
    labels = [answer.label for answer in load_bundle(INTENTS).classify(texts)]
    assert labels == ["lost_or_stolen_card", "card_arrival", "change_pin"]


@needs_sst2
@pytest.mark.parametrize("choice", [2, 4, "n1-l3"])
def test_accuracy_and_agreement_on_sst2_are_those_of_the_card(demo: Bundle, sst2: Sst2, choice: int | str) -> None:
    targets = label_targets(sst2.examples, demo.manifest.problem, sst2.samples)
    point, pad_id = demo.point(choice), demo.tokenizer.pad_id
    result = evaluate(demo.classifier, point, sst2.samples, targets, pad_id, draws=1, seed=1, reference=sst2.plain)
    card = next(row for row in demo.manifest.measured["points"] if row["point"] == point.name)
    assert result.metrics["plain_accuracy"] == pytest.approx(card["plain_accuracy"], abs=0.003)
    # One draw; draws differ by up to two points.
    assert result.metrics["accuracy"] == pytest.approx(card["accuracy"], abs=0.02)
    assert result.agreement == pytest.approx(card["agreement"], abs=0.02)


@needs_sst2
@pytest.mark.parametrize("width", [1, 4])
def test_guaranteed_answers_on_sst2_keep_the_certified_agreement(demo: Bundle, sst2: Sst2, width: int) -> None:
    cascade, pad_id = demo.cascade(width), demo.tokenizer.pad_id
    result = evaluate_cascade(demo.classifier, cascade, sst2.samples, None, pad_id, draws=1, reference=sst2.plain)
    calibration = demo.manifest.calibration
    assert calibration is not None
    entry = next(entry for entry in calibration.cascades if entry.width == width)
    assert result.agreement >= calibration.target
    assert result.ideal_speedup == pytest.approx(entry.ideal_speedup, rel=0.05)
