"""Whole files: every row is answered once, in its place, in every format, and a kill in between changes nothing."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revmux_core.bundle import load_bundle
from revmux_core.data import DIALECTS, DataError
from revmux_core.errors import RevmuxError
from revmux_core.jobs.job import Answering, Job, JobError, begin, make_job, make_parts
from revmux_core.jobs.source import TextSource
from revmux_core.problems import ProblemType
from tests.tiny import PROBLEMS

ROOT = Path(__file__).parents[2]
ROWS = [
    {"id": str(nth), "text": text}
    for nth, text in enumerate(
        ["a good film", 'is "not" very, good', "", "bad\nfilm\r", "the film is bad .", "word7 word8"]
    )
]


def job_of(source: Path, out: Path, bundle: Path, point: int | str | None = 2, **columns: Any) -> Job:
    answering = Answering(str(bundle), None, point, None, "torch", "cpu", torch.float32)
    return make_job(source, out, answering, **columns)


def run(job: Job, chunk_rows: int = 4) -> int:
    """Runs `job` and returns the rows that were answered now."""
    with begin(job, chunk_rows) as begun:
        return sum(make_parts(begun))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".tsv":
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [rows[0], *map(dict.values, rows)]))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """Rows as they were written; a table's cells that are JSON are read as such, empty ones are None."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return [
            {name: _parsed(cell) for name, cell in row.items()} for row in csv.DictReader(file, **DIALECTS[path.suffix])
        ]


def _parsed(cell: str) -> Any:
    try:
        return json.loads(cell) if cell else None
    except ValueError:
        return cell


@pytest.mark.parametrize("out", [".parquet", ".jsonl", ".csv", ".tsv"])
@pytest.mark.parametrize("source", [".parquet", ".jsonl", ".csv", ".tsv"])
def test_formats_hold_the_same_rows_and_answers(tmp_path: Path, tiny_bundle_path: Path, source: str, out: str) -> None:
    rows = [row for row in ROWS if ".tsv" not in (source, out) or "\n" not in row["text"]]
    path, done = write(tmp_path / f"in{source}", rows), tmp_path / f"out{out}"
    assert run(job_of(path, done, tiny_bundle_path)) == len(rows)
    bundle, expected = load_bundle(tiny_bundle_path), []
    for first in range(0, len(rows), 4):
        texts = [row["text"] for row in rows[first : first + 4] if row["text"]]
        expected += bundle.classify(texts, 2)
    found = read(done)
    assert [(str(row["id"]), row["text"] or "") for row in found] == [(row["id"], row["text"]) for row in rows]
    assert list(found[0]) == ["id", "text", "label", "probs", "mux_width", "escalated"]
    answers = [row for row in found if row["text"]]
    assert len(answers) == len(rows) - 1
    for row, answer in zip(answers, expected, strict=True):
        assert (row["label"], row["mux_width"], row["escalated"]) == (answer.label, answer.mux_width, answer.escalated)
        assert row["probs"] == pytest.approx(answer.probs, rel=1e-6)
    (empty,) = (row for row in found if not row["text"])
    assert [empty[name] for name in ("label", "probs", "mux_width", "escalated")] == [None] * 4
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_every_task_type_has_its_own_columns(
    tmp_path: Path,
    tiny_bundle_path: Path,
    task_bundle_paths: dict[ProblemType, Path],
    kind: ProblemType,
    suffix: str,
) -> None:
    path = {"single_label_classification": tiny_bundle_path, **task_bundle_paths}[kind]
    source = write(tmp_path / "in.jsonl", [{"tokens": row["text"].split()} for row in ROWS])
    run(job_of(source, tmp_path / f"out{suffix}", path, point=1), chunk_rows=100)
    texts = [" ".join(row["text"].split()) for row in ROWS if row["text"]]
    fields = PROBLEMS[kind].fields
    found = [row for row in read(tmp_path / f"out{suffix}") if row["tokens"]]
    assert list(found[0]) == ["tokens", *fields, "mux_width", "escalated"]
    for row, answer in zip(found, load_bundle(path).classify(texts, 1), strict=True):
        for field in fields:
            assert _rounded(row[field]) == _rounded(asdict(answer)[field])


