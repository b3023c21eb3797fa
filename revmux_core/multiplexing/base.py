"""What every way of multiplexing has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Multiplexer(ABC, nn.Module):
    """Adapters of one operating point. Shapes: B composites of N samples, S samples, T positions, hidden size d."""

    width: int

    @abstractmethod
    def multiplex(self, hidden: Tensor) -> Tensor:
        """Prefilled samples `[B, N, T, d]`, zero where padded, to composites `[B, T, d]`."""

    @abstractmethod
    def demultiplex(self, pooled: Tensor, slots: Tensor, own: Tensor) -> Tensor:
        """Pooled composite outputs `[S, d]` to one state per sample `[S, d]`.

        `slots` `[S]` is each sample's place in its composite; `own` `[S, d]` its own pooled prefill state.
        """
