"""How many single-text requests a second a whole server carries over HTTP, by its number of front ends.

    python -m experiments.served_rate --data sst2/dev.tsv --http-workers 1 --http-workers 2

Serves the model of `experiments.engine_rate`, which costs next to nothing, so that what is left is HTTP, tokens and
what the engine does around a batch; or a real `--bundle`, for a device that is fast enough. Load generators are
processes, too. Linux only. `docs/performance/serving.md` has what came of it ("20,000 requests a second").
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from experiments.engine_rate import save_free_model
from loadtest.command import end_on_sigterm, say
from loadtest.drive import print_row
from loadtest.generators import generators
from loadtest.machine import describe_machine
from loadtest.measure import generator_limits, summarize
from loadtest.overhead.costs import by_part
from loadtest.overhead.drive import engine_of
from loadtest.processes import thread_seconds
from loadtest.report import milliseconds
from loadtest.servers import Server, raise_errors, running
from loadtest.workload import read_samples

HEAD = (
    "front ends",
    "requests/s",
    "p50, ms",
    "front ends' cores",
    "the engine's loop's",
    "its other threads'",
    "a generator's",
)


def main(
    data: Annotated[Path, typer.Option(help="Sentences to send: .tsv, .csv or .txt.")],
    http_workers: Annotated[list[int], typer.Option(min=1, help="Front ends; repeatable, a server each.")],
    bundle: Annotated[str | None, typer.Option(help="A real model. Default: one that costs next to nothing.")] = None,
    backend: Annotated[str, typer.Option(help="As of `revmux serve`.")] = "openvino",
    load_generators: Annotated[int, typer.Option(min=1, help="Processes that send.")] = 2,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests that wait for answers, over all of them.")] = 512,
    batch_tokens: Annotated[int, typer.Option(help="Padded tokens a batch.")] = 16384,
    seconds: Annotated[float, typer.Option(help="Length of a run.")] = 5,
    rounds: Annotated[int, typer.Option(help="Runs on each server, in turn.")] = 3,
) -> None:
    """Prints requests a second, latencies, and how many cores each part of the server took, and the busiest load
    generator."""
    end_on_sigterm()
    texts = [sample.text for sample in read_samples(data)]
    machine = describe_machine()
    print(
        f"{machine.cpu}, {machine.cores} cores; {load_generators} load generators, {in_flight} in flight\n", flush=True
    )
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        options = ["--bundle", bundle] if bundle else ["--bundle", str(save_free_model(folder)), "--threads", "1"]
        options += ["--backend", backend, "--width", "1", "--max-batch-tokens", str(batch_tokens)]
        serve = [sys.executable, "-m", "server.cli", "serve", *options, "--http-workers"]
        servers = {
            count: stack.enter_context(running([*serve, str(count)], folder / f"{count}.log"))
            for count in sorted(set(http_workers))
        }
        load = stack.enter_context(generators(load_generators))
        for server in servers.values():
            load.closed_loop(server.port, texts, in_flight, seconds, rounds)
        print_row(HEAD)
        print_row(["---:"] * len(HEAD))
        for number in range(rounds):
            for count, server in servers.items():
                before = _parts(server)
                run = load.closed_loop(server.port, texts, in_flight, seconds, number)
                spent = [end - start for start, end in zip(before, _parts(server), strict=True)]
                found = summarize(run, [None] * len(texts), {})
                if found.errors:
                    raise RuntimeError(f"requests were not answered: {found.errors}")
                # A run's last answers come after its time.
                cores = [part / len(run.outcomes) * found.throughput for part in spent]
                shares = [f"{share:.2f}" for share in (*cores, found.cpu_share)]
                print_row([f"{count}", f"{found.throughput:,.0f}", milliseconds(found.p50_seconds), *shares])
                for limit in generator_limits(found):
                    say(f"warning: a load generator was a bottleneck: {limit}")
        for count in servers:
            raise_errors(folder / f"{count}.log")


def _parts(server: Server) -> tuple[float, float, float]:
    return by_part(thread_seconds(server.pid), engine_of(server))


if __name__ == "__main__":
    typer.run(main)