def _rounded(value: Any) -> Any:
    """Without the digits that float32 does not have."""
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)


@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1), size=st.integers(1, 5), bom=st.booleans(), data=st.data())
@settings(max_examples=60)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_chunks_are_the_rows_whatever_their_order(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    size: int,
    bom: bool,
    data: st.DataObject,
    suffix: str,
) -> None:
    dicts = [{"text": text, "other": other} for text, other in rows]
    path = write(tmp_path_factory.getbasetemp() / f"cut{suffix}", dicts)
    if bom:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    source = TextSource(path)
    chunks = source.cut(size)
    assert [chunk.rows for chunk in chunks] == [min(size, len(rows) - first) for first in range(0, len(rows), size)]
    read = {chunk: source.read(chunk) for chunk in data.draw(st.permutations(chunks))}
    assert [row for chunk in chunks for row in read[chunk]] == dicts


def test_a_killed_run_goes_on_and_loses_and_doubles_nothing(tmp_path: Path, tiny_bundle_path: Path) -> None:
    count = 8000
    rows = [{"text": f"word{nth % 180} film word{nth * 7 % 180}", "id": nth} for nth in range(count)]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "server.cli", "classify", source, out]
    command += ["--bundle", tiny_bundle_path, "--width", "2", "--chunk-rows", "20", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT)
    parts = tmp_path / "out.jsonl.parts"
    while len(list(parts.glob("*.jsonl"))) < 5:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(list(parts.glob("*.jsonl")))
    assert 5 <= done < count / 20
    assert not out.exists()

    job = job_of(source, out, tiny_bundle_path)
    assert run(job, chunk_rows=20) == count - 20 * done
    assert [row["id"] for row in read(out)] == list(range(count))
    assert not parts.exists()
    whole = job_of(source, tmp_path / "whole.jsonl", tiny_bundle_path)
    run(whole, chunk_rows=20)
    assert out.read_bytes() == whole.sink.out.read_bytes()


@pytest.mark.parametrize("left", ["all parts", "some parts", "the plan"])
def test_a_run_that_was_killed_at_its_end_is_ended_well(tmp_path: Path, tiny_bundle_path: Path, left: str) -> None:
    job = job_of(write(tmp_path / "in.csv", ROWS), tmp_path / "out.csv", tiny_bundle_path)
    with begin(job, 2) as begun:
        list(make_parts(begun))
        kept = {file: file.read_bytes() for file in job.folder.iterdir()}
    finished = job.sink.out.read_bytes()
    job.folder.mkdir()
    for file, content in sorted(kept.items()):
        if left == "all parts" or file.name == "job.json" or (left == "some parts" and file.name > "00000001"):
            file.write_bytes(content)
    other = replace(job, sink=replace(job.sink, prefix="my_"))
    with pytest.raises(JobError, match="a run that had another prefix"), begin(other, 2):
        pass
    assert run(job, 2) == 0
    assert job.sink.out.read_bytes() == finished
    assert not job.folder.exists()


