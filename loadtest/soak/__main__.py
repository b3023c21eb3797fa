"""`python -m loadtest.soak`: more load than the server can take, and what became of every request."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from loadtest.client import Client
from loadtest.command import end_on_sigterm, say
from loadtest.machine import describe_machine
from loadtest.measure import OK
from loadtest.metrics import read_metrics, requests_by_status
from loadtest.servers import Server, ServerError, running
from loadtest.soak import report
from loadtest.soak.drive import WIRE, SoakError, burst, capacity_of, learn_labels, requests_for, soak
from loadtest.workload import DataError, read_samples

CONNECTIONS = 4000
"""As many as a server takes by default, but for a few. The rest of a burst waits for one, and the wait counts."""
SETTLE_SECONDS = 1.0


def main(
    bundle: Annotated[str, typer.Option(help="Calibrated bundle to serve: a name or a folder.")],
    data: Annotated[Path, typer.Option(help="Sentences to send: .tsv, .csv or .txt.")],
    out: Annotated[Path, typer.Option(help="Folder for the report (Markdown, JSON, PNG) and the server's log.")],
    minutes: Annotated[float, typer.Option(min=0.05, help="Length of the soak.")] = 20,
    load: Annotated[float, typer.Option(min=0.1, help="Arrivals as a share of the capacity.")] = 1.2,
    timeout_ms: Annotated[float, typer.Option(min=1, help="Time that every request has.")] = 1000,
    times: Annotated[float, typer.Option("--burst", help="Times the capacity for a second; 0: no burst.")] = 50,
    capacity_seconds: Annotated[float, typer.Option(min=0.5, help="Length of the loop that finds the capacity.")] = 10,
) -> None:
    """Serve BUNDLE, find its capacity with the sentences of DATA, send LOAD times as many for MINUTES, then a burst.

    The server takes its other settings from REVMUX_* variables. Exit codes: 0 all promises held, 1 one did not, or the
    server did not start, 2 the data cannot be used.
    """
    end_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    serve = [sys.executable, "-m", "server.cli", "serve", "--bundle", bundle, "--default-timeout-ms", str(timeout_ms)]
    try:
        texts = [sample.text for sample in read_samples(data)]
        with (
            running(serve, out / "server.log") as server,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            finished = runner.run(
                _drive(server, bundle, texts, 60 * minutes, load, timeout_ms, times, capacity_seconds)
            )
    except DataError as error:
        say(f"error: {error}")
        raise typer.Exit(2) from error
    except (ServerError, SoakError) as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error
    report.write(finished, out)
    say(f"wrote {out / 'soak.md'}")
    broken = [promise for promise, held in finished.verdicts().items() if not held]
    for promise in broken:
        say(f"did not hold: {promise}")
    if broken:
        raise typer.Exit(1)


async def _drive(
    server: Server,
    bundle: str,
    texts: list[str],
    seconds: float,
    load: float,
    timeout_ms: float,
    times: float,
    capacity_seconds: float,
) -> report.Report:
    port, requests = server.port, requests_for(texts)
    async with Client(port, requests, CONNECTIONS, WIRE) as client, Client(port, requests, 8, WIRE) as watcher:
        plain = await learn_labels(watcher, len(texts))
        capacity = await capacity_of(client, len(texts), capacity_seconds)
        say(f"capacity {capacity:.0f} requests a second; {load * capacity:.0f} a second for {seconds:.0f} s")
        before = _counted(port)
        soaked = await soak(client, plain, load * capacity, seconds, server.pid)
        counted = _counted(port) - before
        sent = time.perf_counter()
        (outcome,) = (await watcher.closed_loop(iter([0]), 1, seconds)).outcomes
        probe = time.perf_counter() - sent if outcome.status == OK else None
        queue = read_metrics(port)["revmux_queue_items"]
        bursted = None
        if times:
            await asyncio.sleep(SETTLE_SECONDS)
            say(f"a burst of {times * capacity:.0f} requests a second")
            bursted = await burst(client, watcher, plain, times * capacity, 1.0)
    return report.Report(
        bundle,
        server.info,
        describe_machine(),
        capacity,
        load,
        seconds,
        timeout_ms,
        CONNECTIONS,
        soaked,
        dict(counted),
        queue,
        probe,
        bursted,
    )


def _counted(port: int) -> Counter[int]:
    return requests_by_status(read_metrics(port)).get("/classify", Counter())


if __name__ == "__main__":
    typer.run(main)
