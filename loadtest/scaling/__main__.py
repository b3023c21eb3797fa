"""`python -m loadtest.scaling`: one command from a bundle and a data file to a page of curves."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from loadtest.command import end_on_sigterm, say
from loadtest.machine import describe_machine
from loadtest.scaling import engine, report, served
from loadtest.scaling.part import ENGINE_PARTS, PARTS, SERVED_PARTS, Part
from loadtest.scaling.served import MOST_INPUTS
from loadtest.servers import ServerError, running
from loadtest.workload import DataError, read_samples

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
ROWS = (1, 4, 16, 64, 256)
CLASSES = (2, 10, 100, 1000)
CONNECTIONS = (1, 8, 64, 512, 2000)
INPUTS = (1, 10, 100, 1000)
# Beyond it a server's queue refuses by itself (`revmux serve --max-queue-items`).
MOST_CONNECTIONS = 4096
STARTS = {"--width 1": ["--width", "1"], "--width auto": [], "--http-workers 2": ["--http-workers", "2"]}


def main(
    bundle: Annotated[str, typer.Option(help="Bundle to measure: a name or a folder.")],
    data: Annotated[Path, typer.Option(help="Sentences to send: .tsv, .csv or .txt.")],
    out: Annotated[Path, typer.Option(help="Folder for the page (Markdown, JSON, PNG) and the logs.")],
    base: Annotated[Path | None, typer.Option(help="Folder of the bundle's base model.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Default: text or sentence.")] = None,
    only: Annotated[
        str | None, typer.Option(help=f"Parts to measure anew, with commas between them: {', '.join(PARTS)}.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Rounds through the points of a part.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="How long a run sends requests.")] = 2,
    idle_seconds: Annotated[float, typer.Option(min=0.1, max=600, help="How long a server is left alone.")] = 5,
    shape: Annotated[str, typer.Option(help="Random weights for length, batch and classes.")] = "minilm-l6",
    length: Annotated[list[int] | None, typer.Option(help=f"Tokens a text; repeatable. Default: {LENGTHS}.")] = None,
    rows: Annotated[list[int] | None, typer.Option(min=1, help=f"Texts a batch; repeatable. Default: {ROWS}.")] = None,
    classes: Annotated[list[int] | None, typer.Option(help=f"Labels; repeatable. Default: {CLASSES}.")] = None,
    connections: Annotated[
        list[int] | None,
        typer.Option(min=1, max=MOST_CONNECTIONS, help=f"Connections; repeatable. Default: {CONNECTIONS}."),
    ] = None,
    inputs: Annotated[
        list[int] | None,
        typer.Option(min=1, max=MOST_INPUTS, help=f"Texts a request; repeatable. Default: {INPUTS}."),
    ] = None,
) -> None:
    """Measure how throughput, latency and memory of BUNDLE grow, and write a page of curves.

    A part that is not measured anew stays as the page in OUT has it, so that parts can be run one by one. Exit codes:
    0 done, 1 a server or a benchmark failed, or a request other than with 429 or 504 (too much load), 2 the arguments
    or the data cannot be used.
    """
    end_on_sigterm()
    chosen = PARTS if only is None else [name.strip() for name in only.split(",")]
    unknown = set(chosen) - set(PARTS)
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}", param_hint="--only")
    grown = {"connections": sorted(connections or CONNECTIONS), "inputs": sorted(inputs or INPUTS)}
    sizes = engine.Sizes(shape, length or LENGTHS, rows or ROWS, classes or CLASSES)
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    source = ["--bundle", bundle, *(["--base", str(base)] if base is not None else [])]
    serve = [sys.executable, "-m", "server.cli", "serve", *source]
    asked = ["--data", str(data), *(["--text-column", text_column] if text_column is not None else [])]
    parts = report.read(out)
    try:
        texts = [sample.text for sample in read_samples(data, text_column)]
        served.allow_connections(max(grown["connections"]))
        for name in chosen:
            say(f"measuring {name}")
            if name in ENGINE_PARTS:
                options = [*source, *asked] if name == "width" else sizes.options(name)
                found = engine.measure(name, options, rounds, logs / f"{name}.log")
            elif name in SERVED_PARTS:
                settings = served.settings_of(name, texts, grown[name])
                found = _serve(serve, settings, rounds, seconds, logs)
            else:
                commands = {options: [*serve, *flags] for options, flags in STARTS.items()}
                found = served.measure_start(commands, rounds, idle_seconds, logs, say)
            command = f"python -m loadtest.scaling --bundle {Path(bundle).name} --data {data.name} --only {name}"
            parts[name] = Part(f"{command} --rounds {rounds} --out OUT", asdict(describe_machine()), found)
            report.write(parts, out)
    except (DataError, served.LimitError) as error:
        say(f"error: {error}")
        raise typer.Exit(2) from error
    except (ServerError, engine.BenchError) as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error
    say(f"wrote {out / report.PAGE}")
    failed = sum(report.unexpected_errors(parts[name]) for name in chosen)
    if failed:
        say(f"error: {failed} requests failed; the page counts them by status")
        raise typer.Exit(1)


def _serve(
    serve: list[str], settings: list[served.Setting], rounds: int, seconds: float, logs: Path
) -> list[dict[str, Any]]:
    with (
        running([*serve, "--width", "1"], logs / "plain.log") as plain,
        running([*serve, "--width", "max"], logs / "fast.log") as fast,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(served.measure({"plain": plain, "fast": fast}, settings, rounds, seconds, say))


if __name__ == "__main__":
    typer.run(main)
