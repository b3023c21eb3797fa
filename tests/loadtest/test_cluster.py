"""Ray Serve for real, on this machine and under load: replicas come, go, die, and are replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray.serve", reason="needs the extra ray")

ROOT = Path(__file__).parents[2]
IN_FLIGHT = 8
# How often replicas tell how much they have in flight, 10 s by default.
INTERVALS = (
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S",
)


@pytest.mark.timeout(600)
def test_none_fails_but_those_of_a_replica_that_dies(tmp_path: Path, tiny_bundle_path: Path) -> None:
    (tmp_path / "data.txt").write_text("a good film\nthe film is not very good .\nbad\n")
    command = [sys.executable, "-m", "loadtest.cluster", "--data", tmp_path / "data.txt", "--out", tmp_path]
    command += ["--bundle", tiny_bundle_path, "--in-flight", str(IN_FLIGHT), "--seconds", "1", "--scale-delay", "1"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"} | dict.fromkeys(INTERVALS, "1")
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    _, _, *lines = (tmp_path / "cluster.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [what for what, *_ in rows] == [
        "1 replica, until another is started",
        "until that has answered",
        "2 replicas",
        "an eighth in flight, until 1 replica is left",
        "1 replica",
        "`revmux serve`",
        "1 replica",
        "`revmux serve`",
        "1 replica",
        "2 replicas",
        "one of two is killed",
        "both are replaced",
    ]
    assert all(int(requests) > 0 for *_, requests, _ in rows)
    (killed,) = (failed for what, *_, failed in rows if what == "one of two is killed")
    assert killed == "none" or int(killed.split(" x ")[0]) <= IN_FLIGHT
    assert {failed for what, *_, failed in rows if what != "one of two is killed"} == {"none"}
