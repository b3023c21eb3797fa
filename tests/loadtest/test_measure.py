import pytest

from loadtest.measure import OK, Outcome, Run, generator_limits, over_rounds, percentile, summarize


def answered(sample: int, latency: float, label: str = "good", point: str = "n1-l6") -> Outcome:
    return Outcome(sample, due=0.0, sent=0.0, done=latency, status=OK, label=label, point=point)


def run(outcomes: list[Outcome], seconds: float = 1.0, cpu_share: float = 0.1) -> Run:
    return Run(outcomes, seconds, loop_lags=[0.0, 0.001], cpu_share=cpu_share)


def test_percentiles_are_nearest_rank():
    values = [float(v) for v in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([7.0], 0.5) == 7
    assert percentile([], 0.5) is None


def test_a_run_is_summarized():
    outcomes = [
        answered(0, 0.2, point="n2-l3"),
        answered(1, 0.4, label="bad", point="n2-l3"),
        answered(2, 1.5),
        Outcome(3, due=0.1, sent=0.15, done=0.2, status="429"),
        Outcome(3, due=0.1, sent=0.15, done=0.2, status="timeout"),
    ]
    summary = summarize(run(outcomes), labels=["good", "good", None, "good"], reference={0: "good", 1: "bad", 2: "bad"})
    assert summary.requests == 5
    assert summary.throughput == 2, "an answer past the run's time does not count"
    assert (summary.p50_seconds, summary.p99_seconds) == (0.4, 1.5)
    assert summary.accuracy == 0.5
    assert summary.agreement == pytest.approx(2 / 3)
    assert summary.points == {"n1-l6": 1, "n2-l3": 2}
    assert summary.escalation_rate == 0
    assert summary.errors == {"429": 1, "timeout": 1}
    assert summary.unexpected_errors == 1
    assert summary.lateness_p99_seconds == pytest.approx(0.05)


def test_nothing_answered_leaves_no_figures():
    summary = summarize(run([Outcome(0, 0.0, 0.0, 0.1, "503")]), labels=["good"], reference={})
    assert (summary.throughput, summary.p50_seconds, summary.accuracy, summary.agreement) == (0, None, None, None)


def test_rounds_give_medians_and_sums():
    rounds = [
        summarize(run([answered(0, latency)] * count + [Outcome(0, 0.0, 0.0, 0.1, "429")]), [None], {})
        for latency, count in ((0.1, 10), (0.9, 30), (0.2, 20))
    ]
    summary = over_rounds(rounds)
    assert (summary.throughput, summary.p50_seconds, summary.accuracy) == (20, 0.2, None)
    assert (summary.requests, summary.errors) == (63, {"429": 3})


def test_a_struggling_generator_is_named():
    assert generator_limits(summarize(run([answered(0, 0.1)]), [None], {})) == []
    late = Outcome(0, due=0.0, sent=0.5, done=0.6, status=OK)
    busy = summarize(run([late], cpu_share=0.95), [None], {})
    assert generator_limits(busy) == ["it sent requests 500 ms late (p99)", "it used 95% of a core"]
