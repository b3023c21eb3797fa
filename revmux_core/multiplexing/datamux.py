"""DataMUX (Murahari et al., NeurIPS 2022, arXiv 2202.09318): Hadamard keys in, index embeddings out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revmux_core.multiplexing.base import Multiplexer
from revmux_core.multiplexing.reversible import mlp


class HadamardMultiplexer(Multiplexer):
    """`x = 1/N sum_i v_i * H_i` (section 3.1): keys `v_i` of N(0, 1), drawn once and kept, tell the samples apart."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__(width, hidden_size)
        self.register_buffer("keys", torch.randn(width, hidden_size))

    def combine(self, hidden: Tensor) -> Tensor:
        """Samples `[B, N, T, d]` to their composites `[B, T, d]`."""
        keys = self.get_buffer("keys")
        return torch.einsum("bntd,nd->btd", hidden, keys.to(hidden.dtype)) / self.width


class DataMuxMultiplexer(HadamardMultiplexer):
    """Index embeddings (section 3.2): sample i brings N tokens, `e_i` at place i and `e_pad` elsewhere.

    They are multiplexed like the text; the output `p_i` at place i says which sample a shared MLP is to read:
    `state_i = MLP([pooled ; p_i])`. Published as a prefix; here they stand behind the text, which is the same to an
    encoder above its position embeddings and leaves the text's own positions alone.
    """

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__(width, hidden_size)
        self.appended = width
        self.index = nn.Parameter(torch.randn(width, hidden_size))
        self.pad = nn.Parameter(torch.randn(hidden_size))
        self.up = mlp(2 * hidden_size, 3 * hidden_size, hidden_size)

    def multiplex(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.pad.expand(self.width, self.width, -1).clone()
        places = torch.arange(self.width, device=hidden.device)
        tokens[places, places] = self.index
        tokens = tokens.to(hidden.dtype).expand(hidden.shape[0], -1, -1, -1)
        return self.combine(torch.cat([hidden, tokens], dim=2)), F.pad(mask.amax(dim=1), (0, self.width), value=1)

    def demultiplex(self, pooled: Tensor, slots: Tensor, own: Tensor, appended: Tensor) -> Tensor:
        index = appended[torch.arange(slots.shape[0], device=slots.device), slots]
        return self.up(torch.cat([pooled, index], dim=-1))
