"""Token pooling: not N texts in one sequence, but every text alone in a sequence N times shorter. The rival to beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revmux_core.multiplexing.reversible import AttentionPool, OwnStatesMultiplexer, mlp


class TokenPoolMultiplexer(OwnStatesMultiplexer):
    """Every N neighbouring tokens after the first become one, a learned weighted mean; the first token stays.

    As in Funnel-Transformer (Dai et al. 2020, arXiv 2006.03236), with a learned query in place of the mean. It costs
    what multiplexing N texts costs, 1 + (T - 1)/N positions a text, and no text meets another: partners cannot change
    an answer. It has the shortcut of `ReversibleMultiplexer`, never hidden in training, and a smaller up projection.
    """

    rows_apart = True

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__(width, hidden_size)
        self.query = nn.Parameter(torch.zeros(hidden_size))
        self.pool = AttentionPool(hidden_size)
        self.up = mlp(3 * hidden_size, 2 * hidden_size, hidden_size)

    def multiplex(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden, mask = hidden.flatten(0, 1), mask.flatten(0, 1)
        rest = -(hidden.shape[1] - 1) % self.width
        windows = F.pad(hidden[:, 1:], (0, 0, 0, rest)).unflatten(1, (-1, self.width))
        held = F.pad(mask[:, 1:], (0, rest)).unflatten(1, (-1, self.width))
        # Finite, so that a window of padding alone has weights, which then meet zeros.
        scores = (windows @ self.query).masked_fill(held == 0, -1e4)
        merged = (scores.softmax(dim=-1).unsqueeze(-1) * windows).sum(dim=2)
        return torch.cat([hidden[:, :1], merged], dim=1), torch.cat([mask[:, :1], held.amax(dim=-1)], dim=1)

    def demultiplex(self, pooled: Tensor, slots: Tensor, own: Tensor, appended: Tensor) -> Tensor:
        return pooled + self.up(torch.cat([pooled, own], dim=-1))
