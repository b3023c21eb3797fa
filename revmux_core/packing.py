"""Several texts in one row: sequence packing without cross-contamination (Krell et al. 2021, arXiv 2107.02027).

Rows of much the same length leave next to no padding, and few shapes for a compiled backend to make kernels for.
Pure: no torch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd, lcm

ROW_LENGTH = 128
"""Positions of the longest rows of texts no longer than that. A text attends within its row, so longer rows cost more
than the padding that they save."""

SHORTEST_ROWS = 64
"""Shorter rows would save little attention, and make many shapes."""

LENGTH_STEP = 16
"""Rows are as long as a multiple of this. With AMX positions of rows of other lengths cost up to a third more
(`docs/performance/latency.md`)."""


@dataclass(frozen=True, slots=True)
class RowCosts:
    """What rows cost on a device.

    `attention_share` is what one position more in the row adds to a position's cost, as a share of what it costs
    without attention. Several rows of one length together have a multiple of `together` positions, as kernels take no
    less time for fewer.
    """

    attention_share: float
    together: int = 1

    def of(self, rows: int, length: int) -> float:
        """The cost of so many rows, in positions without attention."""
        return rows * length * (1 + length * self.attention_share)

    def shapes(self, rows: int, length: int) -> Iterator[tuple[int, int]]:
        """Numbers of rows and their lengths that have room for this, each with what is added to either."""
        if rows == 1:
            yield 1, length
            return
        for count in range(rows, rows + max(self.together // LENGTH_STEP, 1)):
            step = lcm(LENGTH_STEP, self.together // gcd(self.together, count))
            yield count, -(-length // step) * step


@dataclass(frozen=True, slots=True)
class Packing:
    """Rows of one length: `rows` lists the texts of each, by number, in the order in which they stand there. The last
    ones may be empty."""

    rows: tuple[tuple[int, ...], ...]
    length: int

    @property
    def positions(self) -> int:
        return len(self.rows) * self.length


def pack(lengths: Sequence[int], costs: RowCosts) -> list[Packing]:
    """Rows for texts of these lengths, all of them at least 1.

    Texts of unlike lengths get rows of their own kind, one `Packing` for each multiple of `ROW_LENGTH`, so that short
    ones do not pay for long rows; but what long ones leave free is filled with short ones. What fits into one row is
    one: two would save little attention, and of single rows there are few shapes. Else, of all the rows' possible
    lengths the one that costs least is taken: O(n^2) steps at worst, of which all but O(n log n) are the insertions
    into a list. Every length is tried by counting alone, in O(d^2) steps for d unlike lengths.
    """
    waiting = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    packings = []
    while waiting:
        longest = lengths[waiting[0]]
        most = -(-longest // ROW_LENGTH) * ROW_LENGTH
        own = [number for number in waiting if lengths[number] > most - ROW_LENGTH]
        total = sum(lengths[number] for number in own)
        if total <= most:
            length, rows = -(-total // LENGTH_STEP) * LENGTH_STEP, [own]
        else:
            length, rows = _cheapest(own, lengths, most, costs)
        waiting = _fit(waiting[len(own) :], lengths, length, rows, grows=False)
        packings.append(Packing(tuple(map(tuple, rows)), length))
    return packings


def _cheapest(texts: Sequence[int], lengths: Sequence[int], most: int, costs: RowCosts) -> tuple[int, list[list[int]]]:
    """The length, of up to `most`, of the rows that cost least for `texts`, longest first, and who stands in each."""
    least = max(-(-lengths[texts[0]] // LENGTH_STEP) * LENGTH_STEP, SHORTEST_ROWS)
    counts = sorted(Counter([lengths[number] for number in texts]).items(), reverse=True)
    capacity, (count, length) = min(
        (
            (capacity, shape)
            for capacity in range(least, most + 1, LENGTH_STEP)
            for shape in costs.shapes(*_filled(counts, capacity))
        ),
        key=lambda choice: costs.of(*choice[1]),
    )
    rows: list[list[int]] = []
    _fit(texts, lengths, capacity, rows, grows=True)
    return length, rows + [[] for _ in range(count - len(rows))]


def _filled(counts: Sequence[tuple[int, int]], capacity: int) -> tuple[int, int]:
    """How many rows of up to `capacity` positions `_fit` makes for texts of lengths that come so often, longest first,
    and how long these rows are.

    Without saying who stands where: texts of one length go into all rows with the same room at once, and into each of
    them as many as fit, since the row that a text went into is the one with the least room for the next.
    """
    rows = 0
    having = [0] * (capacity + 1)
    # One bit for each room that some row has, so that the least that is large enough is found in one step.
    rooms = 0
    for length, left in counts:
        while left:
            enough = rooms >> length
            room = length + (enough & -enough).bit_length() - 1 if enough else capacity
            each = min(room // length, left)
            taken = left // each
            if enough:
                taken = min(taken, having[room])
                having[room] -= taken
                if not having[room]:
                    rooms ^= 1 << room
            else:
                rows += taken
            after = room - each * length
            having[after] += taken
            rooms |= 1 << after
            left -= taken * each
    longest = capacity + 1 - (rooms & -rooms).bit_length()
    return rows, -(-longest // LENGTH_STEP) * LENGTH_STEP


def _fit(texts: Sequence[int], lengths: Sequence[int], capacity: int, rows: list[list[int]], grows: bool) -> list[int]:
    """Puts each of `texts`, longest first, into the row that it leaves least free (best fit decreasing, Johnson 1974).

    Where there is no room for one a row is added to `rows` if it `grows`; else that text is among those returned.
    """
    free = sorted((capacity - sum(lengths[number] for number in row), place) for place, row in enumerate(rows))
    others = []
    for number in texts:
        length = lengths[number]
        tightest = bisect_left(free, (length,))
        if tightest < len(free):
            room, place = free.pop(tightest)
        elif grows:
            room, place = capacity, len(rows)
            rows.append([])
        else:
            others.append(number)
            continue
        rows[place].append(number)
        insort(free, (room - length, place))
    return others
