"""RevMUX: reversible multiplexing (Xu et al., EMNLP 2024, arXiv 2410.04519, section 3), with our departures."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import ceil
from typing import Self

import torch
from torch import Tensor, nn

from revmux_core.multiplexing.base import Multiplexer


def mlp(*sizes: int, activation: type[nn.Module] = nn.GELU, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of the given sizes with an activation, and dropout where asked for, between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        if layers:
            layers += [activation(), nn.Dropout(dropout)] if dropout else [activation()]
        layers.append(nn.Linear(fan_in, fan_out))
    return nn.Sequential(*layers)


class ReversibleCoupling(nn.Module):
    """A chain of N additive couplings over N blocks of width d/N, and its exact inverse.

    Forward: `o_1 = x_1 + F_1(x_N)`, then `o_k = x_k + F_k(o_{k-1})` for k = 2..N; for N = 2 these are the paper's
    equations 3 and 4. The inverse runs from k = N down: every step subtracts a function of a value it already knows.
    """

    def __init__(
        self, width: int, block: int, hidden: int, activation: type[nn.Module] = nn.GELU, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.functions = nn.ModuleList(
            mlp(block, hidden, block, activation=activation, dropout=dropout) for _ in range(width)
        )

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


COUPLING_SHARE = 1 / 8
"""The hidden size of a coupling's functions over the model's. At the paper's 1 width 2 spent a fiftieth more of its
time on adapters in float32, and agreed as often within a fifth of a point; at 1/16 it spent no less
(`docs/performance/cpu.md`)."""

SHORTCUT_DROPOUT = 0.5
"""Share of the samples of a training step that must do without their shortcut.

Without it training settles on the shortcut alone and the composite is never learnt (`docs/performance/agreement.md`).
"""


MASKED = torch.finfo(torch.bfloat16).min
"""The score of a position that is not read: the lowest that is finite in bfloat16 as well as in float32."""


class AttentionPool(nn.Module):
    """Learned queries that read a whole text: multi-head attention whose queries do not depend on the text.

    A head costs T x d multiplications a sample twice, which is next to nothing beside a layer's 12 x T x d^2.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        # Heads of 32 channels, as in the small encoders that are multiplexed most.
        self.heads = hidden_size // 32 if hidden_size % 32 == 0 else 1
        self.queries = nn.Parameter(torch.randn(self.heads, hidden_size) * hidden_size**-0.5)
        self.values = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """States `[S, T, d]` with masks `[S, T]` to `[S, d]`; what is read of a text without a token is arbitrary, but
        finite.

        Or, of rows that hold several texts, with a mask for each, `[R, K, T]`: `[R, K, d]`.
        """
        texts = mask if mask.ndim == 3 else mask.unsqueeze(1)
        scores = (hidden @ self.queries.T).transpose(1, 2).unsqueeze(2)
        # Not -inf, which makes NaN of rows' cells without a text: OpenVINO's products with AMX let that into others.
        weights = scores.masked_fill(texts.unsqueeze(1) == 0, MASKED).softmax(dim=-1)
        # Texts' states as each head weighs them, `[heads, R * K, d]`: one product a head, not one a head and row.
        read = (weights.flatten(1, 2) @ hidden).unflatten(1, (self.heads, -1)).transpose(0, 1).flatten(1, 2)
        values = self.values.weight.unflatten(0, (self.heads, -1)).transpose(1, 2)
        out = (read @ values).transpose(0, 1).flatten(1) + self.values.bias
        return out.unflatten(0, (hidden.shape[0], -1)) if mask.ndim == 3 else out


class OwnStatesMultiplexer(Multiplexer):
    """A multiplexer whose shortcut is all of a sample's own prefill states, through its attention pool `pool`."""

    pool: AttentionPool

    def shortcut(self, hidden: Tensor, mask: Tensor, pooled: Tensor) -> Tensor:
        """The pooled state and what the attention pool reads, `[S, 2d]`; or each position's state and the same."""
        read = self.pool(hidden, mask)
        return torch.cat([pooled, read if pooled.ndim == read.ndim else read.unsqueeze(1).expand_as(pooled)], dim=-1)


class ReversibleMultiplexer(OwnStatesMultiplexer):
    """Down projection, reversible coupling, and after the shared layers its inverse and the up projection.

    Departures from the paper (`PublishedMultiplexer` has none): GELU without dropout in place of ReLU with it, a
    coupling whose functions are `d/N -> d/8 -> d/N`, an up projection with one hidden layer of width d in place of two
    of 3d, and a shortcut: it also reads the sample's own prefill states, pooled and through an attention pool (measured
    in `docs/performance/agreement.md`).
    """

    positionwise = True

    def __init__(self, width: int, hidden_size: int, coupling_size: int | None = None) -> None:
        """`coupling_size` is the hidden size of the coupling's functions, as trained ones have it; None an eighth."""
        super().__init__(width, hidden_size)
        self.block = hidden_size // width
        self.down = nn.Linear(hidden_size, self.block)
        self.coupling = ReversibleCoupling(width, self.block, coupling_size or ceil(hidden_size * COUPLING_SHARE))
        self.pool = AttentionPool(hidden_size)
        self.up = mlp(self.block + 2 * hidden_size, hidden_size, hidden_size)

    @classmethod
    def like(cls, width: int, hidden_size: int, weights: Mapping[str, Tensor]) -> Self:
        # Older ones have couplings as large as the paper's, d/N -> d -> d/N.
        inner = weights.get("coupling.functions.0.0.bias")
        return cls(width, hidden_size, None if inner is None else len(inner))

    def multiplex(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        blocks = self.down(hidden).movedim(1, -2)
        return self.coupling(blocks).flatten(-2), mask.amax(dim=1)

    def demultiplex(self, pooled: Tensor, slots: Tensor, own: Tensor, appended: Tensor) -> Tensor:
        blocks = self.coupling.inverse(pooled.unflatten(-1, (self.width, self.block)))
        if self.training:
            own = own * (torch.rand(len(own), 1, device=own.device) >= SHORTCUT_DROPOUT)
        return self.up(torch.cat([own_block(blocks, slots), own], dim=-1))


def own_block(blocks: Tensor, slots: Tensor) -> Tensor:
    """Of each sample's blocks `[S, N, d/N]` the one in its own slot: `[S, d/N]`."""
    # `shape`, because tracing for a compiled backend takes what `len` says for a constant.
    return blocks[torch.arange(slots.shape[0], device=slots.device), slots]
