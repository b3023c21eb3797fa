"""How much to multiplex: the least that keeps up with the load. Pure: no torch, and time is an argument."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from revmux_core.cascade import Cascade
from revmux_core.points import OperatingPoint
from server.planner import Menu

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
    """One step of the ladder: what may be served on it, and the seconds that a batch takes there: before its first
    token, all steps of a cascade together, and for each token."""

    menu: Menu
    start: float
    per_token: float

    def seconds(self, tokens: float) -> float:
        """Those of a batch of so many tokens."""
        return self.start + self.per_token * tokens


def ladder(menu: Menu, costs: CostModel, budget: int, length: int) -> list[Rung]:
    """Rungs from the plain path alone to all of `menu`, each adding what is next faster.

    Faster is what takes a batch of `budget` tokens less time, in samples of `length`.
    """

    def alone(point: OperatingPoint) -> tuple[float, float]:
        """Before the first token, and for each."""
        start = costs.seconds(point, 0, length)
        return start, costs.seconds(point, 1, length) - start

    plain_start, plain_token = alone(menu.plain)
    layers = menu.plain.prefill
    # What each costs, as a rung that allows everything.
    choices: list[tuple[Rung, OperatingPoint | Cascade]]
    choices = [(Rung(menu, *alone(point)), point) for point in menu.fast[:-1]]
    for cascade in menu.cascades:
        starts, (first_token, *_) = zip(*map(alone, cascade.points), strict=True)
        # The first point as it was measured; what is escalated runs frozen layers, at the plain path's speed, but every
        # step costs what a batch does before its first token. On a CPU whose products are fast that is as much as a
        # cascade saves.
        rest = max(menu.costs[cascade.width] - cascade.points[0].ideal_cost(layers), 0.0)
        choices.append((Rung(menu, sum(starts) + plain_start, first_token + plain_token * rest), cascade))
    rungs = [Rung(Menu((menu.plain,)), plain_start, plain_token)]
    for rung, _ in sorted(choices, key=lambda choice: -choice[0].seconds(budget)):
        seconds = rung.seconds(budget)
        if seconds >= rungs[-1].seconds(budget):
            continue
        allowed = [choice for other, choice in choices if other.seconds(budget) >= seconds]
        fast = tuple(point for point in menu.fast if point == menu.plain or point in allowed)
        cascades = tuple(cascade for cascade in menu.cascades if cascade in allowed)
        rungs.append(replace(rung, menu=replace(menu, fast=fast, cascades=cascades)))
    return rungs


class AdaptiveMenu:
    """Climbs the ladder as the queue grows and comes down as the load falls.

    A batch is planned from the lowest rung that would serve all that waits within `patience` seconds, and all that was
    refused since the batch before as well: admission may keep the queue shorter than that while it turns away what a
    higher rung could serve. Where none would, it is the rung that is fastest for what fits into a batch of `budget`
    tokens, as few samples do not pay for a cascade's steps. It comes down only to a rung whose capacity in full batches
    the rate of arrivals leaves some of, so that a load between two rungs stays on the upper one and does not flap.
    """

    @classmethod
    def fixed(cls, menu: Menu) -> AdaptiveMenu:
        """One that always serves all of `menu`."""
        return cls([Rung(menu, 0.0, 0.0)], 1, 0.0)

    def __init__(self, rungs: Sequence[Rung], budget: int, patience: float) -> None:
        self._rungs = rungs
        self._budget = budget
        self._patience = patience
        self._rung = 0
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
        batch = min(tokens, self._budget)
        fastest = min(range(len(self._rungs)), key=lambda number: self._rungs[number].seconds(batch))
        within = (number for number, rung in enumerate(self._rungs) if rung.seconds(tokens) <= self._patience)
        wanted = next(within, fastest)
        if wanted > self._rung:
            self._rung = wanted
        for number in range(wanted, self._rung):
            if rate * self._rungs[number].seconds(self._budget) <= SPARE * self._budget:
                self._rung = number
                break
        return self._rungs[self._rung].menu

    def _decayed(self, now: float) -> float:
        """Arriving tokens a second, in an average that forgets with `MEMORY`."""
        return self._rate * math.exp(-max(now - self._seen, 0.0) / MEMORY)
