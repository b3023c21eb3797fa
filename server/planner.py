"""Which waiting samples form the next batch, and with whom. Pure: no torch, no clock, no queue."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

from revmux_core.cascade import Cascade
from revmux_core.plan import Group, MuxPlan
from revmux_core.points import OperatingPoint

PADDING_SHARE = 0.25
"""Share of the token budget that one batch may spend on padding before a sample is left for a later batch.

A batch pads to its longest sample, so a short one beside a long one costs as much as the long one. Up to about this
share that is cheaper than what a further batch costs before its first token.
"""


ROUNDING = 1 + 1e-9
"""Shares of a batch are fractions; their last digits must not cost it a sample."""


PLAIN_ONLY = 0
"""The highest mux width of a sample that not even an early exit may answer."""


MuxScope = Literal["request", "tenant", "any"]
"""Whose samples may share a composite, where one sample's answer depends a little on the others."""


class Sample(Protocol):
    """What the planner needs to know of a waiting sample."""

    @property
    def length(self) -> int:
        """Tokens, special tokens included."""

    @property
    def max_width(self) -> int:
        """Highest mux width that its request allows; `PLAIN_ONLY` allows the plain path alone."""

    @property
    def guaranteed(self) -> bool:
        """Whether only a certified cascade, or the plain path, may answer it."""

    @property
    def audited(self) -> bool:
        """Whether the plain path will answer it in the end, whatever a point says before."""

    @property
    def scope(self) -> Hashable:
        """Only samples of one scope may share a composite."""

    @property
    def start(self) -> int:
        """Layers that were already run on it."""

    @property
    def resumes_at(self) -> OperatingPoint | None:
        """Where it goes on, escalated or audited; None for a sample that nothing was run on."""


@dataclass(frozen=True)
class Menu:
    """What a server answers with: `fast` points, cheapest first and the plain one last, and certified `cascades`.

    Cascades of the widths in `suspended` are open to audited samples only. `costs` are what samples of a cascade's
    width are expected to cost, all its steps together, as shares of plain inference; one that is missing counts as its
    first step. `passed` are the shares of samples that the steps of such a cascade are expected to pass on, and
    `step_tokens` is what a step costs before its first sample, in tokens on the plain path.
    """

    fast: tuple[OperatingPoint, ...]
    cascades: tuple[Cascade, ...] = ()
    suspended: frozenset[int] = frozenset()
    costs: Mapping[int, float] = field(default_factory=dict)
    passed: Mapping[int, Sequence[float]] = field(default_factory=dict)
    step_tokens: float = 0.0

    @property
    def plain(self) -> OperatingPoint:
        return self.fast[-1]

    @cached_property
    def points(self) -> tuple[OperatingPoint, ...]:
        """All points, cheapest first and the plain one last."""
        layers = self.plain.prefill
        own = {*self.fast, *(point for cascade in self.cascades for point in cascade.points)} - {self.plain}
        return (*sorted(own, key=lambda point: (point.ideal_cost(layers), point)), self.plain)

    def allows(self, sample: Sample, point: OperatingPoint) -> bool:
        """Whether `sample` may run at `point` next; the plain path is always open."""
        if point == self.plain:
            return True
        if sample.resumes_at is not None:
            return sample.resumes_at == point
        if sample.max_width < point.width:
            return False
        if not sample.guaranteed:
            return point in self.fast
        cascade = self.cascade_from(point)
        return cascade is not None and (sample.audited or cascade.width not in self.suspended)

    def share(self, sample: Sample) -> float:
        """Layer compute that `sample` is likely to take in a batch, at the cheapest it may run at and what may follow,
        as a share of plain inference."""
        layers = self.plain.prefill
        point = next(point for point in self.points if self.allows(sample, point))
        cost = point.ideal_cost(layers)
        cascade = self.cascade_from(point) if sample.guaranteed and sample.resumes_at is None else None
        if cascade is not None:
            cost = max(cost, self.costs.get(cascade.width, 0.0))
        return cost - sample.start / layers

    def gain(self, cascade: Cascade, level: int, tokens: float) -> float:
        """What it saves to go on to step `level` of `cascade` with samples of so many `tokens`, over going to the plain
        path at once, in tokens there. What is not known of the cascade is taken for a gain of 0.

        Either answers as certified or better: what the plain path answers is the plain model's own.
        """
        passed = self.passed.get(cascade.width)
        if passed is None or level == len(cascade.points):
            return 0.0
        point, layers = cascade.points[level], cascade.num_layers
        saved = (1 - passed[level]) * (layers - point.prefill) - len(point.upper) / point.width
        later = self.gain(cascade, level + 1, passed[level] * tokens)
        return tokens * saved / layers - self.step_tokens + max(later, 0.0)

    def cascade_from(self, point: OperatingPoint) -> Cascade | None:
        """The cascade that begins at `point`."""
        return next((cascade for cascade in self.cascades if cascade.points[0] == point), None)


