"""Whole files on a Ray cluster: two workers on this machine, one of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_jobs import ROOT, job_of, read, run, write

from loadtest.processes import tree

pytest.importorskip("ray.data", reason="needs the extra ray")


def workers(driver: int) -> list[int]:
    """The processes that hold a bundle, among all that `driver` has started."""
    found = []
    for process in tree(driver):
        name = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        if name.startswith(b"ray::") and b"_Actor" in name:
            found.append(process.pid)
    return found


def start(source: Path, out: Path, bundle: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "server.cli", "classify", source, out, "--bundle", bundle, "--width", "2"]
    command += ["--chunk-rows", "20", "--device", "cpu", "--ray", "local", "--workers", "2", *options]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_worker_that_dies_loses_and_doubles_nothing(tmp_path: Path, tiny_bundle_path: Path) -> None:
    count = 8000
    rows = [{"text": f"word{nth % 180} film word{nth * 7 % 180}", "id": nth} for nth in range(count)]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    parts = tmp_path / "out.jsonl.parts"
    process = start(source, out, tiny_bundle_path)
    while len(list(parts.glob("*.jsonl"))) < 20 or len(workers(process.pid)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    made = len(list(parts.glob("*.jsonl")))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert made < count / 20
    # Among what Ray says of the worker.
    assert f"wrote {out}, {count} rows, {count} of them now" in output.splitlines()
    assert [row["id"] for row in read(out)] == list(range(count))
    assert not parts.exists()
    # The same as without a cluster, whoever made which part.
    alone = job_of(source, tmp_path / "alone.jsonl", tiny_bundle_path)
    run(alone, chunk_rows=20)
    assert out.read_bytes() == alone.sink.out.read_bytes()


def test_what_a_worker_cannot_do_is_said(tmp_path: Path, tiny_bundle_path: Path) -> None:
    source = write(tmp_path / "in.csv", [{"text": "a good film"}])
    process = start(source, tmp_path / "out.csv", tiny_bundle_path, "--quality", "guaranteed")
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "revmux: bundle tiny is calibrated at no width" in errors
