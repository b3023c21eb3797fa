"""`python -m loadtest.drift`: a calibrated server meets text of another domain, and what its guard does about it."""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
import time
import urllib.request
from pathlib import Path
from typing import Annotated

import typer

from loadtest.client import Client
from loadtest.measure import OK
from loadtest.servers import HOST, ServerError, running
from loadtest.workload import DataError, read_samples

CONCURRENCY = 64


def main(
    bundle: Annotated[str, typer.Option(help="Calibrated bundle to serve: a name or a folder.")],
    own: Annotated[Path, typer.Option(help="Sentences like those it was calibrated on.")],
    other: Annotated[Path, typer.Option(help="Sentences of another domain.")],
    out: Annotated[Path, typer.Option(help="Folder for the server's log and `drift.md`.")],
    stretches: Annotated[int, typer.Option(min=1, help="Stretches of each of own, other and own again.")] = 4,
    stretch: Annotated[int, typer.Option(min=1, help="Requests of a stretch.")] = 1000,
    shadow_share: Annotated[float, typer.Option(help="Share of answers that are audited.")] = 0.2,
) -> None:
    """Send OWN, then OTHER, then OWN again, and read the audits after every stretch."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "server.cli", "serve", "--bundle", bundle, "--width", "max"]
    command += ["--shadow-share", str(shadow_share)]
    try:
        texts = {"own": [s.text for s in read_samples(own)], "other": [s.text for s in read_samples(other)]}
        with running(command, out / "drift.log") as server:
            rows = asyncio.run(drive(server.port, texts, stretches, stretch))
    except (DataError, ServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    head = ("texts", "requests", "failed", "audits so far", "agreement of recent ones (95% interval)", "suspended")
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    (out / "drift.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


async def drive(port: int, texts: dict[str, list[str]], stretches: int, stretch: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    orders = {domain: itertools.cycle(range(len(lines))) for domain, lines in texts.items()}
    for domain in ("own", "other", "own"):
        async with Client(port, texts[domain], CONCURRENCY) as client:
            for _ in range(stretches):
                order = itertools.islice(orders[domain], stretch)
                run = await client.closed_loop(order, CONCURRENCY, seconds=3600)
                failed = sum(outcome.status != OK for outcome in run.outcomes)
                rows.append((domain, str(len(run.outcomes)), str(failed), *await asyncio.to_thread(_audits, port)))
    return rows


def _audits(port: int) -> tuple[str, str, str]:
    """Audits, agreement and whether a cascade is suspended, once no audit is left that waits for the device."""
    read = _read(port)
    while True:
        time.sleep(0.3)
        again = _read(port)
        if again == read:
            return read
        read = again


def _read(port: int) -> tuple[str, str, str]:
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as response:
        text = response.read().decode()

    def values(name: str) -> list[float]:
        found = re.findall(rf"^{name}{{([^}}]*)}} (\S+)$", text, re.MULTILINE)
        return [float(value) for labels, value in found if 'quality="fast"' not in labels]

    agreement, low, high = (values(f"revmux_shadow_agreement{end}") for end in ("", "_low", "_high"))
    intervals = [f"{a:.1%} ({b:.1%} to {c:.1%})" for a, b, c in zip(agreement, low, high, strict=True)]
    suspended = "yes" if any(values("revmux_cascade_suspended")) else "no"
    return f"{sum(values('revmux_shadow_answers_total')):.0f}", ", ".join(intervals) or "-", suspended


if __name__ == "__main__":
    typer.run(main)
