"""Texts one after the other without padding, as PyTorch's attention over texts of unlike lengths takes them.

What an encoder makes of a position depends on its text alone, so padding is nothing but waste to it. Rows are padded
for what stands before and after the layers, and the padding is taken out for the layers (Zeng et al. 2022, "Boosting
Distributed Training Performance of the Unpadded BERT Model", arXiv 2208.08124).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from revmux_core.backbones import PackingBackbone
from revmux_core.batch import move
from revmux_core.states import Padded, within


@dataclass(frozen=True, slots=True, eq=False)
class Unpadded:
    """States `flat` `[P, d]` of the text in `rows`, without its padding.

    Text s stands from `offsets[s]` to before `offsets[s + 1]` (`[S + 1]`, int32); the `longest` has as many positions.
    `source` `[P]` is where in the flattened rows each position was; None where there is no padding.
    """

    rows: Padded
    flat: Tensor
    offsets: Tensor
    longest: int
    source: Tensor | None

    @classmethod
    def of(cls, rows: Padded) -> Unpadded:
        """Of rows that are padded on the right, whose lengths are known. No GPU is waited for."""
        assert rows.lengths is not None
        lengths, length = np.array(rows.lengths), rows.hidden.shape[1]
        device = rows.hidden.device
        offsets = move(torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32)), device)
        flat = rows.hidden.flatten(0, 1)
        if (lengths == length).all():
            return cls(rows, flat, offsets, length, None)
        begins = np.arange(len(lengths)) * length
        source = move(torch.from_numpy(np.repeat(begins, lengths) + within(lengths)), device)
        return cls(rows, flat.index_select(0, source), offsets, int(lengths.max()), source)

    def padded(self, flat: Tensor) -> Padded:
        """The rows with `flat` `[P, d]` in the place of their text; zero where they hold none."""
        if self.source is None:
            hidden = flat
        else:
            hidden = flat.new_zeros(self.rows.mask.numel(), flat.shape[1]).index_copy_(0, self.source, flat)
        return replace(self.rows, hidden=hidden.view_as(self.rows.hidden))

    def firsts(self, firsts: Tensor) -> Padded:
        """Rows that hold `firsts` `[S, d]` alone."""
        return Padded(firsts.unsqueeze(1), self.rows.mask[:, :1], self.rows.padding_side, (1,) * len(firsts))


class UnpaddedLayers(nn.Module):
    """Neighbouring layers as one module, on texts without padding. Where `firsts` alone are read of what comes out, the
    last layer is computed for them alone."""

    def __init__(self, backbone: PackingBackbone, layers: Sequence[nn.Module], firsts: bool) -> None:
        super().__init__()
        self._backbone = backbone
        self._firsts = firsts
        self.layers = nn.ModuleList(layers)

    def forward(self, flat: Tensor, offsets: Tensor, longest: int) -> Tensor:
        """The `flat` of `Unpadded`, with its `offsets` and `longest`, to that after the layers, or to the states of the
        first positions: `[S, d]`."""
        if not self._firsts:
            return self._backbone.run_unpadded(flat, offsets, longest, list(self.layers))
        *before, last = self.layers
        flat = self._backbone.run_unpadded(flat, offsets, longest, before)
        return self._backbone.run_firsts(flat, offsets, longest, last)
