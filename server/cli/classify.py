"""`revmux classify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from revmux_core.cascade import Quality
from revmux_core.errors import RevmuxError
from server.cli.common import (
    BackendOption,
    BaseOption,
    BundleOption,
    DeviceOption,
    DtypeOption,
    PairColumn,
    TextColumn,
    pick_device,
)


def classify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Parquet, JSON lines, CSV, TSV or text, by suffix.")],
    out: Annotated[Path, typer.Argument(help="Parquet, JSON lines, CSV or TSV; it is there once all is done.")],
    bundle: BundleOption,
    quality: Annotated[
        Quality | None,
        typer.Option(
            help="exact: plain; guaranteed: the calibrated cascade; fast: as demultiplexed. Default: fast where a "
            "width or a point is named or the bundle is not calibrated, else guaranteed."
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(help="Mux width; 1 is the plain path.")] = None,
    point: Annotated[str | None, typer.Option(help="Or an operating point by its name, see `revmux info`.")] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    id_column: Annotated[
        str | None, typer.Option(help="Keep this column of the input and leave out the others.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Goes before the names of the columns that are added.")] = "",
    chunk_rows: Annotated[
        int, typer.Option(min=1, help="Rows that share batches, and that a kill may lose the work of.")
    ] = 4096,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster: auto, HOST:PORT, or local.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers on the cluster. Default: one a GPU, or one a CPU core.")
    ] = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    backend: BackendOption = "torch",
) -> None:
    """Answer every row of a file. A run that was killed goes on where it was when the command is run again.

    OUT gets the input's columns and those of the answers, as `/classify` names them: label and probs, or what else the
    bundle's problem type has, mux_width and escalated. Rows without a text get none of these.
    """
    from tqdm import tqdm

    from revmux_core.backends.select import choose_dtype
    from revmux_core.jobs import cluster
    from revmux_core.jobs.job import Answering, begin, make_job, make_parts

    if width is not None and point is not None:
        raise RevmuxError("name one of --width and --point")
    if point is not None and quality not in (None, "fast"):
        raise RevmuxError("--point goes with the quality fast; name a --width, or leave both out")
    if workers is not None and ray is None:
        raise RevmuxError("--workers goes with --ray")
    if ray is not None:
        device = cluster.connect(ray, device)
    place = pick_device(device)
    answering = Answering(
        str(Path(bundle).resolve()) if Path(bundle).is_dir() else bundle,
        base and base.resolve(),
        point or width,
        quality,
        backend,
        str(place),
        choose_dtype(dtype, backend, place),
    )
    job = make_job(source, out, answering, text_column, pair_column, id_column, prefix)
    with (
        begin(job, chunk_rows) as run,
        tqdm(total=run.rows, initial=run.rows_done, desc=out.name, unit="row", disable=None) as bar,
    ):
        for rows in make_parts(run) if ray is None else cluster.make_parts(run, workers):
            bar.update(rows)
    typer.echo(f"wrote {out}, {run.rows} rows, {run.rows - run.rows_done} of them now")
