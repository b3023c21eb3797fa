"""Training learns, repeats under a seed, survives a kill, and ends in a bundle that serves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel
from typer.testing import CliRunner

from revmux_core.bundle import load_bundle
from revmux_core.confidence import LEARNT, LearntConfidence
from revmux_core.data import Example
from revmux_core.errors import RevmuxError
from revmux_core.manifest import read_manifest, record_calibration
from revmux_core.problems import ProblemType
from revmux_core.training import loop
from revmux_core.training.extension import extend
from revmux_core.training.joining import join_texts
from revmux_core.training.loop import Schedule
from revmux_core.training.losses import LossWeights
from revmux_core.training.run import Recipe, TrainingError, train
from server.cli import app
from tests.tiny import HIDDEN, save_tokenizer, tiny_config

EXAMPLES = [
    Example(f"word{i // 2} {'good' if i % 2 else 'bad'} film {'very ' * (i % 5)}", label=str(i % 2)) for i in range(160)
]


def recipe(model: Path, **changes: object) -> Recipe:
    settings: dict[str, object] = {
        "model": str(model),
        "widths": (2,),
        "adapters": Schedule(epochs=1, learning_rate=2e-3, batch_size=16),
        "task": Schedule(epochs=4, learning_rate=2e-3, batch_size=16),
    }
    return Recipe(**(settings | changes))  # type: ignore[arg-type]


def adapters(bundle: Path) -> dict[str, torch.Tensor]:
    return load_file(next(bundle.glob("adapters/*.safetensors")))


@pytest.fixture(scope="module")
def bare_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder without a classification head."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(tiny_config(initializer_range=0.05)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def test_a_seed_repeats_a_run_and_a_killed_run_goes_on(
    tiny_base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(tiny_base_path)
    train(settings, EXAMPLES, tmp_path / "whole", "tiny")
    train(settings, EXAMPLES, tmp_path / "again", "tiny")
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", -1.0)
    saves = []

    def save_then_die(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        saves.append(arguments)
        if len(saves) == 4:
            raise KeyboardInterrupt

    save = loop._save
    monkeypatch.setattr(loop, "_save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        train(settings, EXAMPLES, tmp_path / "killed", "tiny")
    monkeypatch.setattr(loop, "_save", save)
    train(settings, EXAMPLES, tmp_path / "killed", "tiny")
    whole = adapters(tmp_path / "whole")
    for other in ("again", "killed"):
        for name, tensor in adapters(tmp_path / other).items():
            torch.testing.assert_close(tensor, whole[name], atol=1e-4, rtol=1e-3)
    with pytest.raises(TrainingError, match="other settings"):
        train(recipe(tiny_base_path, seed=1), EXAMPLES, tmp_path / "whole", "tiny")


def test_unlabelled_text_trains_towards_the_frozen_model(tiny_base_path: Path, tmp_path: Path) -> None:
    unlabelled = [Example(example.text) for example in EXAMPLES]
    train(recipe(tiny_base_path, adapters=Schedule(20, 2e-3, 16)), unlabelled, tmp_path / "bundle", "tiny")
    lines = (tmp_path / "bundle.work" / "metrics.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert last["step"] == last["of"] == 200
    assert last["loss"] < first["loss"]
    nothing = recipe(tiny_base_path, losses=LossWeights(ce=1, kl=0, infonce=0))
    with pytest.raises(RevmuxError, match="without labels"):
        train(nothing, unlabelled, tmp_path / "nothing", "tiny")


def test_a_bare_encoder_is_tuned_then_multiplexed_from_the_command_line(bare_encoder: Path, tmp_path: Path) -> None:
    """The whole path of a user: train, evaluate, bench, info, classify."""
    data = tmp_path / "train.tsv"
    data.write_text("sentence\tlabel\n" + "".join(f"{e.text}\t{e.label}\n" for e in EXAMPLES))
    out = tmp_path / "mine"
    run = CliRunner()
    command = f"train --model {bare_encoder} --data {data} --out {out} --labels bad,good --eval-data {data}"
    command += " --width 2 --point n1-l3 --epochs 6 --learning-rate 2e-3 --batch-size 16"
    command += " --task-epochs 8 --task-learning-rate 2e-3 --task-batch-size 16 --join-rounds 1"
    result = run.invoke(app, command.split(), catch_exceptions=False)
    assert result.exit_code == 0

    bundle = load_bundle(out)
    answers = bundle.classify(["word3 good film", "word3 bad film"], point=1)
    assert [answer.label for answer in answers] == ["good", "bad"]
    assert "share of plain" in (out / "README.md").read_text()

    evaluated = run.invoke(app, f"eval --bundle {out} --data {data} --width 2 --draws 3 --json".split())
    report = json.loads(evaluated.stdout)
    assert report["plain_accuracy"] > 0.95
    assert 0.5 < report["accuracy_worst"] <= report["accuracy"] <= 1
    assert report["agreement_worst"] <= report["agreement"]
    assert 0 < report["agreement_without_composite"] <= 1
    assert report["samples"] == 160

    timed = json.loads(run.invoke(app, f"bench --bundle {out} --rounds 1 --json".split()).stdout)
    assert [row["width"] for row in timed["widths"]] == [1, 2]
    assert timed["widths"][1]["ideal_speedup"] == pytest.approx(1 / 0.75)
    assert [row["point"] for row in timed["early_exits"]] == ["n1-l3"]

    evaluated = run.invoke(app, f"eval --bundle {out} --data {data} --point n1-l3 --draws 2 --json".split())
    report = json.loads(evaluated.stdout)
    assert report["agreement"] > 0.9
    assert report["partner_sensitivity"] == 0
    assert report["agreement_without_composite"] is None
    assert json.loads(run.invoke(app, f"info --bundle {out} --json".split()).stdout)["labels"] == ["bad", "good"]

    # Another point around the same model, beside one that it keeps.
    later = tmp_path / "later"
    command = f"train --model {out} --data {data} --out {later} --eval-data {data} --point n1-l3 --point n2-l3-u3"
    command += " --epochs 6 --learning-rate 2e-3 --batch-size 16"
    assert run.invoke(app, command.split(), catch_exceptions=False).exit_code == 0
    extended, kept = load_bundle(later), "adapters/n1-l3.safetensors"
    assert extended.manifest.name == "mine"
    assert [point.name for point in extended.classifier.points] == ["n1-l4", "n1-l3", "n2-l3-u3"]
    assert (later / kept).read_bytes() == (out / kept).read_bytes()
    texts = [example.text for example in EXAMPLES]
    assert extended.classify(texts, point=1) == bundle.classify(texts, point=1)
    assert extended.manifest.measured_agreement["n2-l3-u3"] > 0.8
    assert "Around that model `n2-l3-u3` later" in (later / "README.md").read_text()

    # And that one anew: how it was trained before is of no interest any more.
    newer = tmp_path / "newer"
    command = f"train --model {later} --data {data} --out {newer} --point n1-l3 --retrain n2-l3-u3 --epochs 1"
    assert run.invoke(app, command.split(), catch_exceptions=False).exit_code == 0
    training = read_manifest(newer).training
    assert training["points"] == ["n2-l3-u3"]
    assert training["before"] == read_manifest(out).training


def test_a_point_is_trained_anew_and_what_is_certified_of_those_kept_stays(
    calibrated_path: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(calibrated_path, source)
    (before,) = read_manifest(source).calibrations
    certified = before.model_copy(
        update={"cascades": [entry.model_copy(update={"score": LEARNT}) for entry in before.cascades]}
    )
    score = LearntConfidence(HIDDEN, load_bundle(source).classifier.backbone.problem).state_dict()
    record_calibration(source, certified, dict.fromkeys(certified.files, score))
    extend(recipe(source, widths=(), points=("n1-l2",), retrained=("n2-l2-u2.3",)), EXAMPLES[:32], out)
    bundle = load_bundle(out)
    assert [point.name for point in bundle.classifier.points] == ["n1-l4", "n1-l2", "n2-l2-u2.3"]
    (kept,) = [entry for entry in certified.cascades if entry.points == ("n1-l2",)]
    assert bundle.manifest.calibrations == [certified.model_copy(update={"cascades": [kept]})]
    assert bundle.classifier.adapters_of(bundle.point("n1-l2")).confidence is not None
    file = "adapters/n2-l2-u2.3.safetensors"
    assert (source / file).read_bytes() != (out / file).read_bytes()


@pytest.mark.parametrize(
    ("changes", "out", "problem"),
    [
        ({"points": ("n1-l2",)}, "other", "all of these points"),
        ({"retrained": ("n1-l3",)}, "other", "no point n1-l3 to --retrain"),
        ({"points": ("n1-l3",)}, "bundle", "another --out"),
        ({"points": ("n1-l3",), "labels": ("bad", "good")}, "other", "leave out --labels"),
        ({"points": ("n1-l3",), "tolerance": 0.1}, "other", "leave out --labels"),
    ],
)
def test_what_a_bundle_cannot_be_trained_for_is_refused(
    changes: dict[str, object], out: str, problem: str, tiny_base_path: Path, tmp_path: Path
) -> None:
    train(recipe(tiny_base_path, widths=(), points=("n1-l2",)), EXAMPLES[:32], tmp_path / "bundle", "tiny")
    with pytest.raises(TrainingError, match=problem):
        extend(recipe(tmp_path / "bundle", widths=(), **changes), EXAMPLES[:32], tmp_path / out)
    assert not (tmp_path / "other.work").exists()


def test_what_is_no_bundle_has_no_points_to_train_anew(tiny_base_path: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no bundle"):
        train(recipe(tiny_base_path, retrained=("n1-l2",)), EXAMPLES[:32], tmp_path / "bundle", "tiny")


TASKS: dict[ProblemType, tuple[str, Callable[[int], Any], str]] = {
    # The number of `very`s is told from the text's length; a word is an entity where it is the film's.
    "regression": ("", lambda i: i % 5, "pearson"),
    "multi_label_classification": (
        "--labels bad,good,very",
        lambda i: ["good" if i % 2 else "bad", *(["very"] if i % 5 else [])],
        "micro_f1",
    ),
    "token_classification": (
        "--labels O,GOOD,BAD",
        lambda i: ["O", "GOOD" if i % 2 else "BAD", "O", *["O"] * (i % 5)],
        "word_accuracy",
    ),
}


@pytest.mark.parametrize("kind", TASKS)
def test_every_type_of_task_is_trained_measured_and_calibrated(
    kind: ProblemType, bare_encoder: Path, tmp_path: Path
) -> None:
    options, label, metric = TASKS[kind]
    data, out = tmp_path / "train.jsonl", tmp_path / "mine"
    rows = [{"text": example.text.strip(), "label": label(i)} for i, example in enumerate(EXAMPLES)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = CliRunner()
    command = f"train --model {bare_encoder} --data {data} --out {out} --problem-type {kind} {options}"
    command += " --width 2 --point n1-l3 --epochs 12 --learning-rate 1e-3 --batch-size 16 --ce 0.2"
    command += " --task-epochs 12 --task-learning-rate 4e-3 --task-batch-size 16"
    assert run.invoke(app, command.split(), catch_exceptions=False).exit_code == 0
    manifest = read_manifest(out)
    assert (manifest.problem_type, manifest.tuned) == (kind, True)
    if kind == "regression":
        assert (manifest.labels, manifest.tolerance) == (["score"], 0.2)
    if kind == "multi_label_classification":
        assert manifest.thresholds is not None
        assert len(manifest.thresholds) == 3

    for point, least in (("n1-l4", 0.9), ("n1-l3", 0.7)):
        evaluated = run.invoke(app, f"eval --bundle {out} --data {data} --point {point} --draws 2 --json".split())
        report = json.loads(evaluated.stdout)
        assert report[f"plain_{metric}"] > 0.9
        assert report[metric] > least
    command = f"calibrate --bundle {out} --data {data} --target 0.7 --width 1 --json"
    calibrated = json.loads(run.invoke(app, command.split(), catch_exceptions=False).stdout)
    assert calibrated["cascades"][0]["agreement"] > 0.7
    if kind == "regression":
        assert calibrated["cascades"][0]["score"] == "learnt"
    run.invoke(app, f"card --bundle {out} --data {data} --draws 2".split(), catch_exceptions=False)
    card = (out / "README.md").read_text()
    assert metric.replace("_", " ") in card
    assert manifest.problem.same in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problem_type": "regression"}, "'high' for a score, which is no number"),
        ({"tolerance": 0.5}, "--tolerance is how far scores may differ"),
        ({"problem_type": "token_classification", "method": "token-pool"}, "merges neighbouring tokens"),
    ],
)
def test_settings_of_another_type_of_task_are_refused(
    options: dict[str, object], message: str, bare_encoder: Path, tmp_path: Path
) -> None:
    labels = ["1.5", "high"] if options.get("problem_type") == "regression" else ["0", "1"]
    examples = [Example(f"word{i}", label=labels[i % 2]) for i in range(20)]
    with pytest.raises(RevmuxError, match=message):
        train(recipe(bare_encoder, **options), examples, tmp_path / "bundle", "tiny")


def test_a_classifier_keeps_its_own_type_of_task(task_bundle_paths: dict[ProblemType, Path], tmp_path: Path) -> None:
    """Unlabelled text is enough to distil any; what only labels can say has to be named."""
    base = task_bundle_paths["regression"] / "base"
    texts = [Example(example.text) for example in EXAMPLES]
    with pytest.raises(TrainingError, match="leave out --problem-type"):
        train(recipe(base, problem_type="token_classification"), texts, tmp_path / "bundle", "tiny")
    with pytest.raises(TrainingError, match="name a --tolerance"):
        train(recipe(base), texts, tmp_path / "bundle", "tiny")
    for kind, path in task_bundle_paths.items():
        tolerance = 0.5 if kind == "regression" else None
        train(recipe(path / "base", tolerance=tolerance), texts, tmp_path / kind, "tiny")
        assert read_manifest(tmp_path / kind).problem_type == kind


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("n1-l4", "does not fit a model of 4 layers"),
        ("n2-l1-u2.4", "does not fit a model of 4 layers"),
        ("n2-l2", "need upper layers"),
        ("n1-l1-u2", "need upper layers"),
        ("n2-l3-u1", "must ascend"),
        ("n1-l0", "at least one layer"),
        ("width2", "names no operating point"),
    ],
)
def test_points_that_make_no_sense_are_refused(name: str, problem: str, tiny_base_path: Path, tmp_path: Path) -> None:
    with pytest.raises(RevmuxError, match=problem):
        train(recipe(tiny_base_path, widths=(), points=(name,)), EXAMPLES, tmp_path / "bundle", "tiny")


def test_a_bare_encoder_without_labels_is_refused(bare_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="bare without labels"):
        train(recipe(bare_encoder), [Example("good film")] * 20, tmp_path / "bundle", "tiny")


def test_joined_texts_are_longer_unlabelled_and_repeatable() -> None:
    joined = join_texts(EXAMPLES, rounds=2, seed=0)
    assert joined == join_texts(EXAMPLES, rounds=2, seed=0)
    assert {example.label for example in joined} == {None}
    words = sorted(word for example in joined for word in example.text.split() if word.startswith("word"))
    assert set(words) == {f"word{i}" for i in range(80)}
    # Twice a round at most, since every word stands in two of the examples; a round may leave two texts over.
    assert 2 * (len(EXAMPLES) - 2) <= len(words) <= 2 * len(EXAMPLES)
    with pytest.raises(RevmuxError, match="single texts"):
        join_texts([Example("a", "b")], rounds=1, seed=0)
