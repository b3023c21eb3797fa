"""Hidden states of texts that share rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Self

import numpy as np
import torch
from torch import Tensor

from revmux_core.batch import Words
from revmux_core.packing import LENGTH_STEP, ROW_LENGTH, SHORTEST_ROWS, RowCosts, pack
from revmux_core.states import Padded, within

Index = np.ndarray
"""Whole numbers, int64."""

CELL_STEP = 4
"""Rows of several texts have places for a multiple of this many. Every number is a shape of its own, for which OpenVINO
keeps some 0.4 MiB: of 40,000 batches 185 shapes come of it in place of 452, at no cost that could be told from noise
(`docs/performance/serving.md`)."""

SHORT_TEXT = 12
"""Positions of a text: few rows have places for as many such as they hold, or some more."""

FEW_ROWS = {
    (rows, length): -(-length // (SHORT_TEXT * CELL_STEP)) * CELL_STEP
    for rows in (1, 2)
    for length in range(LENGTH_STEP if rows == 1 else SHORTEST_ROWS + LENGTH_STEP, ROW_LENGTH + 1, LENGTH_STEP)
}
"""The least places for texts in each of so many rows of a length: what few texts at a time become is one of these
shapes, unless they are shorter still."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows of one length: they stand at `begin` of the flattened rows.

    `segments` `[rows, length]` numbers the text of its row that a position is of, 1, 2, ...; 0 is padding. `firsts`
    `[rows, texts]` is where in its row each text begins, anywhere in places without one. `cells` are those of `Layout`
    that are in these rows.
    """

    begin: int
    segments: Index
    firsts: Index
    cells: slice

    def grid(self, by_cell: np.ndarray) -> np.ndarray:
        """Of what there is for every cell, `[cells, d]`, that of these rows, `[rows, texts, d]`."""
        return by_cell[self.cells].reshape(*self.firsts.shape, -1)

    def rows(self, flat: np.ndarray) -> np.ndarray:
        """Of what there is for all positions, `[F, d]`, that of this block, `[rows, length, d]`."""
        return flat[self.begin : self.begin + self.segments.size].reshape(*self.segments.shape, -1)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where texts stand in the rows of some blocks, flattened one after the other to `positions` of them.

    Of each text: `lengths` `[S]`, `starts` `[S]` its first position, and `cells` `[S]` its place where all rows of a
    block have as many. `firsts` has the first positions by cell, and a zero one, see `Packed`, in cells without a text.
    `held` `[P]` are all positions of texts, text after text, and `within` `[P]` counts those of each text from 0 on.
    """

    blocks: tuple[Block, ...]
    positions: int
    costs: RowCosts
    lengths: Index
    starts: Index
    cells: Index
    firsts: Index
    held: Index
    within: Index

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, lengths: tuple[int, ...], costs: RowCosts) -> Self:
        """As `pack` has them, see there. Kept, as most texts alone are as long as one before."""
        starts, cells, numbers = [0] * len(lengths), [0] * len(lengths), [0] * len(lengths)
        shapes: list[tuple[int, int, int, int, slice]] = []
        begin = places = 0
        for packing in pack(lengths, costs):
            most = max(map(len, packing.rows))
            texts = most if most == 1 else -(-most // CELL_STEP) * CELL_STEP
            texts = max(texts, FEW_ROWS.get((len(packing.rows), packing.length), 0))
            for row, members in enumerate(packing.rows):
                at = begin + row * packing.length
                for nth, text in enumerate(members):
                    starts[text], cells[text], numbers[text] = at, places + row * texts + nth, nth + 1
                    at += lengths[text]
            own = slice(places, places + len(packing.rows) * texts)
            shapes.append((begin, texts, len(packing.rows), packing.length, own))
            begin += packing.positions
            places = own.stop
        sizes, first = np.array(lengths), np.array(starts)
        counted = within(sizes)
        held = np.repeat(first, sizes) + counted
        segments = np.zeros(begin, dtype=np.int64)
        segments[held] = np.repeat(np.array(numbers), sizes)
        firsts = np.full(places, begin)
        firsts[cells] = first
        blocks = []
        for start, texts, rows, length, own in shapes:
            begins = start + length * np.arange(rows)[:, None]
            in_row = np.minimum(firsts[own].reshape(rows, texts) - begins, length - 1)
            blocks.append(Block(start, segments[start : start + rows * length].reshape(rows, length), in_row, own))
        return cls(tuple(blocks), begin, costs, sizes, first, np.array(cells), firsts, held, counted)

    def __len__(self) -> int:
        return len(self.lengths)

    def spread(self, values: Index, fill: int) -> Index:
        """`values` `[P]` of all positions of texts where they stand, and a little further on, as `Packed.flat` is."""
        spread = np.full(self.positions + LENGTH_STEP, fill, dtype=np.int64)
        spread[self.held] = values
        return spread

    @cached_property
    def nth(self) -> Index:
        """`within`, where the positions stand."""
        return self.spread(self.within, 0)

    @cached_property
    def source(self) -> Index:
        """Where the positions stand among the texts padded to their longest, on the right, 0 where none does: `[F]`, in
        `[S * T]`."""
        rows = np.arange(len(self)) * self.lengths.max()
        return self.spread(np.repeat(rows, self.lengths) + self.within, 0)

    @cached_property
    def ends(self) -> Layout:
        """That of the first positions alone, by cell. They are in no rows: nothing is run on them any more."""
        ones, places = np.ones_like(self.lengths), np.arange(len(self.firsts))
        return Layout((), len(places), self.costs, ones, self.cells, self.cells, places, self.cells, ones - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """States `flat` `[F, d]` of the positions of `layout`, and some more at the end, which are zero.

    `texts` `[S]` are the numbers, in the layout, of those that this is about.
    """

    flat: Tensor
    layout: Layout
    texts: Index

    @classmethod
    def all(cls, flat: Tensor, layout: Layout) -> Self:
        return cls(flat, layout, np.arange(len(layout)))

    @classmethod
    def of(cls, texts: Sequence[Tensor], costs: RowCosts) -> Self:
        """Texts `[T_s, d]` each."""
        layout = Layout.of(tuple(map(len, texts)), costs)
        # In the order in which they stand, with what is free between them, so that each is copied once.
        order = np.argsort(layout.starts)
        begins = np.append(layout.starts[order], layout.positions + LENGTH_STEP)
        free = begins - np.concatenate([[0], begins[:-1] + layout.lengths[order]])
        zeros = texts[0].new_zeros(int(free.max()), texts[0].shape[1])
        parts: list[Tensor] = []
        for number, before in zip(order.tolist(), free.tolist(), strict=False):
            parts += [zeros[:before], texts[number]] if before else [texts[number]]
        return cls.all(torch.cat([*parts, zeros[: free[-1]]]), layout)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> Index:
        return self.layout.lengths[self.texts]

    @property
    def starts(self) -> Index:
        return self.layout.starts[self.texts]

    def split(self, counts: Sequence[int]) -> list[Self]:
        if len(counts) == 1:
            return [self]
        parts = np.split(self.texts, np.cumsum(counts)[:-1])
        return [type(self)(self.flat, self.layout, texts) for texts in parts]

    def join(self, others: Sequence[Self]) -> Self:
        parts = [self, *others]
        if all(part.flat is self.flat for part in parts):
            return type(self)(self.flat, self.layout, np.concatenate([part.texts for part in parts]))
        lengths = tuple(length for part in parts for length in part.lengths.tolist())
        layout = Layout.of(lengths, self.layout.costs)
        flat = self.flat.new_zeros(layout.positions + LENGTH_STEP, self.flat.shape[1])
        stop = 0
        for part in parts:
            own_lengths, start = part.lengths, stop
            source = np.repeat(part.starts, own_lengths) + within(own_lengths)
            stop += len(source)
            own = part.flat.index_select(0, torch.from_numpy(source))
            flat.index_copy_(0, torch.from_numpy(layout.held[start:stop]), own)
        return self.all(flat, layout)

    def fits(self, other: Self) -> bool:
        return True

    def text(self, number: int, length: int) -> Tensor:
        start = self.starts[number]
        return self.flat[start : start + length]

    def alone(self) -> Self:
        """The same in rows that hold nothing else."""
        if len(self.texts) == len(self.layout):
            return self
        lengths = self.lengths
        layout = Layout.of(tuple(lengths.tolist()), self.layout.costs)
        source = layout.spread(np.repeat(self.starts, lengths) + layout.within, len(self.flat) - 1)
        return self.all(self.flat.index_select(0, torch.from_numpy(source)), layout)

    def firsts(self) -> Tensor:
        """The first position of each, `[S, 1, d]`."""
        return self.flat.index_select(0, torch.from_numpy(self.starts)).unsqueeze(1)

    def read(self, words: Words) -> Tensor:
        """What stands at the words, `[W, d]`."""
        return self.flat.index_select(0, torch.from_numpy(self.starts)[words.samples] + words.positions)

    def padded(self, appended: int = 0) -> Padded:
        """The same with a row for each, where the last `appended` positions of each end its row, behind the padding."""
        lengths = self.lengths
        longest = int(lengths.max())
        source = np.full((len(lengths), longest), self.layout.positions)
        held = np.arange(longest) < lengths[:, None] - appended
        held[:, longest - appended :] = True
        source[held] = np.repeat(self.starts, lengths) + within(lengths)
        hidden = self.flat.index_select(0, torch.from_numpy(source.ravel())).unflatten(0, source.shape)
        return Padded(hidden, torch.from_numpy(held.astype(np.int64)), "right")
