"""A matrix is expanded, run once, resumed, and rendered; every kind of contender takes part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from revmux_core.experiments.matrix import Experiment, ExperimentError, read_experiment
from revmux_core.experiments.report import rows_of, write_report
from revmux_core.experiments.runner import Runner
from tests.tiny import LABELS

EXPERIMENT = """
name: tiny
title: Everything once
model: tiny
draws: 2
tasks:
  films: {{train: films.tsv, holdout: 4, bundle: {bundle}}}
defaults: {{task: films, epochs: 0.5, batch_size: 16}}
runs:
  - {{method: plain}}
  - {{method: int8}}
  - {{method: pruned-student, layers: [[0, 2]]}}
  - {{method: [revmux, mux-plm], width: [2, 4], prefill: 2, seed: [0, 1]}}
  - {{method: revmux, width: 2, prefill: 1, upper: [[2, 3]], delta_rank: 2, join_rounds: 1}}
  - {{method: early-exit, prefill: 2}}
  - {{method: early-exit, prefill: 2, int8: true}}
  - {{method: cascade, exits: [[1, 2]], speedup: [1.5, 2.5]}}
  - {{method: revmux-published, width: 2, prefill: 1, layers: [[0, 2]], infonce: 0}}
"""


@pytest.fixture
def experiment(tiny_bundle_path: Path, tmp_path: Path) -> Experiment:
    lines = [f"word{i} {'good' if i % 2 else 'bad'} film\t{LABELS[i % 3]}\n" for i in range(64)]
    (tmp_path / "films.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT.format(bundle=tiny_bundle_path))
    return read_experiment(tmp_path / "tiny.yaml")


def test_a_matrix_runs_resumes_and_reports(experiment: Experiment, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "out"
    results = Runner(experiment, tmp_path, out, None, torch.device("cpu")).run(said.append)
    assert len(results) == len(said) == 3 + 8 + 6

    # A lost result is made again, and no other.
    lost = out / "runs" / f"{experiment.expand()[4].key}.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    said.clear()
    results = Runner(experiment, tmp_path, out, None, torch.device("cpu")).run(said.append)
    assert len(said) == 1
    assert json.loads(lost.read_text())["accuracy"] == pytest.approx(before["accuracy"], abs=0.1)

    rows = {row.name: row for row in rows_of(results)}
    assert rows["plain"].agreement == rows["plain"].share == 1
    assert rows["pruned-student, layers 0.2"].ideal_speedup == pytest.approx(2)
    student = next(result for result in results if result["run"]["method"] == "pruned-student")
    assert student["agreement_without_composite"] is None
    assert rows["early-exit, n1-l2"].ideal_speedup == pytest.approx(2)
    assert rows["early-exit, n1-l2, int8"].ideal_speedup == pytest.approx(2)
    slow, fast = (rows[f"cascade, n1-l1 n1-l2, aimed at {speedup}"] for speedup in (1.5, 2.5))
    assert slow.ideal_speedup < fast.ideal_speedup
    assert rows["revmux, n2-l2-u2.3"].agreement_without_composite is not None
    assert rows["revmux, n2-l2-u2.3"].seeds == 2
    assert rows["revmux, n2-l1-u2.3, deltas of rank 2, joined text"].ideal_speedup == pytest.approx(2)
    # A student of 2 layers, then width 2 from its first layer up: 1.5 layers of 4.
    compound = rows["revmux-published, n2-l1-u1, layers 0.2, infonce 0"]
    assert compound.ideal_speedup == pytest.approx(4 / 1.5)

    text = write_report(experiment, results, out).read_text()
    assert all(f"| {name} |" in text for name in rows)
    assert (out / "films.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("  - {task: films, method: revmux, depth: 3}", "depth"), ("  - {task: books, method: plain}", "books")],
)
def test_a_wrong_experiment_says_what_is_wrong(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("name: x\ntitle: x\nmodel: x\ntasks: {films: {train: f.tsv}}\nruns:\n" + line)
    with pytest.raises(ExperimentError, match=complaint):
        read_experiment(path)
