"""What is sent and when: real sentences in a seeded order, and seeded Poisson arrivals."""

from __future__ import annotations

import csv
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TEXT_COLUMNS = ("text", "sentence")
LABEL_COLUMNS = ("label", "category")

# Enough to vary lengths and partners; bounds the pass that every sentence takes through both servers.
MAX_SAMPLES = 4096


class DataError(ValueError):
    """A data file that cannot be used as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sentence, with its label where the file has one."""

    text: str
    label: str | None = None


def read_samples(path: Path, text_column: str | None = None, label_column: str | None = None) -> list[Sample]:
    """Reads .tsv (raw: a quotation mark is a character like any other), .csv, or .txt (a sentence a line).

    Without the column names, the well-known ones are looked for. Files beyond `MAX_SAMPLES` are sampled, always alike.
    Raises `DataError` for a missing or empty file, an unknown suffix, or a column that is not there.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        # newline="" leaves line ends inside quoted CSV cells to the reader.
        with path.open(encoding="utf-8-sig", newline="") as file:
            suffix = path.suffix.lower()
            if suffix == ".txt":
                samples = [Sample(line.strip()) for line in file if line.strip()]
            elif suffix == ".tsv":
                rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
                samples = _from_rows(path, rows, text_column, label_column)
            elif suffix == ".csv":
                samples = _from_rows(path, csv.DictReader(file), text_column, label_column)
            else:
                raise DataError(f"{path}: unknown format {suffix!r}; use .tsv, .csv or .txt")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not samples:
        raise DataError(f"{path} holds no sentences")
    return samples if len(samples) <= MAX_SAMPLES else random.Random(0).sample(samples, MAX_SAMPLES)


def joined(samples: Sequence[Sample], words: int, seed: int = 0) -> list[Sample]:
    """As many texts, of some 8 to `words` words, joined from random ones of `samples`; they have no labels.

    Lengths are spread evenly over their logarithm: most texts are short and most words are in long ones, as in mail
    and comments.
    """
    draw = random.Random(seed)
    texts = []
    for _ in samples:
        target = math.exp(draw.uniform(math.log(8), math.log(max(words, 8))))
        parts: list[str] = []
        while len(parts) < target:
            parts += draw.choice(samples).text.split()
        texts.append(Sample(" ".join(parts[: round(target)])))
    return texts


def name_labels(samples: Sequence[Sample], labels: Sequence[str]) -> list[str | None]:
    """Each sample's label as the server spells it: files may hold names or indices into `labels`.

    Raises `DataError` for a label that is neither.
    """
    names = {str(index): name for index, name in enumerate(labels)} | {name: name for name in labels}
    for sample in samples:
        if sample.label is not None and sample.label not in names:
            raise DataError(f"label {sample.label!r} is none of the model's: {', '.join(labels)}")
    return [None if sample.label is None else names[sample.label] for sample in samples]


def shuffled(count: int, seed: int) -> Iterator[int]:
    """Endlessly yields the indices below `count` in one seeded order."""
    return itertools.cycle(random.Random(seed).sample(range(count), count))


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Send times in seconds, ascending from 0 to below `seconds`: a Poisson process of `rate` arrivals a second."""
    draw = random.Random(seed)
    gaps = iter(lambda: draw.expovariate(rate), None)
    return list(itertools.takewhile(lambda moment: moment < seconds, itertools.accumulate(gaps)))


def _from_rows(
    path: Path, rows: csv.DictReader[str], text_column: str | None, label_column: str | None
) -> list[Sample]:
    columns = rows.fieldnames or []
    text = _column(path, columns, text_column, TEXT_COLUMNS, "--text-column")
    if text is None:
        raise DataError(f"{path} has the columns {', '.join(columns)}: name one with --text-column")
    label = _column(path, columns, label_column, LABEL_COLUMNS, "--label-column")
    return [Sample(row[text], row[label] if label else None) for row in rows if row[text]]


def _column(path: Path, columns: Sequence[str], wanted: str | None, usual: Sequence[str], flag: str) -> str | None:
    if wanted is not None and wanted not in columns:
        raise DataError(f"{path} has no column {wanted!r} ({flag}), only {', '.join(columns)}")
    return wanted or next((name for name in usual if name in columns), None)
