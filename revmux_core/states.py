"""Hidden states of a batch, as an executor lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

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
    """A row for each: `hidden` `[S, T, d]`, and `mask` `[S, T]`, 1 where a row holds text."""

    hidden: Tensor
    mask: Tensor
    padding_side: str

    @classmethod
    def of(cls, texts: Sequence[Tensor], mask: Tensor, padding_side: str) -> Self:
        """Texts `[T_s, d]` as rows of the length of `mask` `[S, T]`."""
        hidden = pad_sequence(list(texts), batch_first=True, padding_side=padding_side)
        missing = mask.shape[1] - hidden.shape[1]
        return cls(
            F.pad(hidden, (0, 0, 0, missing) if padding_side == "right" else (0, 0, missing, 0)), mask, padding_side
        )

    def __len__(self) -> int:
        return len(self.hidden)

    def split(self, counts: Sequence[int]) -> list[Self]:
        parts = zip(self.hidden.split(list(counts)), self.mask.split(list(counts)), strict=True)
        return [type(self)(hidden, mask, self.padding_side) for hidden, mask in parts]

    def join(self, others: Sequence[Self]) -> Self:
        if not others:
            return self
        hidden = torch.cat([self.hidden, *(other.hidden for other in others)])
        return type(self)(hidden, torch.cat([self.mask, *(other.mask for other in others)]), self.padding_side)

    def fits(self, other: Self) -> bool:
        return self.hidden.shape[1] == other.hidden.shape[1]

    def text(self, number: int, length: int) -> Tensor:
        row = self.hidden[number]
        return row[:length] if self.padding_side == "right" else row[len(row) - length :]
