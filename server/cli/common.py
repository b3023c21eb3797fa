"""What the sub-commands share: options, and how they read, choose a device and print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from revmux_core.errors import RevmuxError

BundleOption = Annotated[str, typer.Option("--bundle", help="A built-in bundle's name, or a bundle folder.")]
BaseOption = Annotated[
    Path | None, typer.Option("--base", help="Folder of the base model; found by itself where this is left out.")
]
DataOption = Annotated[Path, typer.Option("--data", help="TSV, CSV, JSON lines, Parquet or plain text, by suffix.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text.")]
PairColumn = Annotated[str | None, typer.Option(help="Column of the second text of a pair.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label, as its name or index.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def read(path: Path, text: str | None, pair: str | None, label: str | None) -> list[Any]:
    from revmux_core.data import read_examples

    return read_examples(path, text, pair, label)


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
