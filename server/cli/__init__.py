"""The `revmux` command: one thin function a sub-command."""

from __future__ import annotations

import errno
import sys

import typer

from revmux_core.errors import RevmuxError
from server.cli.bench import bench
from server.cli.calibrate import calibrate
from server.cli.classify import classify
from server.cli.export import export
from server.cli.measure import card, evaluate, info
from server.cli.research import experiment, hostile, plan
from server.cli.serve import serve
from server.cli.train import train
from server.garbage import relax

app = typer.Typer(
    help="Serve, train and measure multiplexed text classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (serve, classify, train, evaluate, calibrate, bench, card, info, export, plan, experiment, hostile):
    app.command("eval" if command is evaluate else command.__name__)(command)


def main() -> None:
    """Runs the command; a foreseeable error is one line on standard error and exit code 2."""
    relax()
    try:
        app()
    except RevmuxError as error:
        typer.echo(f"revmux: {error}", err=True)
        sys.exit(2)
    except Exception as error:
        if not _is_disk_full(error):
            raise
        typer.echo(f"revmux: there is no room to write to, free some and run the command again: {error}", err=True)
        sys.exit(2)


def _is_disk_full(error: Exception) -> bool:
    """Whether a file could not be written for lack of room; safetensors words what the system said in Rust's way."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in codes
    return any(f"os error {code}" in str(error) for code in codes)
