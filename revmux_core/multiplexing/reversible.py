"""RevMUX: reversible multiplexing (Xu et al., EMNLP 2024, arXiv 2410.04519, section 3)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from revmux_core.errors import RevmuxError
from revmux_core.multiplexing.base import Multiplexer


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of the given sizes with GELU between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class ReversibleCoupling(nn.Module):
    """A chain of N additive couplings over N blocks of width d/N, and its exact inverse.

    Forward: `o_1 = x_1 + F_1(x_N)`, then `o_k = x_k + F_k(o_{k-1})` for k = 2..N; for N = 2 these are the paper's
    equations 3 and 4. The inverse runs from k = N down: every step subtracts a function of a value it already knows.
    """

    def __init__(self, width: int, block: int, hidden: int) -> None:
        super().__init__()
        self.functions = nn.ModuleList(mlp(block, hidden, block) for _ in range(width))

    def forward(self, x: Tensor) -> Tensor:
        """Blocks `[..., N, d/N]` to coupled blocks of the same shape."""
        blocks = x.unbind(-2)
        coupled = [blocks[0] + self.functions[0](blocks[-1])]
        for function, block in zip(self.functions[1:], blocks[1:], strict=True):
            coupled.append(block + function(coupled[-1]))
        return torch.stack(coupled, dim=-2)

    def inverse(self, o: Tensor) -> Tensor:
        """Coupled blocks `[..., N, d/N]` back to the blocks that `forward` was given."""
        coupled = list(o.unbind(-2))
        blocks = coupled[:]
        for k in range(len(coupled) - 1, 0, -1):
            blocks[k] = coupled[k] - self.functions[k](coupled[k - 1])
        blocks[0] = coupled[0] - self.functions[0](blocks[-1])
        return torch.stack(blocks, dim=-2)


class ReversibleMultiplexer(Multiplexer):
    """Down projection, reversible coupling, and after the shared layers its inverse and the up projection.

    Two departures from the paper: GELU without dropout in place of ReLU with it, and a shortcut (measured in
    `docs/performance.md`): the up projection also reads the sample's own pooled prefill state, which no partner has
    touched.

    Raises `RevmuxError` when `width` does not divide `hidden_size`.
    """

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        if width < 2 or hidden_size % width:
            raise RevmuxError(f"width must be at least 2 and divide the hidden size {hidden_size}, got {width}")
        self.width = width
        self.block = hidden_size // width
        self.down = nn.Linear(hidden_size, self.block)
        self.coupling = ReversibleCoupling(width, self.block, hidden_size)
        self.up = mlp(self.block + hidden_size, 3 * hidden_size, 3 * hidden_size, hidden_size)

    def multiplex(self, hidden: Tensor) -> Tensor:
        """Prefilled samples `[B, N, T, d]`, zero where padded, to composites `[B, T, d]`."""
        blocks = self.down(hidden).movedim(1, -2)
        return self.coupling(blocks).flatten(-2)

    def demultiplex(self, pooled: Tensor, slots: Tensor, own: Tensor) -> Tensor:
        """Composite outputs to one state per sample, `[S, d]`.

        `pooled` `[S, d]` is the composite's output, pooled for each sample; `slots` `[S]` is the sample's place in
        its composite, 0..N-1; `own` `[S, d]` is the sample's own pooled prefill state.
        """
        blocks = self.coupling.inverse(pooled.unflatten(-1, (self.width, self.block)))
        block = blocks[torch.arange(len(slots), device=slots.device), slots]
        return self.up(torch.cat([block, own], dim=-1))
