"""The adaptive menu as arithmetic: simulated load on a device of known speed."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revmux_core.cascade import Cascade
from revmux_core.points import OperatingPoint
from server.adaptive import AdaptiveMenu, CostModel, Rung, Timing, ladders
from server.planner import Menu

LAYERS = 6
PLAIN, EXIT, TWO = OperatingPoint.plain(LAYERS), OperatingPoint(1, 3, ()), OperatingPoint.mux(2, 3, LAYERS)
BUDGET = 1000
# Tokens a second, after a start of 1 ms: plain 10,000, then 13,000, then 20,000.
RUNGS = [
    Rung(Menu((PLAIN,)), 0.001, 1 / 10_000),
    Rung(Menu((TWO, PLAIN)), 0.001, 1 / 13_000),
    Rung(Menu((EXIT, TWO, PLAIN)), 0.001, 1 / 20_000),
]
PATIENCE = 0.02


def climbing(rungs: list[Rung]) -> AdaptiveMenu:
    """For texts that any point may answer."""
    return AdaptiveMenu(rungs[:1], rungs, BUDGET, PATIENCE)


def simulate(
    load: float, seconds: float = 60, seed: int = 0, most_waiting: float = math.inf
) -> tuple[list[int], list[float]]:
    """The rung of every batch, and every sample's wait in seconds, under Poisson arrivals of `load` x plain capacity in
    samples of 25 tokens, of which those are refused that find `most_waiting` samples waiting."""
    rng = random.Random(seed)
    adaptive = climbing(RUNGS)
    waiting: list[float] = []
    rungs, waits = [], []
    now = arrival = 0.0
    while now < seconds:
        while arrival <= now:
            adaptive.arrived(25, arrival)
            if len(waiting) < most_waiting:
                waiting.append(arrival)
            else:
                adaptive.refused(25)
            arrival += rng.expovariate(load * 10_000 / 25)
        if not waiting:
            now = arrival
            continue
        menu = adaptive.choose(25 * len(waiting), now)
        rung = next(number for number, rung in enumerate(RUNGS) if rung.menu == menu)
        batch = waiting[: BUDGET // 25]
        waiting = waiting[len(batch) :]
        now += RUNGS[rung].seconds(25 * len(batch))
        rungs.append(rung)
        waits += [now - start for start in batch]
    return rungs, waits


@pytest.mark.parametrize("load", [0.1, 0.5, 0.8])
def test_below_the_plain_capacity_answers_are_plain(load: float) -> None:
    rungs, _ = simulate(load)
    assert rungs.count(0) / len(rungs) > 0.97


@pytest.mark.parametrize("load", [1.1, 1.5, 1.9])
def test_beyond_it_throughput_follows_and_waits_stay_short(load: float) -> None:
    rungs, waits = simulate(load)
    assert len(waits) == pytest.approx(load * 10_000 / 25 * 60, rel=0.02)
    assert sorted(waits)[int(0.99 * len(waits))] < 0.4
    # It settles: far fewer changes than batches.
    assert sum(a != b for a, b in pairwise(rungs)) < 0.1 * len(rungs)


@pytest.mark.parametrize("load", [1.1, 1.5])
def test_what_a_higher_rung_could_serve_is_not_refused_for_long(load: float) -> None:
    """Where time is short admission keeps the queue below what would have the menu climb."""
    _, waits = simulate(load, most_waiting=PATIENCE * 10_000 / 25 - 1)
    assert len(waits) > 0.97 * load * 10_000 / 25 * 60


def test_a_shrinking_load_comes_down_as_far_as_what_arrives_allows() -> None:
    adaptive = climbing(RUNGS)
    adaptive.arrived(12_000, 0.0)
    assert adaptive.choose(12_000, 0.0) == RUNGS[2].menu
    # The queue is short again, but so much arrives that the plain path would fall behind; then less and less does.
    assert adaptive.choose(100, 0.01) == RUNGS[2].menu
    assert adaptive.choose(100, 0.1) == RUNGS[1].menu
    assert adaptive.choose(100, 0.5) == RUNGS[0].menu


def test_a_lone_sample_after_a_pause_runs_plain() -> None:
    adaptive = climbing(RUNGS)
    adaptive.arrived(40_000, 0.0)
    adaptive.choose(40_000, 0.0)
    assert adaptive.choose(25, 5.0) == RUNGS[0].menu


@pytest.mark.parametrize(("tokens", "rung"), [(100, 0), (300, 0), (500, 1), (5000, 1)])
def test_what_is_too_little_for_a_cascade_to_gain_runs_plain_however_long_it_takes(tokens: int, rung: int) -> None:
    # 300 tokens take 31 ms plainly and 35 ms so, 500 take 51 and 45.
    rungs = [RUNGS[0], Rung(Menu((EXIT, PLAIN)), 0.02, 1 / 20_000)]
    assert climbing(rungs).choose(tokens, 0.0) == rungs[rung].menu


def test_ladders_go_from_plain_to_everything() -> None:
    costs = CostModel({PLAIN: (0, 1e-4, 0), TWO: (0, 0.75e-4, 0), EXIT: (0, 0.5e-4, 0)})
    exits, two = Cascade((EXIT,), (0.9,), LAYERS), Cascade((TWO,), (0.9,), LAYERS)
    expected = {1: 0.6, 2: 0.8}
    menu = Menu((EXIT, TWO, PLAIN), (exits, two), costs=expected)
    guaranteed, fast = ladders(menu, costs, BUDGET, 32)
    assert [rung.menu for rung in guaranteed] == [
        Menu((PLAIN,), costs=expected),
        Menu((PLAIN,), (two,), costs=expected),
        Menu((PLAIN,), (exits, two), costs=expected),
    ]
    assert [rung.menu for rung in fast] == [
        Menu((PLAIN,), costs=expected),
        Menu((TWO, PLAIN), costs=expected),
        Menu((EXIT, TWO, PLAIN), costs=expected),
    ]
    assert [rung.seconds(BUDGET) / BUDGET for rung in guaranteed] == pytest.approx([1e-4, 0.8e-4, 0.6e-4])
    assert [rung.seconds(BUDGET) / BUDGET for rung in fast] == pytest.approx([1e-4, 0.75e-4, 0.5e-4])


@pytest.mark.parametrize(
    ("fixed", "step_tokens", "rungs"), [(0.0, 1.0, 2), (0.039, 1.0, 2), (0.041, 1.0, 1), (0.041, 0.0, 2)]
)
def test_a_cascade_whose_steps_cost_more_to_begin_than_they_save_has_no_rung(
    fixed: float, step_tokens: float, rungs: int
) -> None:
    # Of the 100 ms of a plain batch's layers the cascade's take 60; it has two steps, each with a start like plain's.
    costs = CostModel({PLAIN: (fixed, 1e-4, 0), EXIT: (fixed, 0.5e-4, 0)})
    menu = Menu((PLAIN,), (Cascade((EXIT,), (0.9,), LAYERS),), costs={1: 0.6}, step_tokens=step_tokens)
    assert list(map(len, ladders(menu, costs, BUDGET, 32))) == [rungs, 1]


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 0.2)), min_size=1, max_size=20))
def test_what_is_fast_for_others_keeps_nobody_from_a_cascade(batches: list[tuple[int, float]]) -> None:
    # An exit that anybody else may take is twice as fast as the cascade that begins with it.
    costs = CostModel({PLAIN: (0.001, 1e-4, 0), EXIT: (0.001, 0.3e-4, 0)})
    cascade = Cascade((EXIT,), (0.9,), LAYERS)
    guaranteed, fast = ladders(Menu((EXIT, PLAIN), (cascade,), costs={1: 0.8}), costs, BUDGET, 32)
    both, alone = (AdaptiveMenu(guaranteed, other, BUDGET, PATIENCE) for other in (fast, fast[:1]))
    now = 0.0
    for tokens, passed in batches:
        now += passed
        for adaptive in (both, alone):
            adaptive.arrived(tokens, now)
        assert both.choose(tokens, now).cascades == alone.choose(tokens, now).cascades
    assert AdaptiveMenu(guaranteed, fast, BUDGET, PATIENCE).choose(BUDGET, 0.0).cascades == (cascade,)


@given(
    st.floats(0, 0.01),
    st.floats(1e-7, 1e-4),
    st.floats(0, 1e-7),
    st.lists(st.floats(0.95, 1.05), min_size=9, max_size=9),
)
def test_the_cost_model_finds_what_made_the_timings(
    fixed: float, linear: float, quadratic: float, noise: list[float]
) -> None:
    shapes = [(rows, length) for length in (8, 32, 128) for rows in (1, 4, max(1, BUDGET // length))]
    timings = [
        Timing(PLAIN, rows, length, factor * (fixed + rows * length * (linear + quadratic * length)))
        for (rows, length), factor in zip(shapes, noise, strict=True)
    ]
    model = CostModel.fit(timings)
    for timing in timings:
        assert model.seconds(PLAIN, timing.rows * timing.length, timing.length) == pytest.approx(
            timing.seconds, rel=0.25
        )
    assert min(model.terms[PLAIN]) >= 0
