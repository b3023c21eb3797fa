"""Whether certified agreement still holds: audits counted, and a cascade suspended while they say no. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from revmux_core.cascade import Quality
from revmux_core.certificate import samples_needed

WINDOW = 2000
"""Audits that an estimate rests on: enough to tell 98% from 99%, few enough to notice a change within hours."""

_Z = 1.96

_FALSE_ALARM = 0.001
"""One minus the confidence of the bound that suspends: strict, because it is looked at after every audit."""


class Guard:
    """Watches one cascade, or what is served fast at one width: how often audited answers were the plain model's.

    It suspends when so few audits agree that the exact upper bound of that share lies under `target`. From then on it
    counts anew, the latest audits only, and resumes once as many as could certify the target agree often enough.
    Without a target it only counts.
    """

    def __init__(self, target: float | None, confidence: float = 0.95) -> None:
        self.suspended = False
        self._target = target
        self._needed = samples_needed(target, confidence) if target is not None else 0
        self._audits: deque[bool] = deque()
        self._agreed = 0

    @property
    def audits(self) -> int:
        return len(self._audits)

    @property
    def agreement(self) -> float:
        """Share of the audits in the window that agreed; NaN before the first."""
        return self._agreed / len(self._audits) if self._audits else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the agreement (JASA 22, 1927); all of [0, 1] before the first audit."""
        n = len(self._audits)
        if not n:
            return 0.0, 1.0
        share, spread = self._agreed / n, _Z**2 / n
        middle = (share + spread / 2) / (1 + spread)
        half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
        return max(middle - half, 0.0), min(middle + half, 1.0)

    def observe(self, agreed: bool) -> bool:
        """Counts an audit; whether the guard suspended or resumed with it."""
        self._audits.append(agreed)
        self._agreed += agreed
        # Twice what is needed forgets the texts that led to the suspension as soon as they no longer come.
        if len(self._audits) > (2 * self._needed if self.suspended else WINDOW):
            self._agreed -= self._audits.popleft()
        if self._target is None:
            return False
        if self.suspended:
            due = self.audits >= self._needed and self.agreement >= self._target
        else:
            due = _chance(self._target, self.audits - self._agreed, self.audits) < _FALSE_ALARM
        if due:
            self.suspended = not self.suspended
            self._audits.clear()
            self._agreed = 0
        return due


def _chance(target: float, differing: int, audits: int) -> float:
    """Probability that at least `differing` of `audits` differ where each does with probability 1 - `target`."""
    fewer = sum(
        math.exp(
            math.lgamma(audits + 1)
            - math.lgamma(k + 1)
            - math.lgamma(audits - k + 1)
            + k * math.log1p(-target)
            + (audits - k) * math.log(target)
        )
        for k in range(differing)
    )
    return max(1.0 - fewer, 0.0)


@dataclass(frozen=True, slots=True)
class Audit:
    """An audited answer at `width`: of which quality it was, whether it `agreed` with the plain model's, the guard that
    counted it, and whether that suspended or resumed with it."""

    width: int
    quality: Quality
    agreed: bool
    guard: Guard
    changed: bool


class Guards:
    """A guard for every certified cascade and for every width served fast.

    `share` of all samples is drawn to be audited; `report` is told of every audit.
    """

    def __init__(
        self,
        target: float | None,
        share: float,
        report: Callable[[Audit], None] = lambda audit: None,
        random: Random | None = None,
    ) -> None:
        self._target = target
        self._share = share
        self._report = report
        self._random = random or Random()
        self._guards: dict[tuple[int, bool], Guard] = {}

    @property
    def suspended(self) -> frozenset[int]:
        """The widths whose cascades are suspended."""
        return frozenset(width for (width, _), guard in self._guards.items() if guard.suspended)

    def draw(self) -> bool:
        """Whether the next sample is audited."""
        return self._random.random() < self._share

    def observe(self, width: int, guaranteed: bool, agreed: bool) -> None:
        """Counts an audit of an answer at `width`."""
        key = width, guaranteed
        if key not in self._guards:
            self._guards[key] = Guard(self._target if guaranteed else None)
        changed = self._guards[key].observe(agreed)
        self._report(Audit(width, "guaranteed" if guaranteed else "fast", agreed, self._guards[key], changed))
