"""Pilots predict what they were drawn from, and a target picks the point that a user wants."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from revmux_core.errors import RevmuxError
from revmux_core.pilots import Pilot, Prediction, choose, fit, pilot_points
from revmux_core.points import OperatingPoint
from server.cli import app


def point(width: int, prefill: int) -> OperatingPoint:
    return OperatingPoint.mux(width, prefill, 6)


def test_the_fit_recovers_a_law_of_its_own_form() -> None:
    def law(at: OperatingPoint, seen: int) -> float:
        return 1 - 0.4 * 2.0 ** (-3 * at.prefill / 6) * at.width**0.5 * (seen / 1000) ** -0.3

    points = pilot_points(6, (2, 4, 8))
    predicted = fit([Pilot(at, seen, law(at, seen)) for at in points for seen in (6000, 12000)], 6)
    for at in (point(4, 3), point(2, 4), point(8, 2)):
        assert predicted(at, 100_000) == pytest.approx(law(at, 100_000), abs=1e-6)


def test_noise_never_makes_more_training_worse() -> None:
    pilots = [Pilot(at, seen, 0.95 - seen / 1e6) for at in pilot_points(6, (2, 4, 8)) for seen in (6000, 12000)]
    predicted = fit(pilots, 6)
    assert predicted(point(2, 3), 1_000_000) == pytest.approx(predicted(point(2, 3), 6000))


def test_a_target_picks_the_fastest_or_the_most_faithful_point() -> None:
    slow, fast, wild = (
        Prediction(point(2, 3), 0.98, 1.3),
        Prediction(point(4, 3), 0.96, 1.6),
        Prediction(point(8, 1), 0.8, 3.0),
    )
    assert choose([slow, fast, wild], 0.95, None) is fast
    assert choose([slow, fast, wild], None, 1.2) is slow
    with pytest.raises(RevmuxError, match=r"the best is 0\.980"):
        choose([slow, fast, wild], 0.99, None)
    with pytest.raises(RevmuxError, match=r"the best reaches 3\.00"):
        choose([slow, fast, wild], None, 4)


def test_plan_from_the_command_line(tiny_bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("".join(f"word{i % 180} film word{i % 7}\n" for i in range(240)))
    command = f"plan --bundle {tiny_bundle_path} --data {tmp_path / 'texts.txt'} --epochs 4 --json"
    result = CliRunner().invoke(app, [*command.split(), "--speedup", "0.01"], catch_exceptions=False)
    report = json.loads(result.stdout)
    assert len(report["predictions"]) == 3 * 4 + 3
    assert report["chosen"]["agreement"] == max(row["agreement"] for row in report["predictions"])
    with pytest.raises(RevmuxError, match="name one target"):
        CliRunner().invoke(app, command.split(), catch_exceptions=False)
