"""`python -m loadtest.scaling`: a real engine and real servers in small, and what it makes of their figures."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from loadtest.machine import describe_machine
from loadtest.measure import OK, Outcome, Run
from loadtest.scaling import report
from loadtest.scaling.engine import BenchError, Sizes, measure, read
from loadtest.scaling.part import Part
from loadtest.scaling.served import LimitError, allow_connections, lists_of, measure_start, rate
from tests.loadtest.test_servers import SERVER

SERVED = {
    "x": 8,
    "series": "plain",
    "texts_per_second": 90.0,
    "rounds": [90.0],
    "p50_seconds": 0.08,
    "p99_seconds": 0.2,
    "peak_rss_bytes": None,
    "requests": 300,
    "errors": {"429": 3, "timeout": 2},
    "generator_limits": ["it used 95% of a core"],
}


def part(rows: list[dict]) -> Part:
    return Part("python -m loadtest.scaling", asdict(describe_machine()), rows)


def test_two_runs_make_one_page(tiny_bundle_path: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "texts.txt", tmp_path / "out"
    data.write_text("a good film\nword1 word2\nnot very bad . word3\n")

    def run(*options: str) -> None:
        command = [sys.executable, "-m", "loadtest.scaling", "--bundle", str(tiny_bundle_path), "--data", str(data)]
        done = subprocess.run([*command, "--out", str(out), "--rounds", "1", *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("--only", "batch", "--rows", "1", "--rows", "3")
    run("--only", "inputs", "--inputs", "5", "--inputs", "1", "--seconds", "0.3")
    document = json.loads((out / "scaling.json").read_text())
    batch, inputs = document["batch"]["rows"], document["inputs"]["rows"]
    assert [(row["x"], row["series"]) for row in batch] == [
        (rows, series) for rows in (1, 3) for series in ("plain", "width 2", "width 4")
    ]
    assert [(row["x"], row["series"]) for row in inputs] == [(n, s) for s in ("plain", "fast") for n in (1, 5)]
    for row in inputs:
        assert row["errors"] == {}
        assert row["texts_per_second"] > 0
        assert 0 < row["p50_seconds"] <= row["p99_seconds"] < 5
    page = (out / "scaling.md").read_text()
    assert str(tmp_path) not in page
    assert "--only batch" in page
    for picture in ("engine.png", "served.png"):
        assert f"({picture})" in page
        assert (out / picture).read_bytes().startswith(b"\x89PNG")


def test_start_and_idleness_of_servers_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.scaling.served.SETTLE_SECONDS", 0.1)
    said: list[str] = []
    command = [sys.executable, "-c", SERVER]
    rows = measure_start({"one": command, "other": command}, 2, 0.2, tmp_path, said.append)
    assert [row["series"] for row in rows] == ["one", "other"]
    assert [line.split(":")[0].split(", ")[-1] for line in said] == ["one", "other", "one", "other"]
    for row in rows:
        assert 0 < row["start_seconds"] < 60
        if Path("/proc/self/schedstat").is_file():
            assert 0 <= row["idle_cores"] < 0.5


def test_what_the_engine_is_asked_and_how_its_answer_is_read() -> None:
    sizes = Sizes("bert-base", [8, 16], [1, 4], [2, 30])
    widths = "--width 2 --width 4"
    assert " ".join(sizes.options("length")) == f"--shape bert-base {widths} --length 8 --length 16"
    batch = f"--shape bert-base --length 32 {widths} --batch-tokens 32 --batch-tokens 128"
    assert " ".join(sizes.options("batch")) == batch
    row = {"point": "n2-l3-u3", "width": 2, "mean_tokens": 32.0, "batch_tokens": 128, "classes": 30}
    row |= {"sequences_per_second": 10.0, "working_bytes": 5}
    answer = {"widths": [row], "early_exits": [row | {"point": "n1-l3", "width": 1}]}
    assert [read(name, answer)[0]["x"] for name in ("length", "batch", "classes", "width")] == [32, 4, 30, "n2-l3-u3"]
    assert [(r["series"], r["tokens_per_second"]) for r in read("width", answer)] == [
        ("width 2", 320),
        ("early exit", 320),
    ]


def test_a_failing_engine_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"ended with 2:\n.*there is no shape bert-huge"):
        measure("length", Sizes("bert-huge", [8], [1], [2]).options("length"), 1, tmp_path / "log")


def test_a_rate_counts_to_the_last_answer() -> None:
    outcomes = [Outcome(0, 0.0, 0.0, done, status) for done, status in ((1.0, OK), (4.0, OK), (9.0, "timeout"))]
    assert rate(Run(outcomes, 2.0, [], 0.1), size=10) == 5
    assert rate(Run(outcomes[2:], 2.0, [], 0.1), size=10) == 0


def test_lists_hold_texts_in_turn() -> None:
    assert lists_of(["a", "b", "c"], 1) == ["a", "b", "c"]
    assert len(lists_of(["a"] * 91, 10)) == 10
    lists = lists_of(["a", "b", "c"], 4)
    assert lists[:2] == [["a", "b", "c", "a"], ["b", "c", "a", "b"]]


def test_more_connections_than_files_is_an_error() -> None:
    resource = pytest.importorskip("resource")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("this system has no limit")
    with pytest.raises(LimitError, match=f"the system allows {hard}: ask for fewer with --connections"):
        allow_connections(hard)


def test_a_page_keeps_other_parts_and_their_order(tmp_path: Path) -> None:
    start = {"series": "--width 1", "start_seconds": 6.26, "idle_cores": 0.0003, "peak_rss_bytes": 2**29, "rounds": [6]}
    report.write({"start": part([start])}, tmp_path)
    assert not list(tmp_path.glob("*.png"))
    report.write(report.read(tmp_path) | {"connections": part([SERVED])}, tmp_path)
    assert list(report.read(tmp_path)) == ["connections", "start"]
    page = (tmp_path / "scaling.md").read_text()
    assert "| 8 | plain | 90.0 | 80.0 | 200.0 | - | 300 | 3 x 429, 2 x timeout |" in page
    assert "**The load generator was a bottleneck** at 8, plain: it used 95% of a core." in page
    assert "| `--width 1` | 6.3 | 0.03% | 512 MiB |" in page
    assert report.unexpected_errors(part([SERVED])) == 2
