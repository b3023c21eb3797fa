"""`revmux export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.common import BaseOption, BundleOption


def export(
    bundle: BundleOption,
    out: Annotated[Path, typer.Option(help="Folder to write, which must be new or empty.")],
    base: BaseOption = None,
) -> None:
    """Write a bundle's plain model as an ordinary Hugging Face folder, to load or serve it with something else."""
    from revmux_core.export import export_plain

    export_plain(bundle, out, base)
    typer.echo(f"wrote {out}")
