"""`python -m loadtest.faults`: breaks servers of a bundle, one fault after the other, and writes what clients saw."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from loadtest.command import end_on_sigterm, say
from loadtest.faults import bundles, clients, clock, killed, report
from loadtest.faults.load import Known, apart, ask
from loadtest.faults.stage import Finding, SkippedError, Stage
from loadtest.machine import describe_machine
from loadtest.scaling.served import LimitError
from loadtest.servers import ServerError
from loadtest.workload import DataError, read_samples

CASES: dict[str, Callable[[Stage], Awaitable[Finding]]] = {
    "engine-killed": killed.engine_killed,
    "frontend-killed": killed.front_end_killed,
    "engine-stopped": killed.engine_stopped,
    "frontend-stopped": killed.front_end_stopped,
    "out-of-memory": killed.out_of_memory,
    "nan": bundles.nan,
    "slow-client": clients.slow_clients,
    "disappearing-client": clients.disappearing_clients,
    "half-open": clients.half_open,
    "disk-full": bundles.disk_full,
    "corrupted-bundle": bundles.corrupted_bundle,
    "clock-jump": clock.clock_jump,
}


def main(
    bundle: Annotated[str, typer.Option(help="Bundle to serve: a built-in name or a folder.")],
    data: Annotated[Path, typer.Option(help="Sentences to send: .tsv, .csv or .txt.")],
    out: Annotated[Path, typer.Option(help="Folder for the page (Markdown, JSON), logs and copies of the bundle.")],
    base: Annotated[Path | None, typer.Option(help="Folder of the bundle's base model.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help=f"Case to run; repeatable. Default: {', '.join(CASES)}.")
    ] = None,
) -> None:
    """Break servers of BUNDLE while they are driven with the sentences of DATA, and write what clients saw.

    A case that is not run anew stays as the page in OUT has it. Exit codes: 0 every case passed or cannot be run here,
    1 one failed, 2 the arguments or the data cannot be used.
    """
    end_on_sigterm()
    chosen = only or list(CASES)
    unknown = set(chosen) - set(CASES)
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}", param_hint="--only")
    out.mkdir(parents=True, exist_ok=True)
    try:
        texts = [sample.text for sample in read_samples(data)]
        stage = Stage(_folder_of(bundle), base, data, out, ())
        known = asyncio.run(_known(stage, texts))
    except DataError as error:
        say(f"error: {error}")
        raise typer.Exit(2) from error
    except ServerError as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error
    say(f"{len(known)} texts have answers of their own")
    stage = Stage(stage.bundle, base, data, out, known)
    results = report.read(out)
    for name in chosen:
        result = asyncio.run(_run(name, stage))
        results[name] = asdict(result)
        ordered = {case: results[case] for case in CASES if case in results}
        command = f"python -m loadtest.faults --bundle {Path(bundle).name} --data {data.name} --out OUT"
        report.write(ordered, describe_machine(), command, out)
        say(f"{name}: {result.outcome}" + "".join(f"\n  {note}" for note in result.notes))
    say(f"wrote {out / report.PAGE}")
    if any(results[name]["outcome"] == "failed" for name in chosen):
        raise typer.Exit(1)


async def _known(stage: Stage, texts: list[str]) -> list[Known]:
    """The texts that have an answer of their own."""
    async with stage.serving("plain", stage.command("--width", "1")) as server:
        return apart(await ask(server.port, texts))


async def _run(name: str, stage: Stage) -> report.Result:
    try:
        return report.result_of(name, await CASES[name](stage))
    except (SkippedError, LimitError) as error:
        return report.skipped(name, str(error))
    except (ServerError, TimeoutError, OSError) as error:
        return report.result_of(name, Finding(name, problems=[f"{type(error).__name__}: {error}"]))


def _folder_of(bundle: str) -> Path:
    """Raises `DataError` where there is no such bundle."""
    if Path(bundle).is_dir():
        return Path(bundle).resolve()
    # Where the built-in ones are: this package imports neither the server nor what it serves.
    spec = importlib.util.find_spec("revmux_core")
    for place in spec.submodule_search_locations or () if spec is not None else ():
        if (Path(place) / "bundles" / bundle).is_dir():
            return Path(place) / "bundles" / bundle
    raise DataError(f"there is no bundle {bundle}")


if __name__ == "__main__":
    typer.run(main)
