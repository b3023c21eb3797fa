"""An input file, cut into chunks of rows that can be read one by one, in any order and by any process."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

from revmux_core.data import DIALECTS, DataError, parse_rows, readable

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Chunk:
    """`rows` rows, and where they begin: at the byte `start` of a text file, which is in line `line`, or at the row
    `start` of a Parquet file."""

    number: int
    start: int
    line: int
    rows: int


class Source(ABC):
    """A file and its `columns`."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        """Raises `DataError` for columns of one name."""
        if twice := [name for nth, name in enumerate(columns) if name in columns[:nth]]:
            raise DataError(f"{path} has two columns {twice[0]}: give one another name")
        self.path = path
        self.columns = columns

    @abstractmethod
    def cut(self, rows: int) -> list[Chunk]:
        """All of the file, in its order, `rows` rows a chunk; the last one may have fewer.

        Raises `DataError` for what is not in the file's format.
        """

    @abstractmethod
    def read(self, chunk: Chunk) -> Any:
        """The chunk's rows: a list of them as dictionaries, or from Parquet an Arrow table, which keeps their types.

        Raises `DataError` for what is not in the file's format.
        """


def open_source(path: Path) -> Source:
    """The file's source, by its suffix. Raises `DataError` where there is no such file, or it is empty."""
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    return ParquetSource(path) if path.suffix.lower() == ".parquet" else TextSource(path)


def arrow() -> Any:
    """PyArrow with its Parquet part. Raises `DataError` where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Parquet needs pyarrow: pip install 'revmux-server[train]'") from error
    return pyarrow


class _Lines:
    """The lines of a UTF-8 file from the byte `offset` on; `offset` and `line` are those of the line to come."""

    def __init__(self, file: io.BufferedReader, offset: int, line: int) -> None:
        file.seek(offset)
        self.offset = offset
        self.line = line
        # newline="" leaves line ends inside quoted CSV cells to the reader, and so all bytes as they are.
        self._lines = io.TextIOWrapper(file, encoding="utf-8", newline="")

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.offset += len(line.encode())
        self.line += 1
        return line


class TextSource(Source):
    """CSV, TSV, JSON lines, or plain text with a line a row; blank lines are no rows."""

    def __init__(self, path: Path) -> None:
        self._dialect = DIALECTS.get(path.suffix.lower())
        with path.open("rb") as file:
            begin = len(BOM) if file.read(len(BOM)) == BOM else 0
            lines = _Lines(file, begin, 1)
            with readable(path):
                header = None if self._dialect is None else next(filter(None, csv.reader(lines, **self._dialect)), None)
            # Where the rows begin, and in which line.
            self._begin = lines.offset, lines.line
            first = next(parse_rows(path, lines, header, lines.line), None)
        if first is None:
            raise DataError(f"{path} holds no samples")
        super().__init__(path, list(first) if header is None else header)

    def cut(self, rows: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        with self.path.open("rb") as file:
            lines = _Lines(file, *self._begin)
            # All of it is parsed, so that a file is refused before hours of work and not after.
            parsed = self._rows(lines)
            while True:
                start, line = lines.offset, lines.line
                count = sum(1 for _ in islice(parsed, rows))
                if not count:
                    return chunks
                chunks.append(Chunk(len(chunks), start, line, count))

    def read(self, chunk: Chunk) -> list[dict[str, Any]]:
        with self.path.open("rb") as file:
            return list(islice(self._rows(_Lines(file, chunk.start, chunk.line)), chunk.rows))

    def _rows(self, lines: _Lines) -> Iterator[dict[str, Any]]:
        """The rows to come; none of them takes lines of the next."""
        columns = None if self._dialect is None else self.columns
        for row in parse_rows(self.path, lines, columns, lines.line):
            if None in row:
                raise DataError(f"{self.path}, line {lines.line - 1}, has more cells than the header has names")
            yield row


class ParquetSource(Source):
    """A Parquet file, of which one row group at a time is in memory."""

    def __init__(self, path: Path) -> None:
        pyarrow = arrow()
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as Parquet: {error}") from error
        metadata = self._file.metadata
        if not metadata.num_rows:
            raise DataError(f"{path} holds no samples")
        super().__init__(path, self._file.schema_arrow.names)
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._edges = list(accumulate(sizes, initial=0))
        self._group: tuple[int, Any] = (-1, None)

    def cut(self, rows: int) -> list[Chunk]:
        total = self._edges[-1]
        return [Chunk(n, start, 0, min(rows, total - start)) for n, start in enumerate(range(0, total, rows))]

    def read(self, chunk: Chunk) -> Any:
        pyarrow = arrow()
        end = chunk.start + chunk.rows
        parts = []
        try:
            for group, (first, last) in enumerate(pairwise(self._edges)):
                if first < end and chunk.start < last:
                    begin = max(chunk.start - first, 0)
                    parts.append(self._read_group(group).slice(begin, min(end, last) - first - begin))
        except pyarrow.ArrowException as error:
            raise DataError(f"{self.path} cannot be read as Parquet: {error}") from error
        return pyarrow.concat_tables(parts)

    def _read_group(self, group: int) -> Any:
        # Kept, as the next chunk most often is of the same.
        if self._group[0] != group:
            self._group = group, self._file.read_row_group(group)
        return self._group[1]
