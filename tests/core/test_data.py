"""Data files are read as they are, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from revmux_core.data import DataError, Example, label_targets, read_examples
from revmux_core.plan import Tokens
from revmux_core.problems import SingleLabel

ROWS = [Example('an "odd film', None, "1"), Example("good", None, "0")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.tsv", 'sentence\tlabel\nan "odd film\t1\ngood\t0\n'),
        ("d.csv", 'text,category\n"an ""odd film",1\ngood,0\n'),
        ("d.jsonl", '{"text": "an \\"odd film", "label": 1}\n\n{"text": "good", "label": 0}\n'),
        ("bom.tsv", '\ufeffsentence\tlabel\nan "odd film\t1\ngood\t0\n'),
    ],
)
def test_formats_agree(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert read_examples(path) == ROWS


def test_parquet_pairs_and_plain_text(tmp_path: Path) -> None:
    table = pyarrow.table({"question": ["a"], "sentence": ["b"], "label": ["yes"]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    pairs = read_examples(tmp_path / "d.parquet", text_column="question", pair_column="sentence")
    assert pairs == [Example("a", "b", "yes")]
    (tmp_path / "d.txt").write_text("one\n\ntwo\n")
    assert read_examples(tmp_path / "d.txt") == [Example("one"), Example("two")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.xml", b"<a/>", "unknown format"),
        ("d.tsv", b"sentence\tlabel\n", "holds no samples"),
        ("d.tsv", b"a\tb\n1\t2\n", "has the columns a, b"),
        ("d.csv", b"text\n\xff\xfe\n", "not UTF-8"),
        ("d.jsonl", b'{"text": 1', "line 1 is not JSON"),
        ("d.csv", b"text,label\na\n", "sample 1 has no 'label'"),
        ("d.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_examples(path)


def test_labels_by_name_or_index() -> None:
    problem, samples = SingleLabel(("neg", "pos")), [Tokens([2, 3])] * 2
    targets = label_targets([Example("", label="pos"), Example("", label="0")], problem, samples)
    assert targets is not None
    assert targets.tolist() == [1, 0]
    assert label_targets([Example("")], problem, samples) is None
    with pytest.raises(DataError, match="sample 1 has label '2'"):
        label_targets([Example("", label="2")], problem, samples)


def test_a_part_of_a_json_object(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text('{"train": [["an odd film", "1"], ["good", "0"]], "notes": {"a": 1}}')
    assert read_examples(f"{path}#train") == [Example("an odd film", None, "1"), Example("good", None, "0")]
    with pytest.raises(DataError, match="no part test: its parts are train, notes"):
        read_examples(f"{path}#test")
    with pytest.raises(DataError, match="not a list of"):
        read_examples(f"{path}#notes")
