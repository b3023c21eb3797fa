"""A plan is cut by length where that saves more than the cuts cost, and loses nobody on the way."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from revmux_core.plan import Group, MuxPlan, Part, split_by_length
from revmux_core.points import OperatingPoint

LAYERS = 6
PLAIN, TWO, EARLY = OperatingPoint.plain(LAYERS), OperatingPoint.mux(2, 3, LAYERS), OperatingPoint(1, 2, ())


@st.composite
def plans(draw: st.DrawFn) -> tuple[MuxPlan, list[int]]:
    points = draw(st.lists(st.sampled_from([(PLAIN, 0), (TWO, 0), (EARLY, 0), (PLAIN, 3)]), min_size=1, max_size=4))
    groups, count = [], 0
    for point, start in points:
        rows = point.width * draw(st.integers(1, 3))
        groups.append(Group(point, tuple(range(count, count + rows)), start))
        count += rows
    lengths = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count))
    return MuxPlan(tuple(groups)), lengths


def composites(part: Part) -> set[tuple[OperatingPoint, int, tuple[int, ...]]]:
    return {
        (group.point, group.start, tuple(part.members[row] for row in group.members[at : at + group.point.width]))
        for group in part.plan.groups
        for at in range(0, len(group.members), group.point.width)
    }


@given(plans(), st.integers(0, 300))
def test_every_composite_is_in_one_part_as_it_was(planned: tuple[MuxPlan, list[int]], part_cost: int) -> None:
    plan, lengths = planned
    parts = split_by_length(plan, lengths, part_cost, LAYERS)
    whole = composites(Part(tuple(range(len(lengths))), plan))
    assert set().union(*map(composites, parts)) == whole
    assert sum(len(composites(part)) for part in parts) == len(whole)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(1, 200))
def test_no_other_cut_costs_less(lengths: list[int], part_cost: int) -> None:
    plan = MuxPlan((Group(PLAIN, tuple(range(len(lengths)))),))
    parts = split_by_length(plan, lengths, part_cost, LAYERS)
    found = [[lengths[member] for member in part.members] for part in parts]
    ordered = sorted(lengths)

    def cost(pieces: list[list[int]]) -> int:
        return sum(part_cost + max(piece) * len(piece) for piece in pieces)

    def cut(at: tuple[int, ...]) -> list[list[int]]:
        return [ordered[begin:end] for begin, end in zip((0, *at), (*at, len(ordered)), strict=True)]

    cheapest = min(cost(cut(at)) for size in range(len(ordered)) for at in combinations(range(1, len(ordered)), size))
    assert cost(found) == cheapest
