"""Early exit: no partners and no upper layers, an answer from the prefill states alone. The rival at equal cost."""

from __future__ import annotations

from torch import Tensor

from revmux_core.errors import RevmuxError
from revmux_core.multiplexing.reversible import AttentionPool, OwnStatesMultiplexer, mlp


class EarlyExit(OwnStatesMultiplexer):
    """What the frozen head reads after the last layer, told from the states after `prefill` layers.

    As in BranchyNet (Teerapittayanon et al. 2016, arXiv 1709.01686) and DeeBERT (Xin et al. 2020, arXiv 2004.12993),
    but distilled from the frozen model, through its own head. It is the shortcut of `ReversibleMultiplexer` with no
    composite beside it; a text is its own composite.
    """

    min_width = 1
    positionwise = True

    def __init__(self, width: int, hidden_size: int) -> None:
        """Raises `RevmuxError` for a width other than 1."""
        super().__init__(width, hidden_size)
        if width != 1:
            raise RevmuxError(f"an early exit has no partners: its width is 1, not {width}")
        self.pool = AttentionPool(hidden_size)
        self.up = mlp(2 * hidden_size, hidden_size, hidden_size)

    def multiplex(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return hidden.flatten(0, 1), mask.flatten(0, 1)

    def demultiplex(self, pooled: Tensor, slots: Tensor, own: Tensor, appended: Tensor) -> Tensor:
        return self.up(own)