class _Shares:
    """`Menu.share`, worked out once for all samples of a line that ask for the same, as most do."""

    def __init__(self, menu: Menu) -> None:
        self._menu = menu
        self._known: dict[tuple[object, ...], float] = {}

    def of(self, sample: Sample) -> float:
        asked = sample.max_width, sample.guaranteed, sample.audited, sample.start, sample.resumes_at
        share = self._known.get(asked)
        if share is None:
            share = self._known[asked] = self._menu.share(sample)
        return share


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


def served_cascades(cascades: Iterable[tuple[Cascade, float]]) -> tuple[Cascade, ...]:
    """Of cascades with their ideal speed-ups, those worth serving: a wider one only where it is faster than all
    narrower ones, for those need fewer partners."""
    served: list[Cascade] = []
    fastest = 1.0
    for cascade, speedup in sorted(cascades, key=lambda pair: pair[0].width):
        if speedup > fastest:
            served.append(cascade)
            fastest = speedup
    return tuple(served)


def plan_batch(waiting: Sequence[Sample], budget: int, menu: Menu, packs: bool = False) -> PlannedBatch:
    """Plans the next batch of `waiting` (head of the line first, not empty) from what is on the `menu`.

    The head is always in, so every sample is answered after at most as many batches as samples stand before it. The
    batch costs no more compute than `budget` tokens on the plain path, unless the head alone does: samples that run few
    layers are many to a batch. Padding counts (rows x longest), and lengths near the head's are preferred, unless the
    device `packs`. O(n log n).
    """
    return group_samples(waiting, _first(waiting, budget, menu) if packs else _nearest(waiting, budget, menu), menu)


def group_samples(waiting: Sequence[Sample], chosen: Iterable[int], menu: Menu) -> PlannedBatch:
    """Plans those of `waiting` at the positions `chosen`, each at the cheapest point that it may run at next and that
    it has partners for. O(n log n)."""
    members = sorted(chosen, key=lambda position: waiting[position].length)
    rows: list[int] = []
    groups: list[Group] = []
    points = menu.points
    for start in sorted({waiting[position].start for position in members}):
        left = [position for position in members if waiting[position].start == start]
        for point in points:
            # The last one is the plain path, which is always open.
            able = left
            if point is not points[-1]:
                able = [position for position in left if menu.allows(waiting[position], point)]
            taken = _whole_composites(waiting, able, point.width)
            if taken:
                groups.append(Group(point, tuple(range(len(rows), len(rows) + len(taken))), start))
                rows += taken
                gone = set(taken)
                left = [position for position in left if position not in gone]
    return PlannedBatch(tuple(rows), MuxPlan(tuple(groups)))


def _whole_composites(waiting: Sequence[Sample], able: list[int], width: int) -> list[int]:
    """Of `able`, sorted by length, as many as fill composites of one scope each, composite by composite.

    What is left over tries the next dearer point, the plain one in the end.
    """
    if width == 1:
        return able
    scopes: dict[Hashable, list[int]] = {}
    for position in able:
        scopes.setdefault(waiting[position].scope, []).append(position)
    return [position for own in scopes.values() for position in own[: len(own) - len(own) % width]]


def _first(waiting: Sequence[Sample], budget: int, menu: Menu) -> list[int]:
    """The head and all that follow it up to the first that no longer fits."""
    shares = _Shares(menu)
    chosen: list[int] = []
    work = 0.0
    for position, sample in enumerate(waiting):
        work += shares.of(sample) * sample.length
        if chosen and work > budget * ROUNDING:
            break
        chosen.append(position)
    return chosen


def _nearest(waiting: Sequence[Sample], budget: int, menu: Menu) -> list[int]:
    """The head and, nearest in length first, everything that still fits; equally near samples in order of arrival."""
    head = waiting[0].length
    most = budget * ROUNDING
    known = _Shares(menu)
    chosen: list[int] = []
    longest = 0
    shares = work = 0.0
    distances = [abs(sample.length - head) for sample in waiting]
    for position in sorted(range(len(waiting)), key=distances.__getitem__):
        sample = waiting[position]
        length = sample.length
        share = known.of(sample)
        padded = (shares + share) * max(longest, length)
        padding = padded - work - share * length
        if chosen and (padded > most or padding > PADDING_SHARE * most):
            if (shares + share) * longest > most:
                break
            continue
        chosen.append(position)
        longest = max(longest, length)
        shares += share
        work += share * length
    return chosen
