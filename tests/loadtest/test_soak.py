"""Every request of a soak is accounted for once, against a real server that has more to do than it can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.measure import OK, Outcome
from loadtest.soak.drive import _calm, mixed
from loadtest.soak.tally import Tally, read_memory
from tests.tiny import WORDS

PLAIN = ["good", "bad"]


def outcome(sample: int, status: str, label: str | None = None, retry_after: bool = False) -> Outcome:
    return Outcome(sample, 1.0, 1.5, 2.0, status, label, "n1-l6" if label else None, retry_after=retry_after)


def test_every_outcome_is_counted_once() -> None:
    tally = Tally(PLAIN)
    tally.add(
        [
            outcome(0, OK, "good"),
            outcome(1, OK, "good"),
            outcome(2, OK, "good"),
            outcome(3, OK, "good"),
            outcome(0, "429", retry_after=True),
            outcome(0, "429"),
            outcome(0, "504"),
            outcome(0, "timeout"),
        ],
        start=19.5,
        late=0.25,
    )
    assert tally.sent == 8
    assert (tally.answered, tally.refused, tally.expired) == (4, 1, 1)
    assert tally.other == {"429 without Retry-After": 1, "timeout": 1}
    # Of the guaranteed answers the first is the plain model's; of the exact ones that of text 0, which is sample 2.
    assert (tally.agreeing, tally.guaranteed) == (1, 2)
    assert (tally.equal, tally.exact) == (1, 2)
    assert tally.agreement == 0.5
    assert list(tally.admitted) == [1.25] * 5
    assert tally.quantile(0.99) == 1.25
    assert tally.last_done == 21.75
    assert {number: (window.sent, window.answered) for number, window in tally.windows.items()} == {2: (8, 4)}


def test_memory_that_grows_shows() -> None:
    memory = read_memory([(second, 100 + 2 * second) for second in range(8)])
    assert (memory.first, memory.last, memory.peak) == (101, 113, 114)
    assert memory.slope == pytest.approx(2)


def test_calm_is_when_fast_probes_begin_and_last() -> None:
    slow, refused = (0.0, 0.9, OK), (1.0, 0.01, "429")
    fast = [(2.0 + step, 0.01, OK) for step in range(10)]
    assert _calm([slow, refused, *fast], usual=0.01) == 2.0
    assert _calm([slow, *fast[:9]], usual=0.01) is None
    assert _calm([*fast, slow], usual=0.01) is None


def test_some_requests_ask_for_exact_answers() -> None:
    order = mixed(10, seed=0)
    samples = [next(order) for _ in range(1000)]
    assert set(samples) == set(range(20))
    assert 50 < sum(sample >= 10 for sample in samples) < 150


def test_a_short_soak_and_burst(calibrated_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typer = pytest.importorskip("typer")
    pytest.importorskip("matplotlib")
    from loadtest.soak.__main__ import main

    # Little enough fits into the queue that a test's few seconds fill it.
    monkeypatch.setenv("REVMUX_MAX_QUEUE_ITEMS", "32")
    monkeypatch.setenv("REVMUX_MAX_ITEMS_PER_REQUEST", "32")
    monkeypatch.setattr("loadtest.soak.drive.WATCH_LIMIT_SECONDS", 2.0)
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(f"{first} {second} film" for first in WORDS[:8] for second in WORDS[-8:]))
    app = typer.Typer()
    app.command()(main)
    options = ["--bundle", str(calibrated_path), "--data", str(data), "--out", str(tmp_path), "--minutes", "0.05"]
    CliRunner().invoke(app, [*options, "--load", "1.5", "--burst", "3", "--capacity-seconds", "0.5"])
    figures = json.loads((tmp_path / "soak.json").read_text())
    for part in (figures["soak"], figures["burst"]):
        assert part["sent"] == part["answered"] + part["refused"] + part["expired"] > 100
        assert part["other"] == {}
        assert part["equal"] == part["exact"] > 0
        assert part["agreeing"] >= 0.6 * part["guaranteed"] > 0
    assert figures["burst"]["refused"] > 0
    assert figures["queue_items"] == 0
    # How fast a busy machine is in these seconds decides about the rest.
    held = {promise for promise, held in figures["verdicts"].items() if held}
    assert {
        "what the client counts is what the server counts",
        "afterwards the queue is empty and a probe is answered",
        "every request was answered, refused with Retry-After or told that its time was up",
    } <= held
    assert "| guaranteed answers that are |" in (tmp_path / "soak.md").read_text()
    assert (tmp_path / "soak.png").stat().st_size > 1000
