import json
from typing import Any

import pytest

from loadtest.machine import Machine
from loadtest.report import Report, ServerFacts, to_json, to_markdown, write
from loadtest.scenarios import Comparison, Plan, Result


@pytest.fixture
def report(make_summary):
    plain, mux = (
        [make_summary(100)] * 3,
        [make_summary(130, agreement=0.97, points={"n1-l6": 1, "n2-l3": 3}, escalation_rate=0.1)] * 3,
    )
    busy = [make_summary(150, cpu_share=0.93, errors={"429": 2, "500": 1})] * 3
    return Report(
        bundle="sst2-minilm",
        data="dev.tsv",
        sentences=872,
        machine=Machine("Example CPU", 2, 24 * 2**30, "Linux 6", "3.11.7"),
        plain=ServerFacts("1", 4.2, 500 * 2**20, {"points": [{"name": "n1-l6"}]}, 0.08),
        fast=ServerFacts("auto", 4.4, None, {"points": [{"name": "n1-l6"}, {"name": "n2-l3"}]}, None),
        plan=Plan([8, 64], [0.8], 3, 10.0, 60_000),
        result=Result(
            once=Comparison("every sentence once", None, plain[:1], mux[:1]),
            closed=[Comparison("8 at once", None, plain, mux), Comparison("64 at once", None, plain, busy)],
            open=[Comparison("80% load", 80.0, plain, mux)],
            capacity=100.0,
        ),
    )


def test_markdown_has_every_figure(report):
    text = to_markdown(report)
    assert "Example CPU, 2 cores, 24,576 MiB" in text
    assert "| 8 at once | plain | 100.0 |  | 10.0 | 20.0 | 30.0 | 90.0% | 100.0% | 0.0% | `n1-l6` 100% | none |" in text
    assert (
        "|  | fast | 130.0 | 1.30x | 10.0 | 20.0 | 30.0 | 90.0% | 97.0% | 10.0% | `n1-l6` 25%, `n2-l3` 75% | none |"
        in text
    )
    assert "| 80% load | plain | 100.0 | 80.0/s |" in text
    assert "6 x 429, 3 x 500" in text
    assert "| fast | auto | `n1-l6`, `n2-l3` | - | 4.4 s | - |" in text


def test_a_struggling_generator_is_reported(report):
    assert report.warnings == ["64 at once, fast: it used 93% of a core"]
    assert "**Warning: the load generator was a bottleneck.**" in to_markdown(report)
    report.result.closed.pop()
    assert "kept up in every run" in to_markdown(report)


def test_json_keeps_every_round(report):
    document: dict[str, Any] = to_json(report)
    eight, many = document["closed_loop"]
    assert eight["speedup"] == 1.3
    assert len(eight["rounds"]["fast"]) == 3
    assert many["fast"]["errors"] == {"429": 6, "500": 3}
    assert document["unexpected_errors"] == 3
    assert document["servers"]["plain"]["peak_rss_bytes"] == 500 * 2**20


def test_a_report_is_three_files(report, tmp_path):
    write(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == to_json(report)
    assert (tmp_path / "report.md").read_text() == to_markdown(report)
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
