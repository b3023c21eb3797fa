"""How much to multiplex: the least that keeps up with the load. Pure: no torch, and time is an argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from revmux_core.cascade import Cascade
from revmux_core.points import OperatingPoint
from server.planner import Menu

Choice = TypeVar("Choice")

MEMORY = 1.0
"""Seconds over which the arrival rate is averaged: long enough for a burst of one batch not to count as load."""

SPARE = 0.9
"""Share of a rung's capacity that load may take for that rung to be gone back to."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A measured batch: `rows` samples of `length` tokens at `point` took `seconds`."""

    point: OperatingPoint
    rows: int
    length: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a batch at a point: `fixed + linear x tokens + quadratic x tokens x length`."""

    terms: Mapping[OperatingPoint, tuple[float, float, float]]

    @classmethod
    def fit(cls, timings: Iterable[Timing]) -> CostModel:
        """Least squares on relative errors, so that small batches count as much as large ones; no term below 0."""
        by_point: dict[OperatingPoint, list[Timing]] = {}
        for timing in timings:
            by_point.setdefault(timing.point, []).append(timing)
        return cls({point: _fit(own) for point, own in by_point.items()})

    def seconds(self, point: OperatingPoint, tokens: float, length: float) -> float:
        """Predicted seconds of `tokens` padded tokens in samples of `length`."""
        fixed, linear, quadratic = self.terms[point]
        return fixed + linear * tokens + quadratic * tokens * length

    def start_tokens(self, point: OperatingPoint) -> float:
        """What a batch costs before its first token, in tokens; infinite where a token costs nothing."""
        fixed, linear, _ = self.terms[point]
        return fixed / linear if linear else math.inf


def _fit(timings: Sequence[Timing]) -> tuple[float, float, float]:
    tokens = np.array([timing.rows * timing.length for timing in timings], dtype=float)
    lengths = np.array([timing.length for timing in timings], dtype=float)
    seconds = np.array([timing.seconds for timing in timings])
    columns = np.stack([np.ones_like(tokens), tokens, tokens * lengths], axis=1) / seconds[:, None]
    kept = [0, 1, 2]
    while True:
        solution, *_ = np.linalg.lstsq(columns[:, kept], np.ones_like(seconds), rcond=None)
        if (solution >= 0).all() or len(kept) == 1:
            break
        kept.pop(int(solution.argmin()))
    terms = np.zeros(3)
    terms[kept] = solution.clip(min=0)
    return float(terms[0]), float(terms[1]), float(terms[2])


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of a ladder: what may be served on it, and the seconds that a batch takes there: before its first
    token, all steps of a cascade together, and for each token."""

    menu: Menu
    start: float
    per_token: float

    def seconds(self, tokens: float) -> float:
        """Those of a batch of so many tokens."""
        return self.start + self.per_token * tokens


def ladders(menu: Menu, costs: CostModel, budget: int, length: int) -> tuple[list[Rung], list[Rung]]:
    """A ladder of `menu`'s cascades, for what is guaranteed, and one of its fast points, for the rest.

    Rungs go from the plain path alone to all of them, each adding what is next faster: what takes a batch of `budget`
    tokens less time, in samples of `length`.
    """

    def alone(point: OperatingPoint) -> tuple[float, float]:
        """Before the first token, and for each."""
        start = costs.seconds(point, 0, length)
        return start, costs.seconds(point, 1, length) - start

    def allow_cascades(allowed: Sequence[Cascade]) -> Menu:
        return replace(menu, fast=(menu.plain,), cascades=tuple(own for own in menu.cascades if own in allowed))

    def allow_points(allowed: Sequence[OperatingPoint]) -> Menu:
        fast = tuple(point for point in menu.fast if point in allowed or point == menu.plain)
        return replace(menu, fast=fast, cascades=())

    plain_start, plain_token = alone(menu.plain)
    layers = menu.plain.prefill
    cascades = []
    for cascade in menu.cascades:
        starts, (first_token, *_) = zip(*map(alone, cascade.points), strict=True)
        # The first point as it was measured; what is escalated runs frozen layers, at the plain path's speed, but every
        # step costs what a batch does before its first token, unless they cost nothing to begin (`Menu.step_tokens`).
        # On a CPU whose products are fast that is as much as a cascade saves.
        rest = max(menu.costs[cascade.width] - cascade.points[0].ideal_cost(layers), 0.0)
        start = sum(starts) + plain_start if menu.step_tokens else starts[0]
        cascades.append((cascade, start, first_token + plain_token * rest))
    points = [(point, *alone(point)) for point in menu.fast[:-1]]
    plain = Rung(allow_points(()), plain_start, plain_token)
    return _ladder(plain, cascades, allow_cascades, budget), _ladder(plain, points, allow_points, budget)


