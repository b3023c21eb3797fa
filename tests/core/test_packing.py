"""Packing as arithmetic: every text in one row, whole, and rows that are nearly full."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from revmux_core.packing import LENGTH_STEP, ROW_LENGTH, pack


@given(st.lists(st.integers(1, 512), min_size=1, max_size=60))
def test_every_text_stands_in_one_row_that_holds_it(lengths: list[int]) -> None:
    packings = pack(lengths, 1 / 2304)
    rows = [(row, packing.length) for packing in packings for row in packing.rows]
    assert sorted(text for row, _ in rows for text in row) == list(range(len(lengths)))
    for row, length in rows:
        assert row
        assert sum(lengths[text] for text in row) <= length


@given(st.lists(st.integers(1, ROW_LENGTH // 2), min_size=1, max_size=60))
def test_short_texts_leave_no_more_free_than_a_row_and_a_few_positions_each(lengths: list[int]) -> None:
    (packing,) = pack(lengths, 1 / 2304)
    # Rows are balanced: the longest is at most one text ahead of the others.
    free = packing.positions - sum(lengths)
    assert free < len(packing.rows) * (LENGTH_STEP + max(lengths))
    assert packing.length < ROW_LENGTH + LENGTH_STEP + max(lengths)


def test_mixed_lengths_leave_next_to_nothing_free() -> None:
    lengths = [round(10 * 50 ** (n / 63)) for n in range(64)]
    packings = pack(lengths, 1 / 2304)
    assert sum(packing.positions for packing in packings) < 1.05 * sum(lengths)
    # The short ones did not pay for the long ones' rows: they fill what those leave free, or have rows of their own.
    assert min(packing.length for packing in packings) <= ROW_LENGTH + LENGTH_STEP
