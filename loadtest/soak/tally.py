"""What became of every request. Pure: no sockets, no clock."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import linear_regression, median

from loadtest.measure import OK, Outcome, percentile

REFUSED, EXPIRED = "429", "504"

WINDOW_SECONDS = 10.0
"""Of a point in the picture."""


@dataclass(slots=True)
class Window:
    """Requests that were due in one stretch: how many were sent and answered, and the latencies of admitted ones."""

    sent: int = 0
    answered: int = 0
    admitted: array[float] = field(default_factory=lambda: array("d"))


@dataclass(slots=True)
class Tally:
    """Every request is exactly one of answered, refused (a 429 that says when to come again), expired (504) or other.

    `plain` has the plain model's label of every text. The requests for text `i` are the sample `i` where they leave the
    quality to the server and `i + len(plain)` where they ask for exact answers. `equal` of the `exact` answers and
    `agreeing` of the `guaranteed` ones have that label. `admitted` has the latencies, in seconds from when they were
    due, of those that were answered or expired; `lateness` is of all, from due to sent.
    """

    plain: Sequence[str]
    answered: int = 0
    refused: int = 0
    expired: int = 0
    other: Counter[str] = field(default_factory=Counter)
    exact: int = 0
    equal: int = 0
    guaranteed: int = 0
    agreeing: int = 0
    points: Counter[str] = field(default_factory=Counter)
    admitted: array[float] = field(default_factory=lambda: array("d"))
    lateness: array[float] = field(default_factory=lambda: array("d"))
    last_done: float = 0.0
    windows: dict[int, Window] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        return self.answered + self.refused + self.expired + self.other.total()

    @property
    def agreement(self) -> float | None:
        """Share of the guaranteed answers; None before the first."""
        return self.agreeing / self.guaranteed if self.guaranteed else None

    def quantile(self, share: float) -> float | None:
        """A percentile of admitted requests' latencies, in seconds."""
        return percentile(self.admitted, share)

    def add(self, outcomes: Iterable[Outcome], start: float, late: float = 0.0) -> None:
        """Counts the outcomes of a run that was to begin `start` seconds into the test and began `late` later."""
        for outcome in outcomes:
            latency = outcome.latency + late
            self.lateness.append(outcome.lateness + late)
            self.last_done = max(self.last_done, start + outcome.done + late)
            window = self.windows.setdefault(int((start + outcome.due) // WINDOW_SECONDS), Window())
            window.sent += 1
            if outcome.status == OK:
                self.answered += 1
                window.answered += 1
                self._check(outcome)
            elif outcome.status == REFUSED and outcome.retry_after:
                self.refused += 1
            elif outcome.status == EXPIRED:
                self.expired += 1
            else:
                self.other["429 without Retry-After" if outcome.status == REFUSED else outcome.status] += 1
            if outcome.status in (OK, EXPIRED):
                self.admitted.append(latency)
                window.admitted.append(latency)

    def statuses(self) -> dict[int, int]:
        """How many answers the server must have counted, by HTTP status."""
        counted = {int(OK): self.answered, int(REFUSED): self.refused, int(EXPIRED): self.expired}
        return {status: count for status, count in counted.items() if count}

    def _check(self, outcome: Outcome) -> None:
        text = outcome.sample % len(self.plain)
        fits = outcome.label == self.plain[text]
        if outcome.sample >= len(self.plain):
            self.exact += 1
            self.equal += fits
        else:
            self.guaranteed += 1
            self.agreeing += fits
        if outcome.point is not None:
            self.points[outcome.point] += 1


@dataclass(frozen=True, slots=True)
class Memory:
    """What all processes of a server held, in bytes: medians of the first and last quarter, and the trend in bytes a
    second by least squares."""

    first: float
    last: float
    slope: float
    peak: int


def read_memory(samples: Sequence[tuple[float, int]]) -> Memory:
    """Of at least four pairs of a time in seconds and bytes."""
    quarter = len(samples) // 4
    held = [value for _, value in samples]
    slope = linear_regression([moment for moment, _ in samples], held).slope
    return Memory(median(held[:quarter]), median(held[-quarter:]), slope, max(held))