def _ladder(
    plain: Rung, choices: Sequence[tuple[Choice, float, float]], allow: Callable[[Sequence[Choice]], Menu], budget: int
) -> list[Rung]:
    """The ladder of `choices`, each with what a batch takes before its first token and for each."""
    rungs, allowed = [plain], []
    for choice, start, per_token in sorted(choices, key=lambda choice: -(choice[1] + choice[2] * budget)):
        if start + per_token * budget < rungs[-1].seconds(budget):
            allowed.append(choice)
            rungs.append(Rung(allow(allowed), start, per_token))
    return rungs


class _Climber:
    """Where it is on the ladder `rungs`, see `AdaptiveMenu`."""

    def __init__(self, rungs: Sequence[Rung], budget: int, patience: float) -> None:
        self._rungs = rungs
        self._budget = budget
        self._patience = patience
        self._at = 0

    def choose(self, tokens: int, rate: float) -> int:
        """The number of the rung for a batch, while `tokens` wait, or were refused, and `rate` arrive a second."""
        batch = min(tokens, self._budget)
        fastest = min(range(len(self._rungs)), key=lambda number: self._rungs[number].seconds(batch))
        within = (number for number, rung in enumerate(self._rungs) if rung.seconds(tokens) <= self._patience)
        wanted = next(within, fastest)
        if wanted > self._at:
            self._at = wanted
        for number in range(wanted, self._at):
            if rate * self._rungs[number].seconds(self._budget) <= SPARE * self._budget:
                self._at = number
                break
        return self._at


class AdaptiveMenu:
    """Climbs the ladders as the queue grows and comes down as the load falls.

    A batch is planned from the lowest rung that would serve all that waits within `patience` seconds, and all that was
    refused since the batch before as well: admission may keep the queue shorter than that while it turns away what a
    higher rung could serve. Where none would, it is the rung that is fastest for what fits into a batch of `budget`
    tokens, as few samples do not pay for a cascade's steps. It comes down only to a rung whose capacity in full batches
    the rate of arrivals leaves some of, so that a load between two rungs stays on the upper one and does not flap.

    What is `guaranteed` has a ladder of its own: a point that is fast enough for others does nothing for it.
    """

    @classmethod
    def fixed(cls, menu: Menu) -> AdaptiveMenu:
        """One that always serves all of `menu`."""
        return cls([Rung(menu, 0.0, 0.0)], [Rung(menu, 0.0, 0.0)], 1, 0.0)

    def __init__(self, guaranteed: Sequence[Rung], fast: Sequence[Rung], budget: int, patience: float) -> None:
        self._guaranteed, self._fast = (_Climber(rungs, budget, patience) for rungs in (guaranteed, fast))
        self._menus = [[replace(rung.menu, fast=other.menu.fast) for other in fast] for rung in guaranteed]
        self._rate = 0.0
        self._seen = 0.0
        self._refused = 0

    def arrived(self, tokens: int, now: float) -> None:
        """Counts tokens that were asked for at `now` (seconds), whether they are admitted or not."""
        self._rate = self._decayed(now) + tokens / MEMORY
        self._seen = now

    def refused(self, tokens: int) -> None:
        """Counts tokens of those that are not admitted."""
        self._refused += tokens

    def choose(self, tokens: int, now: float) -> Menu:
        """The menu of a batch planned at `now`, while `tokens` tokens wait."""
        rate = self._decayed(now)
        tokens += self._refused
        self._refused = 0
        return self._menus[self._guaranteed.choose(tokens, rate)][self._fast.choose(tokens, rate)]

    def _decayed(self, now: float) -> float:
        """Arriving tokens a second, in an average that forgets with `MEMORY`."""
        return self._rate * math.exp(-max(now - self._seen, 0.0) / MEMORY)
