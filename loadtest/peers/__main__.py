"""`python -m loadtest.peers`: our server and others, side by side, in one run and one table."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from loadtest.client import MAX_CONNECTIONS
from loadtest.command import end_on_sigterm, say
from loadtest.machine import describe_machine
from loadtest.peers import report
from loadtest.peers.catalog import PEERS, ours
from loadtest.peers.compare import Plan, compare
from loadtest.peers.environments import PeerError, call
from loadtest.peers.line_up import EXPORT_SECONDS, line_up
from loadtest.servers import ServerError
from loadtest.workload import DataError, name_labels, read_samples

# NNCF's default number of samples to calibrate int8 with.
CALIBRATION_TEXTS = 300


def main(
    bundle: Annotated[str, typer.Option(help="Bundle whose plain model all serve: a name or a folder.")],
    data: Annotated[Path, typer.Option(help="Sentences to send: .tsv, .csv or .txt.")],
    out: Annotated[Path, typer.Option(help="Folder for the table (Markdown, JSON), the exported model and the logs.")],
    base: Annotated[Path | None, typer.Option(help="Folder of the bundle's base model.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Default: text or sentence.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Default: label or category, if there is one.")] = None,
    only: Annotated[
        str | None, typer.Option(help=f"Peers, with commas between them: {', '.join(peer.key for peer in PEERS)}.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.5, max=600, help="Length of one run.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Visits to each server.")] = 3,
    concurrency: Annotated[int, typer.Option(min=1, max=MAX_CONNECTIONS, help="Requests in flight to saturate.")] = 64,
    rate: Annotated[
        list[float] | None, typer.Option(min=1, help="Requests a second that all get alike; repeatable.")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Keep all servers up and visit them in turn, for many short rounds.")
    ] = False,
    venvs: Annotated[Path | None, typer.Option(help="Folder of the peers' environments. Default: OUT/venvs.")] = None,
    ours_options: Annotated[str, typer.Option(help="Options of `revmux serve` for our own servers.")] = "",
) -> None:
    """Serve the plain model of BUNDLE with every peer and with ours, drive all in turn with the sentences of DATA.

    Each peer gets an environment of its own, made by pip from its requirement file; a peer that cannot be installed or
    started is in the table with the reason. Exit codes: 0 done, 1 our own server did not start, 2 the arguments or the
    data cannot be used.
    """
    end_on_sigterm()
    chosen = {peer.key for peer in PEERS} if only is None else {key.strip() for key in only.split(",")}
    unknown = chosen - {peer.key for peer in PEERS}
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}", param_hint="--only")
    plan = Plan(concurrency, rounds, seconds, tuple(rate or ()), together)
    out.mkdir(parents=True, exist_ok=True)
    logs, model, sentences = out / "logs", out / "model", out / "calibration.txt"
    logs.mkdir(exist_ok=True)
    try:
        samples = read_samples(data, text_column, label_column)
        if not (model / "config.json").is_file():
            say("exporting the plain model")
            command = [sys.executable, "-m", "server.cli", "export", "--bundle", bundle, "--out", str(model)]
            call(command + (["--base", str(base)] if base else []), logs / "export.log", EXPORT_SECONDS)
        names = json.loads((model / "config.json").read_text())["id2label"]
        labels = name_labels(samples, [names[str(index)] for index in range(len(names))])
        texts = [sample.text for sample in samples]
        sentences.write_text("\n".join(" ".join(text.split()) for text in texts[:CALIBRATION_TEXTS]) + "\n")
        peers = [ours(bundle, base, shlex.split(ours_options)), *(peer for peer in PEERS if peer.key in chosen)]
        contenders = [
            contender
            for peer in peers
            for contender in line_up(peer, (venvs or out / "venvs") / peer.key, model, sentences, out, say)
        ]
        compare(contenders, texts, labels, plan, logs, say)
    except DataError as error:
        say(f"error: {error}")
        raise typer.Exit(2) from error
    except (ServerError, PeerError) as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error
    report.write(report.Report(bundle, data.name, len(samples), describe_machine(), plan, contenders), out)
    say(f"wrote {out / 'peers.md'}")


if __name__ == "__main__":
    typer.run(main)
