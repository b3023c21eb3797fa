"""From the outcomes of requests to the figures of a report. Pure: no sockets, no clock."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

OK = "200"
# 429 and 504 are the server's documented answers to more load than it can take in time; anything else but an answer is
# a failure.
EXPECTED_STATUSES = frozenset({OK, "429", "504"})

# Beyond these the load generator distorts what it measures, and the report says so. Sends are compared with
# latencies of tens of milliseconds; a core that is 80% busy already delays the answers it should be timing.
MAX_LOOP_LAG_SECONDS = 0.02
MAX_LATENESS_SECONDS = 0.02
MAX_CPU_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. Times are seconds since its run began.

    `due` is when it should have been sent: its arrival in an open loop, the free worker's turn in a closed one.
    `status` is the HTTP status as text, or what went wrong where no usable answer came.
    """

    sample: int
    due: float
    sent: float
    done: float
    status: str
    label: str | None = None
    point: str | None = None
    escalated: bool = False
    retry_after: bool = False

    @property
    def latency(self) -> float:
        """Counted from the intended send time, so that a stalled server cannot hide the requests it held back."""
        return self.done - self.due

    @property
    def lateness(self) -> float:
        return self.sent - self.due


@dataclass(frozen=True, slots=True)
class Run:
    """All outcomes of one run, whose requests were due within `seconds`, and how the load generator fared.

    `loop_lags` (seconds) are how much later than asked its event loop woke up; `cpu_share` is of one core.
    """

    outcomes: list[Outcome]
    seconds: float
    loop_lags: list[float]
    cpu_share: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run, or of several: medians then, except `requests`, `errors` and `points`, which are sums.

    Latency percentiles cover answered requests; `throughput` is answers within the run's time, a second; `points`
    counts answers by their operating point. A figure is None where there is nothing to take it from.
    """

    requests: int
    errors: dict[str, int]
    throughput: float
    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None
    accuracy: float | None
    agreement: float | None
    points: dict[str, int]
    escalation_rate: float | None
    loop_lag_p99_seconds: float
    lateness_p99_seconds: float
    cpu_share: float

    @property
    def unexpected_errors(self) -> int:
        return sum(count for status, count in self.errors.items() if status not in EXPECTED_STATUSES)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile: the smallest value with at least `share` (0 to 1) of all values at or below it."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def summarize(run: Run, labels: Sequence[str | None], reference: Mapping[int, str]) -> Summary:
    """Figures of one run; `labels` are the right answers by sample, `reference` the plain server's own."""
    answered = [outcome for outcome in run.outcomes if outcome.status == OK]
    latencies = [outcome.latency for outcome in answered]
    return Summary(
        requests=len(run.outcomes),
        errors=dict(Counter(outcome.status for outcome in run.outcomes if outcome.status != OK)),
        throughput=sum(outcome.done <= run.seconds for outcome in answered) / run.seconds,
        p50_seconds=percentile(latencies, 0.50),
        p95_seconds=percentile(latencies, 0.95),
        p99_seconds=percentile(latencies, 0.99),
        accuracy=_mean([o.label == labels[o.sample] for o in answered if labels[o.sample] is not None]),
        agreement=_mean([o.label == reference[o.sample] for o in answered if o.sample in reference]),
        points=dict(Counter(o.point for o in answered if o.point is not None)),
        escalation_rate=_mean([o.escalated for o in answered]),
        loop_lag_p99_seconds=percentile(run.loop_lags, 0.99) or 0.0,
        lateness_p99_seconds=percentile([outcome.lateness for outcome in run.outcomes], 0.99) or 0.0,
        cpu_share=run.cpu_share,
    )


def over_rounds(rounds: Sequence[Summary]) -> Summary:
    """One summary of several rounds of the same run."""
    return Summary(
        requests=sum(r.requests for r in rounds),
        errors=dict(sum((Counter(r.errors) for r in rounds), Counter())),
        throughput=median(r.throughput for r in rounds),
        p50_seconds=median_of_known([r.p50_seconds for r in rounds]),
        p95_seconds=median_of_known([r.p95_seconds for r in rounds]),
        p99_seconds=median_of_known([r.p99_seconds for r in rounds]),
        accuracy=median_of_known([r.accuracy for r in rounds]),
        agreement=median_of_known([r.agreement for r in rounds]),
        points=dict(sum((Counter(r.points) for r in rounds), Counter())),
        escalation_rate=median_of_known([r.escalation_rate for r in rounds]),
        loop_lag_p99_seconds=median(r.loop_lag_p99_seconds for r in rounds),
        lateness_p99_seconds=median(r.lateness_p99_seconds for r in rounds),
        cpu_share=median(r.cpu_share for r in rounds),
    )


def generator_limits(summary: Summary) -> list[str]:
    """What the load generator itself was short of in this run; empty where it kept up."""
    limits = []
    if summary.loop_lag_p99_seconds > MAX_LOOP_LAG_SECONDS:
        limits.append(f"its event loop woke up {1000 * summary.loop_lag_p99_seconds:.0f} ms late (p99)")
    if summary.lateness_p99_seconds > MAX_LATENESS_SECONDS:
        limits.append(f"it sent requests {1000 * summary.lateness_p99_seconds:.0f} ms late (p99)")
    if summary.cpu_share > MAX_CPU_SHARE:
        limits.append(f"it used {summary.cpu_share:.0%} of a core")
    return limits


def median_of_known(values: Sequence[float | None]) -> float | None:
    """The median of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
