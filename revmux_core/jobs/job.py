"""A run over a file that can be killed at any moment: what is done is in parts, each there whole or not at all.

`OUT.parts/` holds the plan (`job.json`) and a part a chunk, in the order of the input. A chunk's answers depend on that
chunk alone, since only its texts share composites, so parts may be made in any order, by any process, and even twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from revmux_core.backends import BackendName
from revmux_core.base_model import sha256
from revmux_core.bundle import load_bundle
from revmux_core.cascade import Quality
from revmux_core.data import TEXT_COLUMNS, cell_text, find_column
from revmux_core.errors import RevmuxError
from revmux_core.jobs.sink import FORMATS, PROVENANCE, Sink, replacing
from revmux_core.jobs.source import Chunk, open_source
from revmux_core.manifest import MANIFEST, read_manifest, resolve_bundle
from revmux_core.offline import Prediction


class JobError(RevmuxError):
    """A run that cannot begin or go on; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Answering:
    """What answers: a bundle at `point`, a width or a name, and in a quality, as `Bundle.classify` takes them, on
    `device`, which every process has one of."""

    bundle: str
    base: Path | None
    point: int | str | None
    quality: Quality | None
    backend: BackendName
    device: str
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Job:
    """One run from `source` to `out`: all that a process anywhere needs to make a part of it.

    `size` and `modified` tell the input from a later one of the same name.
    """

    source: Path
    size: int
    modified: int
    text_column: str
    pair_column: str | None
    sink: Sink
    answering: Answering

    @property
    def folder(self) -> Path:
        """Where the parts are until all are there."""
        return self.sink.out.with_name(f"{self.sink.out.name}.parts")

    def part(self, chunk: Chunk) -> Path:
        return self.folder / f"{chunk.number:08d}{self.sink.out.suffix}"

    def check_input(self) -> None:
        """Raises `JobError` where the input, as this process sees it, is not the file that was cut into chunks."""
        try:
            seen = self.source.stat()
        except OSError as error:
            raise JobError(f"{self.source} cannot be read here: {error.strerror}") from error
        if (seen.st_size, seen.st_mtime_ns) != (self.size, self.modified):
            raise JobError(
                f"{self.source} is not the file that this run began with: it was changed meanwhile, or this machine "
                f"has another one; remove {self.folder} to begin anew"
            )

    def identity(self, chunk_rows: int) -> dict[str, Any]:
        """What must be the same for parts of an earlier run to be parts of this one, as JSON."""
        answering = asdict(self.answering) | {"dtype": str(self.answering.dtype)}
        del answering["base"], answering["device"]
        answering["bundle"] = sha256(resolve_bundle(self.answering.bundle) / MANIFEST)
        own = {"source": str(self.source), "size": self.size, "modified": self.modified, "chunk_rows": chunk_rows}
        columns = {"text_column": self.text_column, "pair_column": self.pair_column}
        sink = asdict(self.sink) | {"out": str(self.sink.out)}
        # As it reads from a file: lists in place of tuples.
        return json.loads(json.dumps(own | columns | answering | sink))


def make_job(
    source: Path,
    out: Path,
    answering: Answering,
    text_column: str | None = None,
    pair_column: str | None = None,
    id_column: str | None = None,
    prefix: str = "",
) -> Job:
    """The run from `source` to `out`, which gets the input's columns, or only `id_column`, and those of the answers.

    Raises `DataError` for an input that cannot be read or lacks a column, `BundleError` for a bundle that cannot, and
    `JobError` for an output that cannot be written or whose columns would have the same name.
    """
    source, out = source.resolve(), out.resolve()
    if out.suffix not in FORMATS:
        raise JobError(f"{out} has no format that can be written: name it .parquet, .jsonl, .csv or .tsv")
    if not out.parent.is_dir():
        raise JobError(f"there is no folder {out.parent} to write {out.name} to")
    columns, seen = open_source(source).columns, source.stat()
    text_column = find_column(source, columns, text_column, TEXT_COLUMNS, "--text-column")
    if pair_column is not None:
        find_column(source, columns, pair_column, (), "--pair-column")
    if id_column is not None:
        columns = [find_column(source, columns, id_column, (), "--id-column")]
    fields = (*read_manifest(resolve_bundle(answering.bundle)).problem.fields, *PROVENANCE)
    sink = Sink(out, tuple(columns), id_column is not None, fields, prefix)
    if twice := sorted(set(columns).intersection(sink.answers)):
        raise JobError(
            f"{source} has a column {twice[0]}, as the answers have: name a --prefix for theirs, or only an --id-column"
        )
    return Job(source, seen.st_size, seen.st_mtime_ns, text_column, pair_column, sink, answering)


