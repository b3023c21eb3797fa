"""What executors have in common that give every text a row of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from revmux_core.backbones import Backbone
from revmux_core.batch import Words
from revmux_core.composites import demultiplex, multiplex
from revmux_core.multiplexing import Multiplexer
from revmux_core.points import OperatingPoint
from revmux_core.states import Padded


class PaddedExecutor:
    """Calls the model's own modules, on rows as long as the longest text."""

    packs = False

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def prepare(self, alone: OperatingPoint) -> None:
        pass

    def positions(self, lengths: Sequence[int]) -> int:
        return len(lengths) * max(lengths)

    def answer(
        self,
        points: Sequence[tuple[OperatingPoint, int]],
        ids: Tensor,
        type_ids: Tensor | None,
        lengths: tuple[int, ...],
    ) -> None:
        return None

    def embed(self, ids: Tensor, mask: Tensor, type_ids: Tensor | None, lengths: tuple[int, ...]) -> Padded:
        return Padded(self._backbone.embed(ids, mask, type_ids), mask, self._backbone.padding_side, lengths)

    def resume(self, texts: Sequence[Tensor], mask: Tensor) -> Padded:
        return Padded.of(texts, mask, self._backbone.padding_side)

    @property
    def last_layer(self) -> float:
        return self._backbone.last_layer

    def run(self, states: Padded, layers: Sequence[nn.Module], firsts: bool) -> Padded:
        return replace(states, hidden=self.run_rows(states.hidden, states.mask, layers))

    def run_rows(self, hidden: Tensor, mask: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        """`layers` in turn over hidden states `[R, T, d]`; `mask` `[R, T]` is 1 where a row holds text."""
        return self._backbone.run(hidden, mask, layers)

    def pool(self, states: Padded, words: Words | None) -> Tensor:
        rows = torch.arange(len(states.hidden), device=states.hidden.device)
        pooled = self._backbone.pool(states.hidden, rows, states.mask)
        return pooled if words is None else words.read(pooled)

    def multiplex(self, multiplexer: Multiplexer, states: Padded) -> tuple[Padded, Tensor, Tensor]:
        made = multiplex(self._backbone, multiplexer, states.hidden, states.mask)
        return composites_of(multiplexer, states, made.hidden, made.mask), made.own, made.own_mask

    def demultiplex(
        self, multiplexer: Multiplexer, states: Padded, own: Tensor, own_mask: Tensor, words: Words | None
    ) -> Tensor:
        return demultiplex(self._backbone, multiplexer, states.hidden, own, own_mask, words)


def composites_of(multiplexer: Multiplexer, states: Padded, hidden: Tensor, mask: Tensor) -> Padded:
    """The composites `hidden` `[B, T, d]` with their `mask` `[B, T]` that `multiplexer` made of `states`."""
    lengths = None
    if multiplexer.positionwise and states.lengths is not None:
        width = multiplexer.width
        lengths = tuple(max(states.lengths[first : first + width]) for first in range(0, len(states), width))
    return Padded(hidden, mask, states.padding_side, lengths)
