"""MUX-PLM (Murahari et al., 2023, arXiv 2302.12441): Hadamard keys in, private keys out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from revmux_core.multiplexing.datamux import HadamardMultiplexer
from revmux_core.multiplexing.reversible import mlp


class MuxPlmMultiplexer(HadamardMultiplexer):
    """RSA demultiplexing (section 3.2): `state_i = MLP([pooled ; k_i])` with a learned private key `k_i` a slot.

    Unlike DataMUX's index tokens the keys need no positions in the composite.
    """

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__(width, hidden_size)
        self.private = nn.Parameter(torch.randn(width, hidden_size))
        self.up = mlp(2 * hidden_size, 3 * hidden_size, hidden_size)

    def multiplex(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.combine(hidden), mask.amax(dim=1)

    def demultiplex(self, pooled: Tensor, slots: Tensor, own: Tensor, appended: Tensor) -> Tensor:
        return self.up(torch.cat([pooled, self.private[slots].to(pooled.dtype)], dim=-1))
