"""`python -m loadtest.fuzz`: odd requests at a real server, and a report of what came of them."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from loadtest.command import say
from loadtest.fuzz import report
from loadtest.fuzz.bodies import generate
from loadtest.fuzz.drive import CONNECTIONS, Tally, drive
from loadtest.fuzz.openapi import run_schemathesis
from loadtest.fuzz.probes import learn_probes
from loadtest.metrics import read_metrics, requests_by_status
from loadtest.processes import rss_bytes
from loadtest.servers import ServerError, running

PROBES = 40
# Made, and held in memory, at a time.
BATCH = 500


def main(
    bundle: Annotated[str, typer.Option(help="Bundle to serve: a name or a folder; a tiny one takes minutes.")],
    out: Annotated[Path, typer.Option(help="Folder for the report, the logs and the requests that failed.")],
    width: Annotated[str, typer.Option(help="`--width` of the server: auto, max, 2 or 4.")] = "max",
    requests: Annotated[int, typer.Option(min=1, help="Odd requests and probes to send, at least.")] = 50_000,
    examples: Annotated[
        int, typer.Option(min=1, help="Requests that Schemathesis makes for an operation, at most.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Other seeds make other requests.")] = 0,
) -> None:
    """Serve BUNDLE and send it Schemathesis's requests, then hypothesis-made ones with probes between them.

    Exit codes: 0 nothing was found, 1 something was, or the server did not start.
    """
    if importlib.util.find_spec("schemathesis") is None:
        raise typer.BadParameter("Schemathesis is not installed: pip install -e '.[fuzz]'")
    out.mkdir(parents=True, exist_ok=True)
    # Points that nobody measured, too: the more ways there are to an answer, the better.
    serve = [sys.executable, "-m", "server.cli", "serve", "--bundle", bundle, "--width", width, "--min-agreement", "0"]
    tally = Tally()
    try:
        with running(serve, out / "server.log") as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            say("Schemathesis")
            before = requests_by_status(read_metrics(server.port))
            conforms = run_schemathesis(server.port, examples, seed, out / "schemathesis.log")
            after = requests_by_status(read_metrics(server.port))
            by_schema = {path: counter - before.get(path, Counter()) for path, counter in after.items()}
            probes = runner.run(learn_probes(server.port, PROBES, seed))
            began = time.monotonic()
            memory: list[int] = []
            while tally.requests < requests:
                count = min(BATCH, requests - tally.requests)
                runner.run(drive(server.port, generate(count, seed), probes, tally))
                seed += 1
                memory.append(rss_bytes(server.pid) or 0)
                say(f"{tally.requests} requests, {len(tally.failures)} failures")
            seconds = time.monotonic() - began
            # Once more, with nothing else under way.
            runner.run(drive(server.port, [], probes, tally))
            finished = report.Report(bundle, server.info, by_schema, conforms, tally, seconds, CONNECTIONS, memory)
    except ServerError as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error
    report.write(finished, out)
    say(f"wrote {out / 'report.md'}")
    if not finished.passed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
