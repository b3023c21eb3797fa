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


@given(st.lists(st.integers(1, ROW_LENGTH), min_size=1, max_size=60))
def test_no_two_rows_of_short_texts_would_fit_into_one(lengths: list[int]) -> None:
    (packing,) = pack(lengths, 1 / 2304)
    fills = sorted(sum(lengths[text] for text in row) for row in packing.rows)
    assert packing.length <= ROW_LENGTH
    assert fills[-1] > packing.length - LENGTH_STEP
    assert sum(fills[:2]) > packing.length or len(fills) == 1


@given(st.lists(st.integers(1, ROW_LENGTH), min_size=1, max_size=60))
def test_the_more_attention_costs_the_shorter_are_the_rows(lengths: list[int]) -> None:
    (cheap,), (dear,) = (pack(lengths, share) for share in (0.0, 1 / 400))
    assert dear.length <= cheap.length
    assert cheap.positions <= dear.positions


def test_mixed_lengths_leave_next_to_nothing_free() -> None:
    lengths = [round(10 * 50 ** (n / 63)) for n in range(64)]
    packings = pack(lengths, 1 / 2304)
    assert sum(packing.positions for packing in packings) < 1.05 * sum(lengths)
    # The short ones did not pay for the long ones' rows: they fill what those leave free, or have rows of their own.
    assert min(packing.length for packing in packings) <= ROW_LENGTH
