"""Task types: what is an answer, when two agree, how sure one is, what labels say, and what training aims at."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revmux_core.problems import (
    LabelCell,
    LabelError,
    Problem,
    ProblemType,
    Regression,
    TokenClassification,
    make_problem,
)
from revmux_core.tokenization import Text, Tokens
from revmux_core.training.losses import distillation, labelled_loss
from revmux_core.training.thresholds import choose_thresholds, hold_out
from tests.tiny import PROBLEMS

NOTHING = Tokens([])
ALL = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def random_logits(problem: Problem, texts: int, seed: int = 0) -> np.ndarray:
    """Of texts with 3, 2, 1, 3, ... words, where those are answered."""
    rng = np.random.default_rng(seed)
    shape = (texts, 3, len(problem.labels)) if problem.by_word else (texts, len(problem.labels))
    logits = rng.normal(size=shape).astype(np.float32)
    if problem.by_word:
        logits[1::3, 2:] = np.nan
        logits[2::3, 1:] = np.nan
    return logits


@ALL
def test_one_text_agrees_by_itself_as_it_does_among_others(problem: Problem) -> None:
    logits, others = random_logits(problem, 60), random_logits(problem, 60, seed=1) * 0.3
    others[:30] = logits[:30] + 1e-4
    together = problem.agree(problem.decide(others), problem.decide(logits))
    rows = [[row[~np.isnan(row)].tolist() for row in (own, plain)] for own, plain in zip(others, logits, strict=True)]
    assert [problem.agrees(*pair) for pair in rows] == together.tolist()
    assert together[:30].all()
    assert 0 < together[30:].sum() < 30


@ALL
def test_confidences_are_probabilities_of_whole_answers(problem: Problem) -> None:
    logits = random_logits(problem, 9) * 3
    found = problem.confidence(torch.from_numpy(logits)).numpy()
    probs = problem.activate(logits).astype(float)
    expected = {
        "single_label_classification": lambda: probs.max(axis=1),
        "token_classification": lambda: np.array([np.prod([w.max() for w in text if w[0] == w[0]]) for text in probs]),
        "regression": lambda: np.zeros(9),
        # Where a threshold is not 0.5, its label's odds count from there.
        "multi_label_classification": lambda: np.prod(
            [1 / (1 + np.exp(-np.abs(logits[:, i] - math.log(t / (1 - t))))) for i, t in enumerate((0.5, 0.3, 0.6))],
            axis=0,
        ),
    }[problem.type]()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for column in problem.evidence(torch.from_numpy(logits)):
        assert column.shape == (9,)
        assert column.isfinite().all()


@given(st.lists(st.floats(-200, 200, width=32), min_size=3, max_size=3))
def test_labels_are_those_that_reach_their_thresholds(logits: list[float]) -> None:
    problem = PROBLEMS["multi_label_classification"]
    probs = problem.activate(np.array(logits, dtype=np.float32))
    answer = problem.answer(logits, probs.tolist(), "", NOTHING)
    held = dict(zip(problem.labels, zip(probs.tolist(), (0.5, 0.3, 0.6), strict=True), strict=True))
    assert all(0 <= prob <= 1 for prob, _ in held.values())
    for label, (prob, threshold) in held.items():
        if abs(prob - threshold) > 1e-6:
            assert (label in answer["labels"]) == (prob >= threshold)
    assert answer["probs"][problem.labels.index(answer["label"])] == max(answer["probs"])


def test_a_score_agrees_within_its_tolerance() -> None:
    problem = Regression(("score",), 0.25)
    answers = np.array([1.0, 1.25, 1.26, 0.75, 0.74])
    assert problem.agree(answers, np.ones(5)).tolist() == [True, True, False, True, False]
    assert problem.closeness(answers, np.ones(5)) == {"mean_difference": pytest.approx(0.204)}
    assert problem.degree(np.array([1.0, 1.25, 1.5, 9.0]), np.ones(4)).tolist() == [1, 0.5, 0, 0]
    assert problem.answer([3.5], [3.5], "", NOTHING) == {
        "label": "score",
        "score": 3.5,
        "probs": [3.5],
        "num_classes": 1,
    }


def test_a_text_agrees_where_every_word_does() -> None:
    problem = TokenClassification(("O", "X"))
    plain = np.array([[0, 1, -1], [1, 1, 0]])
    answers = np.array([[0, 1, -1], [1, 0, 0]])
    assert problem.agree(answers, plain).tolist() == [True, False]
    assert problem.agree(answers[:1, :2], plain[:1]).tolist() == [True], "batches of shorter texts have fewer columns"
    assert problem.closeness(answers, plain) == {"word_agreement": 0.8}


@pytest.mark.parametrize(
    ("kind", "answers", "targets", "expected"),
    [
        ("single_label_classification", [0, 1, 2, 2], [0, 1, 1, -100], {"accuracy": 2 / 3}),
        (
            "multi_label_classification",
            [[1, 0, 0], [1, 1, 0], [0, 0, 0]],
            [[1, 0, 1], [1, 1, 0], [math.nan] * 3],
            {"micro_f1": 6 / 7, "subset_accuracy": 1 / 2},
        ),
        ("regression", [1.0, 2.0, 4.0, 9.0], [1.0, 2.0, 3.0, math.nan], {"pearson": 0.981981, "spearman": 1.0}),
        ("regression", [1.0, 1.0], [1.0, 2.0], {"pearson": 0.0, "spearman": 0.0}),
        (
            "token_classification",
            [[0, 1, 1], [2, 0, -1]],
            [[0, 1, 0], [2, -100, -100]],
            {"word_accuracy": 3 / 4, "macro_f1": (2 / 3 + 2 / 3 + 1) / 3},
        ),
    ],
)
def test_metrics_are_of_what_is_labelled(
    kind: ProblemType, answers: list[Any], targets: list[Any], expected: dict[str, float]
) -> None:
    found = PROBLEMS[kind].measure(np.array(answers), np.array(targets))
    assert found == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}
    assert tuple(found) == PROBLEMS[kind].metrics


def test_labels_are_read_as_files_spell_them() -> None:
    single, several, number, words = PROBLEMS.values()
    assert [single.target(label, "") for label in ("positive", "1")] == [2, 1]
    for label in ("negative, positive", ("positive", "negative"), "0,2"):
        assert several.target(label, "") == [1, 0, 1]
    assert several.target("", "") == [0, 0, 0]
    assert number.target("-1e-1", "") == -0.1
    assert words.target("O positive", "a  film") == [(0, 1, 0), (3, 7, 3)]
    refused: list[tuple[Problem, LabelCell, str]] = [
        (single, "good", "none of negative, neutral, positive"),
        (single, ("positive", "neutral"), "list of labels"),
        (several, "positive,good", "'good'"),
        (number, "high", "no number"),
        (number, "nan", "finite"),
        (words, "O", "1 labels for 2 words"),
    ]
    for problem, label, problem_with_it in refused:
        with pytest.raises(LabelError, match=problem_with_it):
            problem.target(label, "a film")


def test_a_word_that_is_split_is_labelled_at_its_first_part() -> None:
    problem = PROBLEMS["token_classification"]
    text: Text = ("good, bad", None)
    sample = Tokens([2, 7, 8, 9, 3], None, [1, 2, 3], [(0, 4), (4, 5), (6, 9)])
    own = [problem.target("positive negative", text[0]), None]
    assert problem.targets(own, [sample, sample]).tolist() == [[3, -100, 1], [-100, -100, -100]]


@pytest.mark.parametrize(
    ("kind", "labels", "settings", "message"),
    [
        ("regression", ["a", "b"], {}, "one score"),
        ("regression", ["a"], {"tolerance": -1.0}, "tolerance"),
        ("multi_label_classification", ["a", "b"], {"thresholds": [0.5]}, "each of the 2 labels"),
        ("multi_label_classification", ["a"], {"thresholds": [1.0]}, "between 0 and 1"),
        ("token_classification", ["a"], {}, "at least two"),
    ],
)
def test_problems_that_make_no_sense_are_refused(
    kind: ProblemType, labels: list[str], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        make_problem(kind, labels, **settings)


@ALL
def test_the_teacher_itself_is_the_best_student(problem: Problem) -> None:
    """And what has no label pulls nowhere."""
    torch.manual_seed(0)
    teacher = torch.randn(8, len(problem.labels))
    logits = teacher.clone().requires_grad_(True)
    loss = distillation(problem, logits, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6
    assert distillation(problem, teacher + torch.randn(teacher.shape), teacher) > 0.01
    unknown = {
        "multi_label_classification": torch.full((8, 3), math.nan),
        "regression": torch.full((8,), math.nan),
    }.get(problem.type, torch.full((8,), -100))
    assert labelled_loss(problem, teacher, unknown) == 0


def test_a_head_begins_at_what_labels_say_on_average() -> None:
    several, number = PROBLEMS["multi_label_classification"], PROBLEMS["regression"]
    targets = np.array([[1, 0, 0]] * 30 + [[1, 1, 0]] * 10 + [[math.nan] * 3], dtype=np.float32)
    prior = several.prior(targets)
    assert prior is not None
    np.testing.assert_allclose(several.activate(prior), [41 / 42, 11 / 42, 1 / 42], rtol=1e-6)
    mean = number.prior(np.array([1.0, 3.0, math.nan], dtype=np.float32))
    assert mean is not None
    assert mean.tolist() == [2.0]


def test_thresholds_are_those_of_the_best_f1_on_what_tuning_did_not_see() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((400, 3)) < [0.5, 0.3, 0.01]).astype(np.float32)
    # The first label is told from 0.3 on, the second from 0.7 on, the third is too rare to tell.
    probs = np.where(targets > 0, [0.35, 0.75, 0.9], [0.25, 0.65, 0.1]) + rng.uniform(-0.04, 0.04, targets.shape)
    assert choose_thresholds(probs, targets) == (pytest.approx(0.3), pytest.approx(0.7), 0.5)
    targets[::2] = np.nan
    held = hold_out(targets, seed=0)
    assert len(held) == 20
    assert all(index % 2 for index in held)
