"""Packing as arithmetic: every text in one row, whole, and rows that are nearly full."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from revmux_core.packing import LENGTH_STEP, ROW_LENGTH, RowCosts, pack

COSTS = RowCosts(1 / 2304)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=60), st.sampled_from([1, 64, 128]))
def test_every_text_stands_in_one_row_that_holds_it(lengths: list[int], together: int) -> None:
    packings = pack(lengths, RowCosts(1 / 2304, together))
    rows = [(row, packing.length) for packing in packings for row in packing.rows]
    assert sorted(text for row, _ in rows for text in row) == list(range(len(lengths)))
    for row, length in rows:
        assert sum(lengths[text] for text in row) <= length
    for packing in packings:
        assert packing.length % LENGTH_STEP == 0
        assert len(packing.rows) == 1 or packing.positions % together == 0


@given(st.lists(st.integers(1, 512), min_size=1, max_size=60), st.sampled_from([64, 128]))
def test_what_is_computed_together_costs_no_more_than_longer_rows(lengths: list[int], together: int) -> None:
    free, bound = (pack(lengths, RowCosts(0.0, own))[0] for own in (1, together))
    assert all(free.rows)
    assert bound.positions <= len(free.rows) * -(-free.length // together) * together


@given(st.lists(st.integers(1, ROW_LENGTH), min_size=1, max_size=60))
def test_no_two_rows_of_short_texts_would_fit_into_one(lengths: list[int]) -> None:
    (packing,) = pack(lengths, COSTS)
    fills = sorted(sum(lengths[text] for text in row) for row in packing.rows)
    assert packing.length <= ROW_LENGTH
    assert fills[-1] > packing.length - LENGTH_STEP
    assert sum(fills[:2]) > packing.length or len(fills) == 1


@given(st.lists(st.integers(1, ROW_LENGTH), min_size=1, max_size=60))
def test_the_more_attention_costs_the_shorter_are_the_rows(lengths: list[int]) -> None:
    (cheap,), (dear,) = (pack(lengths, RowCosts(share)) for share in (0.0, 1 / 400))
    assert dear.length <= cheap.length
    assert cheap.positions <= dear.positions


def test_mixed_lengths_leave_next_to_nothing_free() -> None:
    lengths = [round(10 * 50 ** (n / 63)) for n in range(64)]
    packings = pack(lengths, COSTS)
    assert sum(packing.positions for packing in packings) < 1.05 * sum(lengths)
    # The short ones did not pay for the long ones' rows: they fill what those leave free, or have rows of their own.
    assert min(packing.length for packing in packings) <= ROW_LENGTH
