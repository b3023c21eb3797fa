"""Several texts in one row: sequence packing without cross-contamination (Krell et al. 2021, arXiv 2107.02027).

Rows of much the same length leave next to no padding, and few shapes for a compiled backend to make kernels for.
Pure: no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

ROW_LENGTH = 128
"""Positions that a row aims at. A text attends within its row, so much longer ones cost more than padding does."""

LENGTH_STEP = 8
"""Rows are padded to multiples of this."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Rows of one length: `rows` lists the texts of each, by number, in the order in which they stand there."""

    rows: tuple[tuple[int, ...], ...]
    length: int

    @property
    def positions(self) -> int:
        return len(self.rows) * self.length


def pack(lengths: Sequence[int], attention_share: float) -> list[Packing]:
    """Rows for texts of these lengths, all of them at least 1.

    `attention_share` is what one position more in the row adds to a position's cost, as a share of what it costs
    without attention: 1/(6 d) for an encoder layer of hidden size d, whose linear maps are 24 d^2 operations a position
    and whose attention is 4 d for every position of the row. Texts of unlike lengths get rows of their own kind, one
    `Packing` for each multiple of `ROW_LENGTH`, so that short ones do not pay for long rows; but what long ones leave
    free is filled with short ones. O(n log n).
    """
    waiting = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    packings = []
    while waiting:
        kind = -(-lengths[waiting[0]] // ROW_LENGTH)
        own = [number for number in waiting if lengths[number] > (kind - 1) * ROW_LENGTH]
        least = -(-sum(lengths[number] for number in own) // (kind * ROW_LENGTH))
        counts = sorted({least, min(least + 1, len(own)), len(own)})
        rows, length = min(
            (_balance(own, lengths, count) for count in counts),
            key=lambda choice: len(choice[0]) * choice[1] * (1 + choice[1] * attention_share),
        )
        waiting = _fill(rows, length, waiting[len(own) :], lengths)
        packings.append(Packing(tuple(map(tuple, rows)), length))
    return packings


def _balance(texts: Sequence[int], lengths: Sequence[int], count: int) -> tuple[list[list[int]], int]:
    """`count` rows of `texts`, longest first, each put where least is (Graham 1969), and their length."""
    rows: list[list[int]] = [[] for _ in range(count)]
    fills = [(0, row) for row in range(count)]
    for number in texts:
        fill, row = fills[0]
        rows[row].append(number)
        heapreplace(fills, (fill + lengths[number], row))
    longest, _ = max(fills)
    return rows, -(-longest // LENGTH_STEP) * LENGTH_STEP


def _fill(rows: list[list[int]], length: int, texts: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Puts of `texts`, longest first, what fits into what `rows` leave free; returns the others."""
    fills = [(sum(lengths[number] for number in row), place) for place, row in enumerate(rows)]
    heapify(fills)
    others = []
    for number in texts:
        fill, place = fills[0]
        if fill + lengths[number] <= length:
            rows[place].append(number)
            heapreplace(fills, (fill + lengths[number], place))
        else:
            others.append(number)
    return others
