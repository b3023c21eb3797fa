"""`python -m loadtest.drive`: load on a server that runs already, on this machine or in this network namespace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loadtest.client import MAX_CONNECTIONS
from loadtest.command import say
from loadtest.generators import Generators, generators
from loadtest.measure import Summary, generator_limits, summarize
from loadtest.workload import DataError, Sample, read_samples

HEAD = ("in flight", "requests", "answers/s", "p50", "p95", "p99", "escalated", "errors")


def main(
    data: Annotated[Path, typer.Option(help="Sentences to send: .tsv, .csv or .txt.")],
    port: Annotated[int, typer.Option(help="Port of the server on the loopback interface.")] = 8000,
    seconds: Annotated[float, typer.Option(min=0.5, max=3600, help="Length of one run.")] = 20,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(min=1, help=f"Requests in flight, {MAX_CONNECTIONS} a process; repeatable. Default: 1, 8 and 64."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Load generators: one bears some 14,000 requests a second.")
    ] = 1,
    api_key: Annotated[
        str | None, typer.Option(envvar="LOADTEST_API_KEY", help="Key of a server that asks for one.")
    ] = None,
) -> None:
    """Drive a server with the sentences of DATA, each number in flight in turn, and print a table of Markdown.

    Exit codes: 0 done, 1 a request failed other than with 429 or 504 (too much load), 2 the data cannot be used.
    """
    concurrencies = concurrency or [1, 8, 64]
    if max(concurrencies) > MAX_CONNECTIONS * processes:
        needed = -(-max(concurrencies) // MAX_CONNECTIONS)
        say(f"error: {max(concurrencies)} in flight take --processes {needed} or more")
        raise typer.Exit(2)
    try:
        samples = read_samples(data)
    except DataError as error:
        say(f"error: {error}")
        raise typer.Exit(2) from error
    print_row(HEAD)
    print_row(["---:"] * len(HEAD))
    with generators(processes) as load:
        failed = drive(load, port, samples, concurrencies, seconds, api_key or None)
    if failed:
        say(f"error: {failed} requests failed; the table counts them by status")
        raise typer.Exit(1)


def drive(
    load: Generators, port: int, samples: list[Sample], concurrencies: list[int], seconds: float, api_key: str | None
) -> int:
    """Prints a row a run; the number of requests that failed unexpectedly."""
    failed = 0
    for seed, concurrency in enumerate(concurrencies):
        run = load.closed_loop(port, [sample.text for sample in samples], concurrency, seconds, seed, api_key)
        summary = summarize(run, [None] * len(samples), {})
        print_row(_cells(concurrency, summary))
        for limit in generator_limits(summary):
            say(f"warning: the load generator was a bottleneck: {limit}")
        failed += summary.unexpected_errors
    return failed


def _cells(concurrency: int, summary: Summary) -> list[str]:
    times = [summary.p50_seconds, summary.p95_seconds, summary.p99_seconds]
    escalated = summary.escalation_rate
    return [
        str(concurrency),
        str(summary.requests),
        f"{summary.throughput:.1f}",
        *("-" if time is None else f"{1000 * time:.1f} ms" for time in times),
        "-" if escalated is None else f"{escalated:.1%}",
        ", ".join(f"{count} x {status}" for status, count in summary.errors.items()) or "0",
    ]


def print_row(cells: list[str] | tuple[str, ...]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
