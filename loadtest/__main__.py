"""`python -m loadtest`: one command from a bundle and a data file to a report."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from loadtest import report
from loadtest.client import MAX_CONNECTIONS, Client
from loadtest.command import end_on_sigterm, say
from loadtest.machine import describe_machine
from loadtest.scenarios import CapacityError, Plan, Result, compare
from loadtest.servers import ServerError, raise_errors, running
from loadtest.workload import DataError, Sample, joined, name_labels, read_samples


def main(
    bundle: Annotated[str, typer.Option(help="Bundle to serve: a name or a folder.")],
    data: Annotated[Path, typer.Option(help="Sentences to send: .tsv, .csv or .txt.")],
    out: Annotated[Path, typer.Option(help="Folder for the report (Markdown, JSON, PNG) and the servers' logs.")],
    base: Annotated[Path | None, typer.Option(help="Folder of the bundle's base model.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Default: text or sentence.")] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Label names or indices. Default: label or category, if there is one.")
    ] = None,
    join: Annotated[
        int, typer.Option(min=0, help="Send texts of mixed lengths, up to so many words, joined from the sentences.")
    ] = 0,
    width: Annotated[str, typer.Option(help="`--width` of the fast server: auto, max, 2 or 4.")] = "max",
    timeout_ms: Annotated[
        float, typer.Option(min=1, help="Time that every request has; who cannot be answered in it is refused.")
    ] = 60_000,
    seconds: Annotated[float, typer.Option(min=0.5, max=600, help="Length of one run.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Runs of each scenario on each server.")] = 3,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=MAX_CONNECTIONS, help="Requests in flight in a closed loop; repeatable. Default: 1, 8 and 64."
        ),
    ] = None,
    load: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01,
            max=2,
            help="Arrival rate of an open loop, as a share of the plain capacity; repeatable. Default: 0.5 and 0.8.",
        ),
    ] = None,
) -> None:
    """Serve BUNDLE twice, plain (width 1) and fast, drive both alternately with the sentences of DATA, write a report.

    Everything runs on this machine's loopback interface. Exit codes: 0 done, 1 a server did not start or a request
    failed other than with 429 or 504 (too much load), 2 the arguments or the data cannot be used.
    """
    end_on_sigterm()
    plan = Plan(concurrency or [1, 8, 64], load or [0.5, 0.8], rounds, seconds, timeout_ms)
    runs = 2 * rounds * (len(plan.concurrencies) + len(plan.loads))
    say(f"{runs} runs of {seconds:g} s, about {runs * seconds / 60 + 1:.0f} minutes")
    out.mkdir(parents=True, exist_ok=True)
    serve = [sys.executable, "-m", "server.cli", "serve", "--bundle", bundle, "--default-timeout-ms", str(timeout_ms)]
    if base is not None:
        serve += ["--base", str(base)]
    try:
        samples = read_samples(data, text_column, label_column)
        if join:
            samples = joined(samples, join)
        say("starting both servers")
        with (
            running([*serve, "--width", "1"], out / "plain.log") as plain,
            running([*serve, "--width", width], out / "fast.log") as fast,
        ):
            labels = name_labels(samples, plain.info["labels"])
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                result = runner.run(_drive(plain.port, fast.port, samples, labels, plan))
            facts = [
                report.ServerFacts(
                    width, server.start_seconds, server.peak_rss_bytes(), server.info, server.padding_ratio()
                )
                for width, server in (("1", plain), (width, fast))
            ]
        for name in ("plain", "fast"):
            raise_errors(out / f"{name}.log")
    except DataError as error:
        say(f"error: {error}")
        raise typer.Exit(2) from error
    except (ServerError, CapacityError) as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error
    finished = report.Report(bundle, data.name, len(samples), describe_machine(), facts[0], facts[1], plan, result)
    report.write(finished, out)
    for warning in finished.warnings:
        say(f"warning: the load generator was a bottleneck: {warning}")
    say(f"wrote {out / 'report.md'}")
    if result.unexpected_errors:
        say(f"error: {result.unexpected_errors} requests failed; the report counts them by status")
        raise typer.Exit(1)


async def _drive(
    plain_port: int, fast_port: int, samples: list[Sample], labels: list[str | None], plan: Plan
) -> Result:
    texts = [sample.text for sample in samples]
    async with Client(plain_port, texts) as plain, Client(fast_port, texts) as fast:
        return await compare(plain, fast, labels, plan, say)


if __name__ == "__main__":
    typer.run(main)
