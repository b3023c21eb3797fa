"""The door and the line behind it, without a clock or a device."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from server.admission import Load, QueueLimits, retry_after
from server.queue import Rank, WaitingQueue

LIMITS = QueueLimits(max_items=10, max_tokens=100)


def test_the_queue_is_bounded_in_items_and_in_tokens() -> None:
    assert LIMITS.admit(Load(9, 90), Load(1, 10))
    assert not LIMITS.admit(Load(10, 10), Load(1, 1))
    assert not LIMITS.admit(Load(1, 95), Load(1, 6))


def test_an_empty_queue_admits_even_what_is_beyond_the_limits() -> None:
    assert LIMITS.admit(Load(0, 0), Load(1, 1000))


def test_retry_after_is_the_time_to_drain_within_bounds() -> None:
    assert retry_after(1000, None) == 1
    assert retry_after(10_000, 4_000.0) == 3
    assert retry_after(1, 4_000.0) == 1
    assert retry_after(10_000_000, 10.0) == 60


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
