"""Plans: which samples run at which operating point, and with whom. Pure: no torch, no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from revmux_core.points import OperatingPoint


class Tokens(msgspec.Struct, frozen=True):
    """One tokenized sample: ids of shape `[T]`, special tokens included, never padded.

    `type_ids` (same length) tells the two texts of a pair apart; it is None where all are 0, as those of a text alone
    are, and for models that have no segments. Where every word is answered, `words` has the positions of their first
    word pieces, ascending, and `spans` where they begin and end in the text, in characters; the latter is known only
    where texts are.
    """

    ids: Sequence[int]
    type_ids: Sequence[int] | None = None
    words: Sequence[int] | None = None
    spans: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Group:
    """Samples of one operating point: every run of `point.width` consecutive members is one composite.

    Members are indices into the list of samples that the plan was made for. The first `start` layers were already run
    on them: they go on from their `Prefilled` states.
    """

    point: OperatingPoint
    members: tuple[int, ...]
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.point.prefill:
            raise ValueError(f"a group of {self.point.name} cannot start after {self.start} layers")
        if not self.members or len(self.members) % self.point.width:
            raise ValueError(
                f"a group of width {self.point.width} needs a positive multiple of it as members, "
                f"got {len(self.members)}"
            )

    @property
    def composites(self) -> int:
        return len(self.members) // self.point.width

    def partners(self) -> list[tuple[int, ...]]:
        """The members, composite by composite."""
        width = self.point.width
        return [self.members[start : start + width] for start in range(0, len(self.members), width)]


@dataclass(frozen=True, slots=True)
class MuxPlan:
    """One batch: groups that together hold every sample exactly once.

    Raises `ValueError` when a sample is missing or planned twice, so that no plan can lose or mix up an answer.
    """

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        order = self.order
        if not order:
            raise ValueError("a plan needs at least one group")
        if sorted(order) != list(range(len(order))):
            raise ValueError("a plan must hold every sample 0..n-1 exactly once")

    @property
    def order(self) -> tuple[int, ...]:
        """Sample indices in the order in which their rows stand in the batch."""
        return tuple(member for group in self.groups for member in group.members)

    @property
    def samples(self) -> int:
        return sum(len(group.members) for group in self.groups)

    @property
    def composites(self) -> int:
        """Composites of width 2 or more."""
        return sum(group.composites for group in self.groups if group.point.width > 1)


def places(order: Sequence[int]) -> np.ndarray | None:
    """Where each of the numbers 0, 1, ... stands in `order`, `[S]`; None where that is their own order, as the server's
    planner has it, so that nothing need be moved."""
    return None if list(order) == list(range(len(order))) else np.argsort(order)


@dataclass(frozen=True, slots=True)
class Part:
    """A share of a plan that is padded to its own longest sample: `plan` numbers the samples `members` from 0 on."""

    members: tuple[int, ...]
    plan: MuxPlan


def split_by_length(plan: MuxPlan, lengths: Sequence[int], part_cost: float, num_layers: int) -> list[Part]:
    """Parts of `plan`, shortest samples first, that together cost least.

    A part costs its padded tokens on the plain path (its longest sample x its samples x their share of the layers)
    and `part_cost` more of them for being one. `lengths` are those of the plan's samples. Composites stay whole.
    Exact, by dynamic programming over the distinct lengths; O(n log n + d^2).
    """
    if math.isinf(part_cost):
        return [Part(tuple(range(plan.samples)), plan)]
    units = sorted(
        (
            (max(lengths[member] for member in members), number, group, members)
            for number, group in enumerate(plan.groups)
            for members in group.partners()
        ),
        key=lambda unit: unit[:2],
    )
    weights: dict[int, float] = {}
    for length, _, group, _ in units:
        point = group.point
        layers = point.width * (point.prefill - group.start) + len(point.upper)
        weights[length] = weights.get(length, 0.0) + layers / num_layers
    longest = _cuts(list(weights), list(weights.values()), part_cost)
    parts = []
    done = 0
    for most in longest:
        members: list[int] = []
        groups: dict[int, list[int]] = {}
        while done < len(units) and units[done][0] <= most:
            _, number, _, own = units[done]
            groups.setdefault(number, []).extend(range(len(members), len(members) + len(own)))
            members += own
            done += 1
        rebuilt = tuple(
            Group(plan.groups[number].point, tuple(rows), plan.groups[number].start)
            for number, rows in sorted(groups.items())
        )
        parts.append(Part(tuple(members), MuxPlan(rebuilt)))
    return parts


def _cuts(lengths: Sequence[int], weights: Sequence[float], part_cost: float) -> list[int]:
    """The longest length of each part, of ascending `lengths` with their `weights`."""
    before = np.concatenate([[0.0], np.cumsum(weights)])
    best = np.zeros(len(lengths) + 1)
    begins = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        costs = best[:end] + part_cost + lengths[end - 1] * (before[end] - before[:end])
        begins[end] = int(costs.argmin())
        best[end] = costs[begins[end]]
    ends = []
    end = len(lengths)
    while end:
        ends.append(lengths[end - 1])
        end = begins[end]
    return ends[::-1]
