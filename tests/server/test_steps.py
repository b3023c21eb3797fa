"""A batch's way through its cascades as arithmetic: who goes on, where, and when a cascade is cut short."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revmux_core.cascade import Cascade
from revmux_core.plan import Group, MuxPlan
from revmux_core.points import OperatingPoint
from server.planner import Menu
from server.steps import Steps
from tests.server.test_planner import Waiting

LAYERS = 6
PLAIN = OperatingPoint.plain(LAYERS)
EXITS = tuple(OperatingPoint(1, prefill, ()) for prefill in (2, 3, 4))
CASCADE = Cascade(EXITS, (0.9, 0.8, 0.7), LAYERS)
LENGTH = 20


def menu(passed: Sequence[float], step_tokens: float) -> Menu:
    return Menu((PLAIN,), (CASCADE,), passed={1: passed}, step_tokens=step_tokens)


@given(st.integers(1, 2), st.floats(0, 1e4), st.tuples(*[st.floats(0, 1)] * 3), st.floats(0, 1e3))
def test_a_step_gains_what_running_it_saves_at_best(
    level: int, tokens: float, passed: tuple[float, ...], step: float
) -> None:
    def cost(exits: int) -> float:
        """Of so many exits from `level` on, and the plain path for what they pass on, which begins once either way."""
        left, at, total = tokens, EXITS[level - 1].prefill, 0.0
        for point, share in list(zip(EXITS, passed, strict=True))[level : level + exits]:
            total += step + left * (point.prefill - at) / LAYERS
            left, at = left * share, point.prefill
        return total + left * (LAYERS - at) / LAYERS

    best = min(cost(exits) for exits in range(1, len(EXITS) - level + 1))
    assert menu(passed, step).gain(CASCADE, level, tokens) == pytest.approx(cost(0) - best, abs=1e-6)


def test_every_exit_asks_for_as_much_as_its_own_threshold() -> None:
    steps = Steps([Waiting(LENGTH, guaranteed=True)] * 4, MuxPlan((Group(EXITS[0], (0, 1, 2, 3)),)), menu([0.5] * 3, 0))
    for sure in (0.9, 0.8, 0.7):
        assert steps.judged
        after = steps.advance([sure, *[sure - 0.01] * (len(steps.step.members) - 1)])
        assert after is not None
    assert not steps.judged
    assert steps.advance([0.0]) is None
    assert steps.points == [*EXITS, PLAIN]


def test_nobody_asks_how_sure_a_point_is_that_no_cascade_holds() -> None:
    steps = Steps([Waiting(LENGTH, guaranteed=False)], MuxPlan((Group(EXITS[0], (0,)),)), menu([0.5] * 3, 0))
    assert not steps.judged
    assert steps.advance([0.0]) is None


def test_what_nothing_is_known_of_is_run_to_its_end() -> None:
    assert Menu((PLAIN,), (CASCADE,), step_tokens=1e9).gain(CASCADE, 1, 1.0) == 0


@pytest.mark.parametrize(("texts", "points"), [(30, EXITS), (9, EXITS[:2]), (3, EXITS[:1])])
def test_too_few_go_straight_to_the_plain_path(texts: int, points: tuple[OperatingPoint, ...]) -> None:
    """Half of them leave at an exit: of 9 the third would get 2, save 2 x 20 x 0.5 x 2 / 6 tokens, 7, and cost 20."""
    steps = Steps(
        [Waiting(LENGTH, guaranteed=True)] * texts,
        MuxPlan((Group(EXITS[0], tuple(range(texts))),)),
        menu([0.5] * 3, 20),
    )
    ran = [EXITS[0]]
    after, unsure = steps.step, texts
    while after.plan.groups[0].point != PLAIN:
        unsure = unsure // 2 or 1
        going_on = steps.advance([0.1] * unsure + [1.0] * (len(after.members) - unsure))
        assert going_on is not None
        after = going_on
        (group,) = after.plan.groups
        assert group.start == ran[-1].prefill
        ran.append(group.point)
    assert tuple(ran) == (*points, PLAIN)
    assert steps.advance([0.1] * unsure) is None
    # By the plain path either way, which is what the promise is about.
    escalated = [number for number in range(texts) if steps.escalated(number)]
    assert len(escalated) == unsure
    assert steps.shortened == (set() if points == EXITS else set(escalated))
