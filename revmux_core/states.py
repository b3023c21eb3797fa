"""Hidden states of a batch, as an executor lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class States(Protocol):
    """Hidden states of texts, or of composites, in some order."""

    def __len__(self) -> int: ...

    def split(self, counts: Sequence[int]) -> list[Self]:
        """The first `counts[0]` of them, those after, and so on."""
        ...

    def join(self, others: Sequence[Self]) -> Self:
        """These, then `others`."""
        ...

    def fits(self, other: Self) -> bool:
        """Whether `join` can take both."""
        ...

    def text(self, number: int, length: int) -> Tensor:
        """`[length, d]` of one of them that has `length` positions; a part of what all are in."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Padded:
    """A row for each: `hidden` `[S, T, d]`, and `mask` `[S, T]`, 1 where a row holds text.

    `lengths` `[S]` are how much text the rows hold, for those who must not wait for a GPU to tell; None of composites
    that hold more than a text's positions.
    """

    hidden: Tensor
    mask: Tensor
    padding_side: str
    lengths: tuple[int, ...] | None = None

    @classmethod
    def of(cls, texts: Sequence[Tensor], mask: Tensor, padding_side: str) -> Self:
        """Texts `[T_s, d]` as rows of the length of `mask` `[S, T]`."""
        hidden = pad_sequence(list(texts), batch_first=True, padding_side=padding_side)
        missing = mask.shape[1] - hidden.shape[1]
        padded = F.pad(hidden, (0, 0, 0, missing) if padding_side == "right" else (0, 0, missing, 0))
        return cls(padded, mask, padding_side, tuple(map(len, texts)))

    def __len__(self) -> int:
        return len(self.hidden)

    def split(self, counts: Sequence[int]) -> list[Self]:
        lengths = None if self.lengths is None else iter(self.lengths)
        return [
            type(self)(hidden, mask, self.padding_side, None if lengths is None else tuple(islice(lengths, count)))
            for hidden, mask, count in zip(
                self.hidden.split(list(counts)), self.mask.split(list(counts)), counts, strict=True
            )
        ]

    def join(self, others: Sequence[Self]) -> Self:
        if not others:
            return self
        parts = [self, *others]
        hidden, mask = torch.cat([part.hidden for part in parts]), torch.cat([part.mask for part in parts])
        known = [part.lengths for part in parts if part.lengths is not None]
        lengths = tuple(chain.from_iterable(known)) if len(known) == len(parts) else None
        return type(self)(hidden, mask, self.padding_side, lengths)

    def fits(self, other: Self) -> bool:
        return self.hidden.shape[1] == other.hidden.shape[1]

    def text(self, number: int, length: int) -> Tensor:
        row = self.hidden[number]
        return row[:length] if self.padding_side == "right" else row[len(row) - length :]


def within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... for each of some texts of these lengths, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
