"""An output file: parts that are written whole or not at all, and put together in the end."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revmux_core.data import DataError
from revmux_core.jobs.source import arrow
from revmux_core.offline import Prediction

FORMATS = (".parquet", ".jsonl", ".csv", ".tsv")

PROVENANCE = ("mux_width", "escalated")
"""What is known of every answer beside the fields that its problem gives it."""

GROUP_ROWS = 131_072
"""Rows of a row group of a finished Parquet file, at least: Parquet's readers are slow on many small groups."""

_COPY_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Sink:
    """Writes rows and their answers in the format that `out` is named for.

    `columns` are the rows' own, as a table's header names them; with `strict` a row's other cells are left out.
    Those of `fields`, a `Prediction`'s, follow, with `prefix` before their names; tables hold lists as JSON.
    """

    out: Path
    columns: tuple[str, ...]
    strict: bool
    fields: tuple[str, ...]
    prefix: str

    @property
    def answers(self) -> list[str]:
        """The columns of the answers."""
        return [f"{self.prefix}{field}" for field in self.fields]

    def write_part(self, path: Path, rows: Any, predictions: Sequence[Prediction | None]) -> None:
        """Writes `rows`, as a source read them, to `path`; whoever reads that sees all of it or none. A row without a
        prediction gets no cells for it.

        Raises `DataError` for cells that the format cannot hold.
        """
        # A prediction has all of its fields, None has none.
        cells = [[getattr(prediction, field, None) for field in self.fields] for prediction in predictions]
        if self.out.suffix == ".parquet":
            table = self._table(rows)
            for field, name, column in zip(self.fields, self.answers, zip(*cells, strict=True), strict=True):
                table = table.append_column(name, arrow().array(column, _arrow_type(field)))
            with replacing(path, path.parent) as partial:
                arrow().parquet.write_table(table, partial)
            return
        dicts = rows if isinstance(rows, list) else rows.to_pylist()
        if self.strict:
            dicts = [{name: row.get(name) for name in self.columns} for row in dicts]
        answered = [row | dict(zip(self.answers, own, strict=True)) for row, own in zip(dicts, cells, strict=True)]
        with replacing(path, path.parent) as partial:
            partial.write_text("".join(self._encode(answered)), encoding="utf-8", newline="")

    def assemble(self, parts: Sequence[Path]) -> None:
        """Makes `out` of all parts, in their order. Raises `DataError` where Parquet parts have unlike columns."""
        # What a kill leaves of it goes with the parts.
        with replacing(self.out, parts[0].parent) as partial:
            if self.out.suffix == ".parquet":
                self._join_tables(parts, partial)
                return
            with partial.open("wb") as file:
                if self.out.suffix in (".csv", ".tsv"):
                    names = [*self.columns, *self.answers]
                    file.write("".join(self._encode([dict(zip(names, names, strict=True))])).encode())
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, file, _COPY_BYTES)

    def _table(self, rows: Any) -> Any:
        if not isinstance(rows, list):
            return rows.select(list(self.columns)) if self.strict else rows
        # By hand, as Arrow itself takes the first row's columns for all there are.
        names = self.columns if self.strict else dict.fromkeys([*self.columns, *(name for row in rows for name in row)])
        columns = {}
        for name in names:
            try:
                columns[name] = arrow().array([row.get(name) for row in rows])
            except arrow().ArrowException as error:
                raise DataError(f"the column {name} has values of unlike types: write JSON lines ({error})") from error
        return arrow().table(columns)

    def _join_tables(self, parts: Sequence[Path], out: Path) -> None:
        pyarrow = arrow()
        try:
            # What JSON lines' first rows lack, or have as whole numbers, later ones may have as others do.
            schema = pyarrow.unify_schemas(
                (pyarrow.parquet.read_schema(part) for part in parts), promote_options="permissive"
            )
        except pyarrow.ArrowException as error:
            raise DataError(f"a column has values of unlike types: write JSON lines ({error})") from error
        with pyarrow.parquet.ParquetWriter(out, schema) as writer:
            for group in _groups(pyarrow.parquet.ParquetFile(part).read() for part in parts):
                joined = pyarrow.concat_tables([schema.empty_table(), *group], promote_options="permissive")
                writer.write_table(joined, row_group_size=len(joined))

    def _encode(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        """Rows as text. Raises `DataError` for what the format cannot hold."""
        names = [*self.columns, *self.answers]
        if self.out.suffix == ".jsonl":
            # What JSON has no form for, as a date from Parquet, is written as text.
            yield from (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            return
        for row in rows:
            if more := row.keys() - set(names):
                raise DataError(f"{', '.join(sorted(more))} is in no column of the first row: write JSON lines")
            cells = [_cell(row.get(name)) for name in names]
            if self.out.suffix == ".tsv":
                if any(character in cell for cell in cells for character in "\t\r\n"):
                    raise DataError("a cell holds a tab or a line end, which TSV cannot have: write .csv or another")
                yield "\t".join(cells) + "\n"
            else:
                line = io.StringIO()
                # With "\n" for its line end the writer would leave a cell's "\r" unquoted, which readers take for one.
                csv.writer(line, lineterminator="\r\n").writerow(cells)
                yield line.getvalue().removesuffix("\r\n") + "\n"


def _arrow_type(field: str) -> Any:
    """What Arrow holds a `Prediction`'s field as."""
    pyarrow = arrow()
    entity = {"entity": pyarrow.string(), "score": pyarrow.float32(), "index": pyarrow.int32()}
    entity |= {"word": pyarrow.string(), "start": pyarrow.int32(), "end": pyarrow.int32()}
    return {
        "label": pyarrow.string(),
        "labels": pyarrow.list_(pyarrow.string()),
        "score": pyarrow.float32(),
        "probs": pyarrow.list_(pyarrow.float32()),
        "entities": pyarrow.list_(pyarrow.struct(list(entity.items()))),
        "mux_width": pyarrow.int32(),
        "escalated": pyarrow.bool_(),
    }[field]


@contextmanager
def replacing(path: Path, folder: Path) -> Iterator[Path]:
    """A file to write in `folder`, which takes the place of `path` in one step; where writing fails it is removed."""
    partial = folder / f".{path.name}.{uuid.uuid4().hex}"
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _groups(tables: Iterable[Any]) -> Iterator[list[Any]]:
    """Tables by as many as have `GROUP_ROWS` rows together."""
    group: list[Any] = []
    for table in tables:
        group.append(table)
        if sum(map(len, group)) >= GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group
