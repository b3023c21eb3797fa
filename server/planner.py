"""Which waiting samples form the next batch, and with whom. Pure: no torch, no clock, no queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from revmux_core.plan import Group, MuxPlan
from revmux_core.points import OperatingPoint

PADDING_SHARE = 0.25
"""Share of the token budget that one batch may spend on padding before a sample is left for a later batch.

A batch pads to its longest sample, so a short one beside a long one costs as much as the long one. Up to about this
share that is cheaper than what a further batch costs before its first token.
"""


PLAIN_ONLY = 0
"""The highest mux width of a sample that not even an early exit may answer."""


class Sample(Protocol):
    """What the planner needs to know of a waiting sample."""

    @property
    def length(self) -> int:
        """Tokens, special tokens included."""

    @property
    def max_width(self) -> int:
        """Highest mux width that its request allows; `PLAIN_ONLY` allows the plain path alone."""


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """`members` are positions in the waiting line, in the order in which `plan` numbers them: 0, 1, ..."""

    members: tuple[int, ...]
    plan: MuxPlan


def served_points(points: Iterable[OperatingPoint], num_layers: int) -> tuple[OperatingPoint, ...]:
    """Of `points`, those worth serving: cheapest first, and so widest first, with the plain one last.

    For every width it is the cheapest, where that costs less than all narrower ones do; what is left over of a width
    then always has a narrower one to go to.
    """
    served = [OperatingPoint.plain(num_layers)]
    for point in sorted(points, key=lambda point: (point.width, point.ideal_cost(num_layers))):
        if point.ideal_cost(num_layers) < served[-1].ideal_cost(num_layers):
            served.append(point)
    return tuple(reversed(served))


def plan_batch(waiting: Sequence[Sample], budget: int, points: Sequence[OperatingPoint]) -> PlannedBatch:
    """Plans the next batch of `waiting` (head of the line first, not empty) at `points` (from `served_points`).

    The head is always in, so every sample is answered after at most as many batches as samples stand before it. The
    batch holds at most `budget` padded tokens (rows x longest), unless the head alone is longer. O(n log n).
    """
    members = sorted(_nearest(waiting, budget), key=lambda position: waiting[position].length)
    rows: list[int] = []
    groups: list[Group] = []
    plain = points[-1]
    for point in points:
        least = PLAIN_ONLY if point == plain else point.width
        able = [position for position in members if waiting[position].max_width >= least]
        # A group holds whole composites only; what is left over tries the next smaller width, down to plain.
        taken = able[: len(able) - len(able) % point.width]
        if taken:
            groups.append(Group(point, tuple(range(len(rows), len(rows) + len(taken)))))
            rows += taken
            left = set(members).difference(taken)
            members = [position for position in members if position in left]
    return PlannedBatch(tuple(rows), MuxPlan(tuple(groups)))


def _nearest(waiting: Sequence[Sample], budget: int) -> list[int]:
    """The head and, nearest in length first, everything that still fits; equally near samples in order of arrival."""
    head = waiting[0].length
    chosen: list[int] = []
    longest = tokens = 0
    for position in sorted(range(len(waiting)), key=lambda position: abs(waiting[position].length - head)):
        length = waiting[position].length
        padded = (len(chosen) + 1) * max(longest, length)
        padding = padded - tokens - length
        if chosen and (padded > budget or padding > PADDING_SHARE * budget):
            if (len(chosen) + 1) * longest > budget:
                break
            continue
        chosen.append(position)
        longest = max(longest, length)
        tokens += length
    return chosen