class Worker:
    """Makes parts, one after the other."""

    def __init__(self, job: Job) -> None:
        """Loads the bundle. Raises `RevmuxError` where it, or the input, cannot be had here."""
        self._job = job
        job.check_input()
        self._source = open_source(job.source)
        by = job.answering
        self._bundle = load_bundle(by.bundle, by.base, by.device, by.dtype, by.backend)

    def make(self, chunk: Chunk) -> None:
        """Writes the chunk's part, unless it is there already. Raises `RevmuxError` for what cannot be answered."""
        job = self._job
        if job.part(chunk).exists():
            return
        job.check_input()
        rows = self._source.read(chunk)
        texts = _cells(rows, job.text_column)
        pairs = None if job.pair_column is None else _cells(rows, job.pair_column)
        asked = [i for i, text in enumerate(texts) if text and (pairs is None or pairs[i])]
        inputs = [texts[i] if pairs is None else (texts[i], pairs[i]) for i in asked]
        predictions: list[Prediction | None] = [None] * len(texts)
        found = self._bundle.classify(inputs, job.answering.point, job.answering.quality)
        for index, prediction in zip(asked, found, strict=True):
            predictions[index] = prediction
        job.sink.write_part(job.part(chunk), rows, predictions)


def _cells(rows: Any, column: str) -> list[str]:
    """A column's cells as text, "" where there is none but white space."""
    cells = [row.get(column) for row in rows] if isinstance(rows, list) else rows[column].to_pylist()
    texts = ["" if cell is None else cell_text(cell) for cell in cells]
    return ["" if text.isspace() else text for text in texts]


@dataclass(frozen=True, slots=True)
class Run:
    """A job that this process is in charge of: all its chunks, and those that still lack their part."""

    job: Job
    chunks: list[Chunk]
    missing: list[Chunk]

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)

    @property
    def rows_done(self) -> int:
        """Rows that an earlier process answered."""
        return self.rows - sum(chunk.rows for chunk in self.missing)


def make_parts(run: Run) -> Iterator[int]:
    """Makes the missing parts in this process, and yields the rows of each."""
    if run.missing:
        worker = Worker(run.job)
        for chunk in run.missing:
            worker.make(chunk)
            yield chunk.rows


@contextmanager
def begin(job: Job, chunk_rows: int) -> Iterator[Run]:
    """The run of `job`: from the start, or from where an earlier one was killed. Whoever leaves it well has made all
    that was missing; then the output is put together, and the parts go.

    Raises `JobError` where the output is there already, where the parts are of another run, or where that still runs.
    """
    plan, identity = job.folder / "job.json", job.identity(chunk_rows)
    if job.sink.out.exists() and not plan.exists():
        raise JobError(f"{job.sink.out} is there already: remove it, or name another file")
    try:
        job.folder.mkdir(exist_ok=True)
    except OSError as error:
        raise JobError(f"{job.folder} cannot be made: {error.strerror}") from error
    try:
        with FileLock(job.folder / "lock", timeout=0):
            chunks = _read_plan(job, identity, plan)
            # Where it is there, a run was killed while it removed its parts.
            if not job.sink.out.exists():
                yield Run(job, chunks, [chunk for chunk in chunks if not job.part(chunk).exists()])
                job.sink.assemble([job.part(chunk) for chunk in chunks])
            else:
                yield Run(job, chunks, [])
            for file in job.folder.iterdir():
                if file != plan:
                    file.unlink()
            # Last, so that all before this can be done again.
            plan.unlink()
            job.folder.rmdir()
    except Timeout:
        raise JobError(f"another run writes {job.sink.out}: wait until that ends") from None


def _read_plan(job: Job, identity: dict[str, Any], plan: Path) -> list[Chunk]:
    """The chunks of an earlier run of this `identity` where there was one, else new ones."""
    if plan.exists():
        content = json.loads(plan.read_bytes())
        unlike = [name for name, value in identity.items() if content["identity"].get(name) != value]
        if not unlike:
            return [Chunk(*fields) for fields in content["chunks"]]
        # A file that is there was finished by the other run, and only what it left is not all gone.
        if job.sink.out.exists() or any(job.folder.glob(f"*{job.sink.out.suffix}")):
            raise JobError(
                f"{job.folder} is of a run that had another {', '.join(unlike)}: go on as that began, or remove it"
            )
    chunks = open_source(job.source).cut(identity["chunk_rows"])
    job.check_input()
    with replacing(plan, job.folder) as partial:
        partial.write_text(json.dumps({"identity": identity, "chunks": [astuple(chunk) for chunk in chunks]}))
    return chunks
