"""The door and the line behind it, without a clock or a device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.admission import Load, QueueLimits, Speed, excess_wait, retry_after
from server.queue import FairQueue, Rank, WaitingQueue

LIMITS = QueueLimits(max_items=10, max_tokens=100)


def test_the_queue_is_bounded_in_items_and_in_tokens() -> None:
    assert LIMITS.admit(Load(9, 90), Load(9, 90), Load(1, 10))
    assert not LIMITS.admit(Load(10, 10), Load(0, 0), Load(1, 1))
    assert not LIMITS.admit(Load(1, 95), Load(1, 95), Load(1, 6))


def test_one_of_several_tenants_may_fill_its_share_only() -> None:
    shared = QueueLimits(max_items=10, max_tokens=100, tenant_share=0.5)
    assert shared.admit(Load(8, 80), Load(4, 40), Load(1, 10))
    assert not shared.admit(Load(5, 50), Load(5, 50), Load(1, 1))
    assert not shared.admit(Load(2, 45), Load(1, 44), Load(1, 7))
    # Whoever has nothing waiting may always come, while there is room.
    assert shared.admit(Load(5, 20), Load(0, 0), Load(1, 70))


def test_an_empty_queue_admits_even_what_is_beyond_the_limits() -> None:
    assert LIMITS.admit(Load(0, 0), Load(0, 0), Load(1, 1000))


def test_retry_after_is_the_time_to_drain_within_bounds() -> None:
    assert [retry_after(seconds) for seconds in (0.0, 1.0, 2.5, 1e6)] == [1, 1, 3, 60]


def test_a_request_is_late_by_what_its_time_does_not_cover() -> None:
    speed = Speed(500.0)
    own = speed.batch_seconds
    assert excess_wait(1000, speed, 10.0) == pytest.approx(2 + own - 0.8 * 10)
    assert excess_wait(1000, speed, 1.0) == pytest.approx(1.2 + own)
    assert excess_wait(1000, speed, math.inf) == -math.inf
    # Where little waits batches are small, so that little time is enough.
    assert excess_wait(5, speed, 0.1) < 0


def test_speed_is_what_full_batches_show_whatever_was_said_at_the_start() -> None:
    speed = Speed(1e6)
    for tokens in [0, 100] * 100:
        speed.observe(tokens, 0.5)
    # A batch of escalated samples that answers nothing counts with its seconds.
    assert speed.tokens_per_second == pytest.approx(100, rel=0.06)
    assert speed.batch_seconds == pytest.approx(0.5)


@dataclass(frozen=True)
class Entry:
    rank: Rank
    length: int


requests = st.lists(st.tuples(st.integers(-2, 2), st.lists(st.integers(1, 9), min_size=1, max_size=5)), max_size=12)


@given(requests, st.data())
def test_the_line_stays_in_order_whoever_leaves(drawn: list[tuple[int, list[int]]], data: st.DataObject) -> None:
    queue: WaitingQueue[Entry] = WaitingQueue()
    expected: list[Entry] = []
    joined: list[list[Entry]] = []
    arrivals = 0
    for priority, lengths in drawn:
        entries = [Entry((priority, arrivals + i), length) for i, length in enumerate(lengths)]
        arrivals += len(entries)
        queue.join(entries)
        joined.append(entries)
        expected = sorted([*expected, *entries], key=lambda entry: entry.rank)
        action = data.draw(st.sampled_from(["stay", "leave", "take"]))
        if action == "leave":
            leaving = data.draw(st.sampled_from(joined))
            queue.leave(leaving[0].rank, leaving[-1].rank)
            expected = [entry for entry in expected if entry not in leaving]
        elif action == "take" and expected:
            positions = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, unique=True))
            assert queue.take(positions) == [expected[position] for position in positions]
            expected = [entry for i, entry in enumerate(expected) if i not in positions]
        assert queue.head(100) == expected
        assert queue.load == Load(len(expected), sum(entry.length for entry in expected))


def test_a_flood_does_not_hold_up_another_tenant() -> None:
    queue: FairQueue[Entry] = FairQueue()
    queue.join("flood", [Entry((0, i), 10) for i in range(100)])
    queue.take([0, 1, 2])
    queue.join("other", [Entry((0, 100 + i), 10) for i in range(3)])
    due = queue.head(6)
    assert sorted(entry.rank[1] >= 100 for entry in due) == [False] * 3 + [True] * 3
    queue.leave("other", (0, 100), (0, 102))
    assert queue.load == Load(97, 970)


def test_a_tenant_saves_nothing_up_while_it_is_away() -> None:
    queue: FairQueue[Entry] = FairQueue()
    for i in range(50):
        queue.join("busy", [Entry((0, i), 10)])
        queue.take([0])
    queue.join("busy", [Entry((0, 50 + i), 10) for i in range(4)])
    queue.join("late", [Entry((0, 60 + i), 10) for i in range(4)])
    assert [entry.rank[1] >= 60 for entry in queue.head(4)].count(True) == 2


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.integers(1, 9), st.booleans()), max_size=40),
    st.sampled_from("abc"),
    st.integers(-1, 1),
)
def test_it_is_known_beforehand_how_much_is_due_before(
    arrivals: list[tuple[str, int, int, bool]], tenant: str, priority: int
) -> None:
    queue: FairQueue[Entry] = FairQueue()
    for number, (name, rank, length, take) in enumerate(arrivals):
        queue.join(name, [Entry((rank, number), length)])
        if take:
            queue.take([0])
    expected = queue.tokens_before(tenant, priority, 9)
    own = Entry((priority, len(arrivals)), 9)
    queue.join(tenant, [own])
    before = 0
    while (taken := queue.take([0])[0]) != own:
        before += taken.length
    # Each of the two other lines may be ahead by the sample that it was given last.
    assert before <= expected + 2 * 9


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=40), st.data())
def test_tenants_that_wait_get_equal_shares(arrivals: list[tuple[str, int]], data: st.DataObject) -> None:
    """Of what was taken while two tenants waited, neither has more than one longest sample more than the other."""
    queue: FairQueue[Entry] = FairQueue()
    owner: dict[int, str] = {}
    for number, (tenant, length) in enumerate(arrivals):
        queue.join(tenant, [Entry((0, number), length)])
        owner[number] = tenant
    taken = {tenant: 0 for tenant, _ in arrivals}
    left = {tenant: sum(1 for name, _ in arrivals if name == tenant) for tenant in taken}
    while len(queue):
        count = data.draw(st.integers(1, min(3, len(queue))))
        assert queue.head(count) == queue.head(len(queue))[:count]
        for entry in queue.take(range(count)):
            taken[owner[entry.rank[1]]] += entry.length
            left[owner[entry.rank[1]]] -= 1
        waiting = [taken[tenant] for tenant in taken if left[tenant]]
        if len(waiting) == len(taken) > 1:
            assert max(waiting) - min(waiting) <= 2 * 9
