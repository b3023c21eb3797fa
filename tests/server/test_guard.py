"""The guard as arithmetic: it notices drift, forgives noise, and comes back."""

from __future__ import annotations

import random

import pytest

from server.guard import Guard, Guards


def audits(agreement: float, count: int, seed: int) -> list[bool]:
    rng = random.Random(seed)
    return [rng.random() < agreement for _ in range(count)]


def test_it_suspends_under_drift_and_resumes_when_it_is_safe() -> None:
    guard = Guard(0.99)
    assert not any(guard.observe(agreed) for agreed in audits(0.995, 3000, 0))
    changes = [number for number, agreed in enumerate(audits(0.93, 2000, 1)) if guard.observe(agreed)]
    assert changes
    assert changes[0] < 1000
    assert guard.suspended
    # The same drift goes on: it stays suspended. Then the old texts are back.
    assert not any(guard.observe(agreed) for agreed in audits(0.93, 2000, 2))
    assert guard.suspended
    changes = [number for number, agreed in enumerate(audits(0.999, 6000, 3)) if guard.observe(agreed)]
    assert len(changes) == 1
    # 299 could certify 0.99; the texts that led to the suspension are forgotten after twice as many.
    assert changes[0] < 2 * 299
    assert not guard.suspended


@pytest.mark.parametrize("seed", range(10))
def test_agreement_at_its_target_is_no_drift(seed: int) -> None:
    guard = Guard(0.99)
    suspended = 0
    for agreed in audits(0.993, 4000, seed):
        guard.observe(agreed)
        suspended += guard.suspended
    assert suspended == 0


def test_the_interval_holds_what_was_seen() -> None:
    guard = Guard(None)
    assert guard.interval == (0.0, 1.0)
    for agreed in [True] * 98 + [False] * 2:
        assert not guard.observe(agreed)
    low, high = guard.interval
    # By R: prop.test(98, 100, correct = FALSE).
    assert (low, high) == pytest.approx((0.9300, 0.9945), abs=1e-4)
    assert guard.agreement == pytest.approx(0.98)


def test_every_width_and_quality_has_its_own_guard() -> None:
    guards = Guards(0.9, 0.5)
    for _ in range(50):
        guards.observe(2, True, False)
        guards.observe(4, True, True)
        guards.observe(2, False, False)
    assert guards.suspended == {2}
    assert 300 < sum(guards.draw() for _ in range(1000)) < 700
