"""What the sub-commands share: options, and how they read, choose a device and print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from revmux_core.backends import SHARDED, BackendName, DtypeName, prepare_process
from revmux_core.errors import RevmuxError

if TYPE_CHECKING:
    from revmux_core.bundle import Bundle
    from revmux_core.plan import Tokens

BundleOption = Annotated[str, typer.Option("--bundle", help="A built-in bundle's name, or a bundle folder.")]
BaseOption = Annotated[
    Path | None, typer.Option("--base", help="Folder of the base model; found by itself where this is left out.")
]
DataOption = Annotated[Path, typer.Option("--data", help="TSV, CSV, JSON lines, Parquet or plain text, by suffix.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text.")]
PairColumn = Annotated[str | None, typer.Option(help="Column of the second text of a pair.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
BackendOption = Annotated[
    BackendName,
    typer.Option(
        "--backend",
        help="What runs the layers: torch, inductor (torch.compile), or openvino on a CPU (an extra).",
        callback=prepare_process,
    ),
]
DtypeOption = Annotated[
    DtypeName,
    typer.Option("--dtype", help="Precision of the matrix products; auto is what serving takes."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
PlaceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, or sharded: the layers spread over all GPUs.")
]


def read(path: Path, text: str | None, pair: str | None, label: str | None) -> list[Any]:
    from revmux_core.data import read_examples

    return read_examples(path, text, pair, label)


def load(bundle: str | Path, base: Path | None, device: str, dtype: DtypeName, backend: BackendName) -> Bundle:
    from revmux_core.backends.select import choose_dtype
    from revmux_core.bundle import load_bundle

    place, sharded = pick_place(device)
    return load_bundle(bundle, base, place, choose_dtype(dtype, backend, place), backend, sharded)


def reference_answers(
    loaded: Bundle, bundle: str | Path, base: Path | None, device: str, samples: Sequence[Tokens]
) -> Any:
    """Answers `[S, ...]` of the model as it is: in PyTorch and float32, whatever `loaded` runs on and in."""
    from revmux_core.evaluation import plain_answers

    in_float32 = next(loaded.classifier.parameters()).dtype.itemsize == 4
    as_it_is = loaded if in_float32 else load(bundle, base, device, "float32", "torch")
    return plain_answers(as_it_is.classifier, samples, loaded.tokenizer.pad_id)


def pick_place(name: str) -> tuple[Any, bool]:
    """A device, and whether it is the first of several that share a model's layers."""
    sharded = name == SHARDED
    return pick_device("auto" if sharded else name), sharded


def pick_device(name: str) -> Any:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise RevmuxError(f"--device {name} is not a device: use auto, cpu, cuda or cuda:N") from error


def print_report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report))
        return
    for key, value in report.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(value[0])
            typer.echo("  ".join(f"{column:>20}" for column in columns))
            for row in value:
                typer.echo("  ".join(f"{_short(row[column]):>20}" for column in columns))
        else:
            typer.echo(f"{key:>20}: {_short(value)}")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False).strip('"')