def test_what_would_mix_two_runs_is_refused(tmp_path: Path, tiny_bundle_path: Path) -> None:
    source, out = write(tmp_path / "in.csv", ROWS), tmp_path / "out.csv"
    job = job_of(source, out, tiny_bundle_path)
    with suppress(KeyboardInterrupt), begin(job, 2) as begun:
        next(make_parts(begun))
        with pytest.raises(JobError, match="another run writes"):
            run(job, 2)
        raise KeyboardInterrupt
    with pytest.raises(JobError, match="had another point: go on as that began, or remove it"):
        run(job_of(source, out, tiny_bundle_path, point=4), 2)
    os.utime(source, ns=(0, 0))
    with pytest.raises(JobError, match="is not the file that this run began with"):
        run(job, 2)
    with pytest.raises(JobError, match="had another modified"):
        run(job_of(source, out, tiny_bundle_path), 2)
    out.write_text("mine")
    (job.folder / "job.json").unlink()
    with pytest.raises(JobError, match="is there already"):
        run(job_of(source, out, tiny_bundle_path), 2)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "out", "columns", "message"),
    [
        ("missing.csv", None, "out.csv", {}, "there is no file"),
        ("in.xml", b"<a/>", "out.csv", {}, "unknown format '.xml'"),
        ("in.csv", b"", "out.csv", {}, "holds no samples"),
        ("in.csv", b"text\n", "out.csv", {}, "holds no samples"),
        ("in.csv", b"a,b\n1,2\n", "out.csv", {}, "has the columns a, b: name one with --text-column"),
        ("in.csv", b"text\na\n", "out.csv", {"pair_column": "b"}, "name one with --pair-column"),
        ("in.csv", b"text\na\n", "out.csv", {"id_column": "b"}, "name one with --id-column"),
        ("in.csv", b"text,text\na,b\n", "out.csv", {}, "has two columns text"),
        ("in.csv", b"text,label\na,b\n", "out.csv", {}, "has a column label, as the answers have: name a --prefix"),
        ("in.csv", b"text\na\n\nb,c\n", "out.csv", {}, "line 4, has more cells than the header"),
        ("in.csv", b"text\na\n\xff\n", "out.csv", {}, "not UTF-8"),
        ("in.jsonl", b'{"text": "a"}\n{"text": \n', "out.csv", {}, "line 2 is not JSON"),
        ("in.jsonl", b'{"text": "a"}\n{"text": "b", "x": 1}\n', "out.csv", {}, "x is in no column of the first row"),
        ("in.jsonl", b'{"text": "a", "x": 1}\n{"text": "b", "x": "c"}\n', "out.parquet", {}, "x has values of unlike"),
        ("in.jsonl", b'{"text": "a\\tb"}\n', "out.tsv", {}, "a tab or a line end"),
        ("in.parquet", b"PAR1", "out.csv", {}, "cannot be read as Parquet"),
        ("in.csv", b"text\na\n", "out.xlsx", {}, "has no format that can be written: name it .parquet"),
        ("in.csv", b"text\na\n", "no/out.csv", {}, "there is no folder"),
    ],
)
def test_bad_input_says_what_is_wrong(
    tmp_path: Path,
    tiny_bundle_path: Path,
    name: str,
    content: bytes | None,
    out: str,
    columns: dict[str, str],
    message: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((DataError, JobError), match=message):
        run(job_of(tmp_path / name, tmp_path / out, tiny_bundle_path, **columns))
    assert not (tmp_path / out).exists()


def test_columns_can_be_chosen_and_renamed(tmp_path: Path, tiny_bundle_path: Path) -> None:
    rows = [{"id": nth, "text": "a good film", "second": "bad", "label": "x"} for nth in range(3)]
    source = write(tmp_path / "in.csv", rows)
    job = job_of(source, tmp_path / "out.csv", tiny_bundle_path, id_column="id", pair_column="second", prefix="my_")
    run(job)
    found = read(job.sink.out)
    assert list(found[0]) == ["id", "my_label", "my_probs", "my_mux_width", "my_escalated"]
    (expected, *_) = load_bundle(tiny_bundle_path).classify([("a good film", "bad")] * 3, 2)
    assert found[0]["my_probs"] == pytest.approx(expected.probs, rel=1e-6)


def test_a_bundle_or_point_that_is_not_there_is_named(tmp_path: Path, tiny_bundle_path: Path) -> None:
    source = write(tmp_path / "in.csv", ROWS)
    with pytest.raises(RevmuxError, match="there is no bundle"):
        job_of(source, tmp_path / "out.csv", tmp_path / "nothing")
    with pytest.raises(RevmuxError, match="not 3"):
        run(job_of(source, tmp_path / "out.csv", tiny_bundle_path, point=3))
