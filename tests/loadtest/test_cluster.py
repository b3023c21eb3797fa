"""Ray Serve for real: two replicas on this machine, one of which is killed, and both replaced, under load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray.serve", reason="needs the extra ray")

ROOT = Path(__file__).parents[2]
IN_FLIGHT = 8


@pytest.mark.timeout(300)
def test_an_update_fails_no_request_and_a_death_at_most_those_in_flight(tmp_path: Path, tiny_bundle_path: Path) -> None:
    (tmp_path / "data.txt").write_text("a good film\nthe film is not very good .\nbad\n")
    command = [sys.executable, "-m", "loadtest.cluster", "--data", tmp_path / "data.txt", "--out", tmp_path]
    command += ["--bundle", tiny_bundle_path, "--in-flight", str(IN_FLIGHT), "--seconds", "2"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}, check=True)
    _, _, *lines = (tmp_path / "cluster.md").read_text().splitlines()
    what = {name.strip(): (int(requests), failed.strip()) for _, name, *_, requests, failed, _ in map(_cells, lines)}
    assert list(what) == ["1 replica", "2 replicas", "one of two is killed", "both are replaced"]
    assert all(requests > 0 for requests, _ in what.values())
    killed = what.pop("one of two is killed")[1]
    assert killed == "none" or int(killed.split(" x ")[0]) <= IN_FLIGHT
    assert {failed for _, failed in what.values()} == {"none"}


def _cells(line: str) -> list[str]:
    return line.split("|")
