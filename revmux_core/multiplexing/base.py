"""What every way of multiplexing has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from revmux_core.errors import RevmuxError


class Multiplexer(ABC, nn.Module):
    """Adapters of one operating point. Shapes: B composites of N samples, S samples, T positions, hidden size d.

    `min_width` is the least width that makes sense. `appended` is the number of positions that `multiplex` adds
    after those of the text, for its own use. Where `rows_apart` holds, a composite is not one row of the upper
    layers but N, one for each of its samples. Where `positionwise` holds, each position of a composite is made of the
    same position of its samples alone, and at width 1 is that position.
    """

    min_width: int = 2
    appended: int = 0
    rows_apart: bool = False
    positionwise: bool = False

    def __init__(self, width: int, hidden_size: int) -> None:
        """Raises `RevmuxError` when `width` is below `min_width` or does not divide `hidden_size`."""
        super().__init__()
        if width < self.min_width or hidden_size % width:
            least = self.min_width
            raise RevmuxError(f"width must be at least {least} and divide the hidden size {hidden_size}, got {width}")
        self.width = width

    @classmethod
    def like(cls, width: int, hidden_size: int, weights: Mapping[str, Tensor]) -> Self:
        """An untrained one that `weights`, a trained one's, fit."""
        return cls(width, hidden_size)

    @abstractmethod
    def multiplex(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Prefilled samples `[B, N, T, d]`, zero where their `mask` `[B, N, T]` is, to composites and their mask.

        Composites are `[B, T + appended, d]`, their mask `[B, T + appended]`; with `rows_apart` B*N rows, each as
        long as the multiplexer makes it.
        """

    def shortcut(self, hidden: Tensor, mask: Tensor, pooled: Tensor) -> Tensor:
        """What `demultiplex` reads of a sample's own prefill states, which no partner has touched: `[S, k]`.

        `hidden` `[S, T, d]` are the states, zero where `mask` `[S, T]` is; `pooled` `[S, d]` is what the head would
        read of them, or `[S, T, d]` where it reads words: then what is returned is `[S, T, k]`. By default nothing,
        k = 0: as all published methods have it. Where rows hold K texts each, `mask` is `[R, K, T]`, `pooled`
        `[R, K, d]`, and so is what is returned.
        """
        return pooled[..., :0]

    @abstractmethod
    def demultiplex(self, pooled: Tensor, slots: Tensor, own: Tensor, appended: Tensor) -> Tensor:
        """Pooled composite outputs `[S, d]` to one state per sample `[S, d]`; where words are answered, S are those.

        `slots` `[S]` is each sample's place in its composite, 0..N-1; `own` `[S, k]` is its shortcut; `appended`
        `[S, appended, d]` is the output of its composite's added positions.
        """
