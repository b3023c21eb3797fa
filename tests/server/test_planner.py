"""The planner as arithmetic: who is in the next batch, and in which composites."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revmux_core.cascade import Cascade
from revmux_core.points import OperatingPoint
from server.planner import PADDING_SHARE, PLAIN_ONLY, Menu, plan_batch, served_cascades, served_points

LAYERS = 6
PLAIN, TWO, FOUR = OperatingPoint.plain(LAYERS), OperatingPoint.mux(2, 3, LAYERS), OperatingPoint.mux(4, 3, LAYERS)
EXIT = OperatingPoint(1, 3, ())
POINTS = Menu((FOUR, TWO, PLAIN))
EARLY, LATER = OperatingPoint(1, 2, ()), OperatingPoint(1, 4, ())
CERTIFIED = Menu(
    (FOUR, PLAIN),
    (Cascade((EARLY, LATER), (0.9, 0.9), LAYERS), Cascade((TWO,), (0.8,), LAYERS), Cascade((FOUR,), (0.7,), LAYERS)),
)


@dataclass(frozen=True)
class Waiting:
    length: int
    max_width: int = 4
    guaranteed: bool = False
    audited: bool = False
    scope: str = ""
    start: int = 0
    resumes_at: OperatingPoint | None = None


def lines(max_size: int = 60) -> st.SearchStrategy[list[Waiting]]:
    sample = st.builds(Waiting, st.integers(1, 128), st.sampled_from([PLAIN_ONLY, 1, 2, 3, 4, 9]))
    return st.lists(sample, min_size=1, max_size=max_size)


def widths_by_member(waiting: list[Waiting], budget: int) -> dict[int, int]:
    batch = plan_batch(waiting, budget, POINTS)
    return {batch.members[row]: group.point.width for group in batch.plan.groups for row in group.members}


@given(lines(), st.integers(1, 600))
def test_a_batch_holds_the_head_keeps_its_budget_and_nobody_twice(waiting: list[Waiting], budget: int) -> None:
    batch = plan_batch(waiting, budget, POINTS)
    assert 0 in batch.members
    assert len(set(batch.members)) == len(batch.members) == batch.plan.samples
    members = [waiting[member] for member in batch.members]
    shares = [POINTS.share(member) for member in members]
    padded = sum(shares) * max(member.length for member in members)
    assert len(members) == 1 or padded <= budget * (1 + 1e-9)
    real = sum(share * member.length for share, member in zip(shares, members, strict=True))
    assert padded - real <= PADDING_SHARE * budget * (1 + 1e-9)


@given(lines(), st.integers(1, 600))
def test_a_device_that_packs_gets_the_line_as_it_stands(waiting: list[Waiting], budget: int) -> None:
    members = sorted(plan_batch(waiting, budget, POINTS, packs=True).members)
    assert members == list(range(len(members)))
    costs = [POINTS.share(sample) * sample.length for sample in waiting]
    most = budget * (1 + 1e-9)
    assert len(members) == 1 or sum(costs[: len(members)]) <= most
    assert len(members) == len(waiting) or sum(costs[: len(members) + 1]) > most


@given(lines(), st.integers(1, 600))
def test_no_composite_is_wider_than_allowed_and_few_are_left_over(waiting: list[Waiting], budget: int) -> None:
    widths = widths_by_member(waiting, budget)
    assert all(width == 1 or width <= waiting[member].max_width for member, width in widths.items())
    for point in (FOUR, TWO):
        left = [m for m, width in widths.items() if width < point.width <= waiting[m].max_width]
        assert len(left) < point.width


@given(lines(max_size=40), st.integers(1, 400))
def test_nobody_starves(waiting: list[Waiting], budget: int) -> None:
    """Whoever stands at position k is answered in batch k + 1 at the latest."""
    line = list(range(len(waiting)))
    for batch in range(1, len(waiting) + 1):
        members = plan_batch([waiting[i] for i in line], budget, POINTS).members
        gone = {line[member] for member in members}
        line = [i for i in line if i not in gone]
        assert all(i >= batch for i in line)
        if not line:
            return
    pytest.fail("someone was never planned")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_what_fits_with_little_padding_runs_at_once(lengths: list[int]) -> None:
    waiting = [Waiting(length) for length in lengths]
    assert len(plan_batch(waiting, 4 * 30 * 40, POINTS).members) == len(lengths)


def test_composites_are_of_similar_length() -> None:
    waiting = [Waiting(length) for length in (9, 30, 8, 31, 29, 10, 11, 28)]
    batch = plan_batch(waiting, 1024, POINTS)
    composites = [sorted(waiting[m].length for m in batch.members[start : start + 4]) for start in (0, 4)]
    assert composites == [[8, 9, 10, 11], [28, 29, 30, 31]]


def test_left_over_samples_go_down_a_width_in_the_same_batch() -> None:
    batch = plan_batch([Waiting(8)] * 7, 1024, POINTS)
    assert [(group.point.width, len(group.members)) for group in batch.plan.groups] == [(4, 4), (2, 2), (1, 1)]


def test_a_far_longer_sample_waits_rather_than_pad_everyone() -> None:
    waiting = [Waiting(8), Waiting(500), Waiting(9), Waiting(10)]
    assert sorted(plan_batch(waiting, 1024, POINTS).members) == [0, 2, 3]


def test_equally_near_samples_join_in_order_of_arrival() -> None:
    assert sorted(plan_batch([Waiting(10)] * 9, 40, Menu((PLAIN,))).members) == [0, 1, 2, 3]


def test_samples_that_run_few_layers_are_many_to_a_batch() -> None:
    assert len(plan_batch([Waiting(10)] * 20, 40, Menu((EXIT, PLAIN))).members) == 8
    # Four of six layers are behind these.
    resumed = [Waiting(10, guaranteed=True, start=4, resumes_at=PLAIN)] * 20
    assert len(plan_batch(resumed, 40, CERTIFIED).members) == 12


def test_the_cheapest_point_of_each_width_is_served_widest_first() -> None:
    deep = OperatingPoint.mux(2, 5, LAYERS)
    assert served_points([PLAIN, TWO, deep, FOUR], LAYERS) == (FOUR, TWO, PLAIN)


def test_a_composite_that_costs_no_less_than_an_early_exit_is_not_served() -> None:
    shallow, exit_four = OperatingPoint.mux(4, 1, LAYERS), OperatingPoint(1, 4, ())
    assert served_points([PLAIN, EXIT, exit_four, TWO, FOUR], LAYERS) == (EXIT, PLAIN)
    assert served_points([PLAIN, EXIT, TWO, shallow], LAYERS) == (shallow, EXIT, PLAIN)


def test_an_early_exit_takes_what_is_left_over_but_not_what_must_run_plain() -> None:
    waiting = [Waiting(8, 1), Waiting(8, 4), Waiting(8, PLAIN_ONLY)]
    batch = plan_batch(waiting, 1024, Menu((EXIT, PLAIN)))
    points = {batch.members[row]: group.point for group in batch.plan.groups for row in group.members}
    assert points == {0: EXIT, 1: EXIT, 2: PLAIN}


@given(
    st.lists(
        st.one_of(
            st.builds(Waiting, st.integers(1, 40), st.sampled_from([PLAIN_ONLY, 1, 2, 4]), st.booleans()),
            st.builds(
                lambda length, resumed: Waiting(length, 4, True, False, "", *resumed),
                st.integers(1, 40),
                st.sampled_from([(2, LATER), (4, PLAIN), (3, PLAIN)]),
            ),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_everyone_runs_only_where_quality_and_escalation_let_them(waiting: list[Waiting]) -> None:
    batch = plan_batch(waiting, 10**6, CERTIFIED)
    for group in batch.plan.groups:
        for row in group.members:
            sample = waiting[batch.members[row]]
            assert group.start == sample.start
            if sample.resumes_at is not None:
                assert group.point == sample.resumes_at
            elif group.point != PLAIN:
                assert group.point in ((EARLY, TWO, FOUR) if sample.guaranteed else (FOUR,))
                assert group.point.width <= sample.max_width


def test_fast_and_guaranteed_samples_share_composites_of_one_point() -> None:
    waiting = [Waiting(8), Waiting(8, guaranteed=True), Waiting(8), Waiting(8, guaranteed=True)]
    menu = Menu((FOUR, PLAIN), (Cascade((FOUR,), (0.7,), LAYERS),))
    assert [group.point for group in plan_batch(waiting, 1024, menu).plan.groups] == [FOUR]


def test_a_suspended_cascade_is_open_to_audited_samples_only() -> None:
    menu = replace(CERTIFIED, suspended=frozenset({1}))
    waiting = [Waiting(8, 1, guaranteed=True), Waiting(8, 1, guaranteed=True, audited=True)]
    groups = plan_batch(waiting, 1024, menu).plan.groups
    assert [(group.point, len(group.members)) for group in groups] == [(EARLY, 1), (PLAIN, 1)]


def test_a_wider_cascade_is_served_only_where_it_is_faster() -> None:
    exits, two, four = CERTIFIED.cascades
    assert served_cascades([(two, 1.2), (exits, 1.9), (four, 1.4)]) == (exits,)
    assert served_cascades([(four, 1.4), (two, 1.2)]) == (two, four)
    assert served_cascades([(two, 0.9)]) == ()


@given(st.lists(st.builds(Waiting, st.integers(1, 40), scope=st.sampled_from("abc")), min_size=1, max_size=40))
def test_no_composite_crosses_a_scope_and_few_are_left_over(waiting: list[Waiting]) -> None:
    batch = plan_batch(waiting, 10**6, POINTS)
    plain = {"a": 0, "b": 0, "c": 0}
    for group in batch.plan.groups:
        scopes = [waiting[batch.members[row]].scope for row in group.members]
        for at in range(0, len(scopes), group.point.width):
            assert len(set(scopes[at : at + group.point.width])) == 1
        if group.point == PLAIN:
            for scope in scopes:
                plain[scope] += 1
    assert all(count < 2 for count in plain.values())
