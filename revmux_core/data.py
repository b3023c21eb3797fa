"""Reads labelled or unlabelled text: TSV, CSV, JSON lines, Parquet, or plain text with a line a sample."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from revmux_core.errors import RevmuxError
from revmux_core.plan import Tokens
from revmux_core.problems import LabelCell, LabelError, Problem

TEXT_COLUMNS = ("text", "sentence", "sentence1", "question", "tokens")
LABEL_COLUMNS = ("label", "category", "labels", "tags")

DIALECTS: dict[str, dict[str, Any]] = {".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}, ".csv": {}}
"""How the `csv` module reads the formats that are tables; in TSV a quotation mark is a character like any other."""


class DataError(RevmuxError):
    """A data file that cannot be read as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text, or a pair of them, with its label as the file spells it (None where the file has no labels)."""

    text: str
    pair: str | None = None
    label: LabelCell | None = None


def read_examples(
    path: str | Path,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> list[Example]:
    """Reads a file by its suffix: .tsv, .csv, .jsonl/.json (one object a line), .parquet, .txt.

    `FILE.json#KEY` reads one part of a JSON object whose values are lists of `[text, label]`, as CLINC150 comes.

    TSV is raw tab-separated text: a quotation mark is a character like any other. A list of words, in JSON lines or
    Parquet, is the text that has them with spaces between; a list of labels stays one. Without `text_column` and
    `label_column` the well-known names are looked for (`TEXT_COLUMNS`, `LABEL_COLUMNS`); a pair is read only when
    `pair_column` names it.

    Raises `DataError` for a missing or empty file, an unknown suffix, a malformed row, or a column that is not there.
    """
    name, _, part = str(path).partition(".json#")
    path = Path(f"{name}.json") if part else Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    rows = _part(path, part) if part else _rows(path)
    if not rows:
        raise DataError(f"{path} holds no samples")
    columns = list(rows[0])
    text_column = find_column(path, columns, text_column, TEXT_COLUMNS, "--text-column")
    if pair_column is not None:
        find_column(path, columns, pair_column, (), "--pair-column")
    if label_column is not None:
        find_column(path, columns, label_column, (), "--label-column")
    else:
        label_column = next((name for name in LABEL_COLUMNS if name in columns), None)
    return [
        Example(
            text=_cell(path, number, row, text_column),
            pair=None if pair_column is None else _cell(path, number, row, pair_column),
            label=None if label_column is None else _label(path, number, row, label_column),
        )
        for number, row in enumerate(rows, start=1)
    ]


def label_targets(examples: Sequence[Example], problem: Problem, samples: Sequence[Tokens]) -> np.ndarray | None:
    """What the labels of examples say (`Problem.targets`), or None where none has a label.

    `samples` are their tokens, and further ones that have no labels after those. Raises `DataError` for a label that
    the problem does not know, or one that is missing.
    """
    if all(example.label is None for example in examples):
        return None
    own: list[Any] = []
    for number, example in enumerate(examples, start=1):
        if example.label is None:
            raise DataError(f"sample {number} has no label")
        try:
            own.append(problem.target(example.label, example.text))
        except LabelError as error:
            raise DataError(f"sample {number} {error}") from None
    return problem.targets(own + [None] * (len(samples) - len(own)), samples)


def parse_rows(
    path: Path, lines: Iterable[str], columns: Sequence[str] | None = None, first_line: int = 1
) -> Iterator[dict[str, Any]]:
    """Rows of the text format that `path` is named for, from `lines`, the first of which is number `first_line`.

    `columns` are those of TSV and CSV; None takes them from the first line. Lines are taken as rows need them, so that
    a caller may count them. Raises `DataError` for an unknown suffix, and for what is not in that format.
    """
    suffix = path.suffix.lower()
    with readable(path):
        if suffix in DIALECTS:
            yield from csv.DictReader(lines, columns, **DIALECTS[suffix])
        elif suffix in (".jsonl", ".json"):
            yield from _json_lines(path, lines, first_line)
        elif suffix == ".txt":
            yield from ({"text": line.rstrip("\r\n")} for line in lines if line.strip())
        else:
            raise DataError(f"{path}: unknown format {suffix!r}; use .tsv, .csv, .jsonl, .parquet or .txt")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises `DataError` for what Python's readers of text and CSV raise."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    except csv.Error as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    # newline="" leaves line ends inside quoted CSV cells to the reader.
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(parse_rows(path, file))


def _part(path: Path, part: str) -> list[dict[str, Any]]:
    try:
        parts = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(parts, dict) or part not in parts:
        known = ", ".join(parts) if isinstance(parts, dict) else "none"
        raise DataError(f"{path} has no part {part}: its parts are {known}")
    rows = parts[part]
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 2 for row in rows):
        raise DataError(f"{path}, part {part} is not a list of [text, label]")
    return [{"text": text, "label": label} for text, label in rows]


def _json_lines(path: Path, lines: Iterable[str], first_line: int) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=first_line):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is not a JSON object")
        yield row


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("reading Parquet needs pyarrow: pip install 'revmux-server[train]'") from error
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def find_column(path: Path, columns: list[str], wanted: str | None, usual: tuple[str, ...], flag: str) -> str:
    """The column `wanted`, or the first of the `usual` names. Raises `DataError`, which names `flag`, without one."""
    if wanted is None:
        wanted = next((name for name in usual if name in columns), None)
    if wanted is None or wanted not in columns:
        raise DataError(f"{path} has the columns {', '.join(columns)}: name one with {flag}")
    return wanted


def _cell(path: Path, number: int, row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        raise DataError(f"{path}, sample {number} has no {column!r}")
    return cell_text(value)


def cell_text(value: Any) -> str:
    """A cell as text: a list of words, in JSON lines or Parquet, has them with spaces between."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _label(path: Path, number: int, row: dict[str, Any], column: str) -> LabelCell:
    value = row.get(column)
    return tuple(map(str, value)) if isinstance(value, list) else _cell(path, number, row, column)
