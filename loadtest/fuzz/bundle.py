"""`python -m loadtest.fuzz.bundle`: coverage-guided fuzzing of the bundle loader, by Atheris in its own process."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

HANG_SECONDS = 30
"""Of one input; libFuzzer then ends the process and keeps the input."""
MAX_RSS_MB = 4096


def main(
    bundle: Annotated[Path, typer.Option(help="Folder of a tiny bundle, whose parts are made malformed.")],
    out: Annotated[Path, typer.Option(help="Folder for the report, and for what ended in anything but a RevmuxError.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="How long to go on.")] = 5,
    seed: Annotated[int, typer.Option(min=1, help="Other seeds change other things.")] = 1,
) -> None:
    """Load malformed copies of BUNDLE until the time is up. Exit codes: 0 nothing was found, 1 something was."""
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * minutes
    executed, coverage, ended = 0, 0, 0
    with tempfile.TemporaryDirectory() as corpus:
        while (left := int(deadline - time.monotonic())) > 0:
            log = out / f"atheris-{ended}.log"
            options = [f"-max_total_time={left}", f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MAX_RSS_MB}"]
            options += [
                f"-artifact_prefix={out}/",
                f"-seed={seed + ended}",
                "-max_len=50000",
                "-len_control=0",
                "-print_final_stats=1",
            ]
            command = [sys.executable, "-m", "loadtest.fuzz.bundle_target", str(bundle), str(out), *options, corpus]
            with log.open("w") as output:
                failed = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
            text = log.read_text(errors="replace")
            executed += max(
                map(int, re.findall(r"^(?:#|stat::number_of_executed_units: )(\d+)", text, re.MULTILINE)), default=0
            )
            coverage = max([coverage, *map(int, re.findall(r" cov: (\d+)", text))])
            if failed and not list(out.glob("timeout-*")) + list(out.glob("oom-*")) + list(out.glob("crash-*")):
                print(f"error: the fuzzer did not run:\n{text[-2000:]}", file=sys.stderr)
                raise typer.Exit(1)
            ended += 1
    found = [path.read_text().strip() for path in sorted(out.glob("*.txt"))]
    notes = [path.read_text().strip() for path in sorted(out.glob("*.note"))]
    found += [path.name for kind in ("timeout", "oom", "crash") for path in sorted(out.glob(f"{kind}-*"))]
    lines = [
        "# Malformed bundles",
        "",
        f"Atheris made and loaded {executed} malformed copies of `{bundle.name}` in {minutes:g} minutes, guided by "
        f"{coverage} branches and comparisons of `revmux_core`. **{len(found) or 'None'}** of them did anything but "
        f"load or end in a `RevmuxError` of one line, within {HANG_SECONDS} s and {MAX_RSS_MB} MiB.",
        "",
        *(f"- {finding}" for finding in found),
        *(f"- loaded, and failed when asked: {note}" for note in notes),
    ]
    (out / "bundle.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    if found:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
