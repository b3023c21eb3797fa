"""Reads labelled or unlabelled text: TSV, CSV, JSON lines, Parquet, or plain text with a line a sample."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from revmux_core.errors import RevmuxError
from revmux_core.plan import Tokens
from revmux_core.problems import LabelCell, LabelError, Problem

TEXT_COLUMNS = ("text", "sentence", "sentence1", "question", "tokens")
LABEL_COLUMNS = ("label", "category", "labels", "tags")


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
    text_column = _column(path, columns, text_column, TEXT_COLUMNS, "--text-column")
    if pair_column is not None:
        _column(path, columns, pair_column, (), "--pair-column")
    if label_column is not None:
        _column(path, columns, label_column, (), "--label-column")
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


def _rows(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _parquet(path)
        # newline="" leaves line ends inside quoted CSV cells to the reader.
        with path.open(encoding="utf-8-sig", newline="") as file:
            if suffix == ".tsv":
                return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
            if suffix == ".csv":
                return list(csv.DictReader(file))
            if suffix in (".jsonl", ".json"):
                return _json_lines(path, file)
            if suffix == ".txt":
                return [{"text": line.rstrip("\r\n")} for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    except csv.Error as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    raise DataError(f"{path}: unknown format {suffix!r}; use .tsv, .csv, .jsonl, .parquet or .txt")


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


def _json_lines(path: Path, lines: Iterable[str]) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is not a JSON object")
        rows.append(row)
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("reading Parquet needs pyarrow: pip install 'revmux-server[train]'") from error
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def _column(path: Path, columns: list[str], wanted: str | None, usual: tuple[str, ...], flag: str) -> str:
    if wanted is None:
        wanted = next((name for name in usual if name in columns), None)
    if wanted is None or wanted not in columns:
        raise DataError(f"{path} has the columns {', '.join(columns)}: name one with {flag}")
    return wanted


def _cell(path: Path, number: int, row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        raise DataError(f"{path}, sample {number} has no {column!r}")
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _label(path: Path, number: int, row: dict[str, Any], column: str) -> LabelCell:
    value = row.get(column)
    return tuple(map(str, value)) if isinstance(value, list) else _cell(path, number, row, column)
