"""`python -m loadtest.overhead`: what serving costs beside the model, on one page."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from loadtest.client import MAX_CONNECTIONS
from loadtest.command import end_on_sigterm, say
from loadtest.machine import describe_machine
from loadtest.overhead import report
from loadtest.overhead.costs import Visit, come_together
from loadtest.overhead.drive import ask, beside, engine_of, visit
from loadtest.overhead.report import FLOOR, FRONT, ONE, Report
from loadtest.peers.compare import answers
from loadtest.peers.environments import PeerError, call
from loadtest.peers.line_up import EXPORT_SECONDS
from loadtest.scaling.engine import BenchError, measure
from loadtest.scaling.served import MOST_INPUTS, lists_of
from loadtest.servers import Server, ServerError, raise_errors, running, started
from loadtest.wire import CLASSIFY
from loadtest.workload import DataError, read_samples

BENCH_ROUNDS = 3
"""Of `revmux bench` in each round of ours; it is the median of them that counts."""


def main(
    bundle: Annotated[str, typer.Option(help="Bundle to serve: a name or a folder.")],
    data: Annotated[Path, typer.Option(help="Sentences to send: .tsv, .csv or .txt.")],
    out: Annotated[Path, typer.Option(help="Folder for the page (Markdown, JSON) and the logs.")],
    base: Annotated[Path | None, typer.Option(help="Folder of the bundle's base model.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Default: text or sentence.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Visits to each server.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Length of one run.")] = 5,
    concurrency: Annotated[int, typer.Option(min=1, max=MAX_CONNECTIONS, help="Requests in flight to saturate.")] = 64,
    inputs: Annotated[int, typer.Option(min=1, max=MOST_INPUTS, help="Texts a request.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads for the model: fewer than cores leave HTTP one of its own.")
    ] = None,
) -> None:
    """Serve BUNDLE plainly, in one process and behind a front end, and its tokenizer without any model; drive all three
    in turn, and the engine alone and beside the tokenizer's server, and write what each part takes.

    The servers take their other settings from REVMUX_* variables, and the engine alone those of the servers. Linux
    only. Exit codes: 0 done, 1 a server or a benchmark failed, or a request was not answered, 2 the data cannot be
    used.
    """
    end_on_sigterm()
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    source = ["--bundle", bundle, *(["--base", str(base)] if base is not None else [])]
    revmux = [sys.executable, "-m", "server.cli"]
    pool = ["--threads", str(threads)] if threads is not None else []
    serve = [*revmux, "serve", *source, *pool, "--width", "1", "--http-workers"]
    offline: list[float] = []
    beside_floor: list[float] = []
    try:
        requests = lists_of([sample.text for sample in read_samples(data, text_column)], inputs)
        with (
            tempfile.TemporaryDirectory() as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            running([*serve, "0"], logs / "one.log") as one,
            running([*serve, "1"], logs / "front.log") as front,
        ):
            model, answer = Path(folder, "model"), Path(folder, "answer.json")
            call([*revmux, "export", *source, "--out", str(model)], logs / "export.log", EXPORT_SECONDS)
            answer.write_bytes(runner.run(ask(one, requests[0])))
            least = [sys.executable, "-m", "loadtest.overhead.floor", "--tokenizer", str(model / "tokenizer.json")]
            least += ["--answer", str(answer)]
            with started(least, logs / "floor.log", lambda port: answers(port, CLASSIFY, requests[0])) as floor:
                servers: dict[str, tuple[Server, int | None]] = {
                    ONE: (one, engine_of(one)),
                    FRONT: (front, engine_of(front)),
                    FLOOR: (floor, None),
                }
                visits: dict[str, list[Visit]] = {name: [] for name in servers}
                for name, (server, engine) in servers.items():
                    runner.run(visit(server, engine, requests, inputs, concurrency, seconds, rounds))
                    say(f"{name} is warm")
                engine_alone = partial(_alone, [*source, *pool], one, data, text_column, logs)
                for number in range(rounds):
                    say(f"round {number + 1} of {rounds}")
                    offline.append(engine_alone())
                    # No server always goes first.
                    for name, (server, engine) in list(servers.items())[:: 1 if number % 2 == 0 else -1]:
                        found = runner.run(visit(server, engine, requests, inputs, concurrency, seconds, number))
                        visits[name].append(found)
                        say(f"  {name}: {found.rate:.1f} texts/s")
                    say("  beside the floor:")
                    as_served = visits[ONE][-1].rate / inputs
                    together = come_together(concurrency)
                    beside_floor.append(runner.run(beside(floor, requests, as_served, together, engine_alone)))
        for name in ("one", "front"):
            raise_errors(logs / f"{name}.log")
    except DataError as error:
        say(f"error: {error}")
        raise typer.Exit(2) from error
    except (ServerError, PeerError, BenchError) as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error
    settings = f"REVMUX_BACKEND={one.info['backend']} REVMUX_DTYPE={one.info['dtype']}"
    asked = f"--bundle {Path(bundle).name} --data {data.name} --rounds {rounds} --seconds {seconds:g}"
    asked += f" --concurrency {concurrency} --inputs {inputs}" + "".join(f" {word}" for word in pool)
    command = f"{settings} python -m loadtest.overhead {asked} --out OUT"
    machine = describe_machine()
    cores = min(threads or machine.cores, machine.cores) if one.info["device"] == "cpu" else 0
    report.write(Report(command, machine, cores, concurrency, inputs, seconds, offline, beside_floor, visits), out)
    say(f"wrote {out / 'overhead.md'}")


def _alone(options: list[str], server: Server, data: Path, text_column: str | None, logs: Path) -> float:
    """Sentences a second of the engine alone on the plain path, as `server` runs it and in batches as large."""
    info = server.info
    options = [*options, "--data", str(data), *(["--text-column", text_column] if text_column is not None else [])]
    options += ["--width", "1", "--batch-tokens", str(info["limits"]["max_batch_tokens"])]
    options += ["--backend", info["backend"], "--dtype", info["dtype"], "--device", info["device"]]
    (row,) = measure("width", options, BENCH_ROUNDS, logs / "bench.log")
    rate: float = row["sequences_per_second"]
    say(f"  the engine alone: {rate:.1f} sentences/s")
    return rate


if __name__ == "__main__":
    typer.run(main)
