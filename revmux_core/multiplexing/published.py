"""RevMUX as published (Xu et al., EMNLP 2024, arXiv 2410.04519), and its two ablations."""

from __future__ import annotations

from torch import Tensor, nn

from revmux_core.multiplexing.base import Multiplexer
from revmux_core.multiplexing.reversible import ReversibleCoupling, mlp, own_block


def _mlp(*sizes: int) -> nn.Sequential:
    return mlp(*sizes, activation=nn.ReLU, dropout=0.1)


class PublishedMultiplexer(Multiplexer):
    """`x_k = W_down H_k` (equation 2); the reversible coupling (3, 4); its inverse (5, 6); `up` back to d (7).

    F, G, ... are MLPs `d/N -> d -> d/N`, `up` is `d/N -> 3d -> 3d -> d`, all with ReLU and dropout 0.1.
    """

    positionwise = True

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__(width, hidden_size)
        self.block = hidden_size // width
        self.down = nn.Linear(hidden_size, self.block)
        self.up = _mlp(self.block, 3 * hidden_size, 3 * hidden_size, hidden_size)
        self.mixing: nn.Module = ReversibleCoupling(width, self.block, hidden_size, nn.ReLU, 0.1)

    def mix(self, blocks: Tensor) -> Tensor:
        """The samples' blocks `[..., N, d/N]` to the composite, `[..., d]`."""
        return self.mixing(blocks).flatten(-2)

    def separate(self, composite: Tensor) -> Tensor:
        """The composite's output `[..., d]` to blocks `[..., N, d/N]`."""
        coupling = self.mixing
        assert isinstance(coupling, ReversibleCoupling)
        return coupling.inverse(composite.unflatten(-1, (self.width, self.block)))

    def multiplex(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix(self.down(hidden).movedim(1, -2)), mask.amax(dim=1)

    def demultiplex(self, pooled: Tensor, slots: Tensor, own: Tensor, appended: Tensor) -> Tensor:
        return self.up(own_block(self.separate(pooled), slots))


class OneWayMultiplexer(PublishedMultiplexer):
    """Ablation "only the multiplexer reversible": a free MLP `d -> d -> d` separates the blocks instead."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__(width, hidden_size)
        self.separating = _mlp(hidden_size, hidden_size, hidden_size)

    def separate(self, composite: Tensor) -> Tensor:
        return self.separating(composite).unflatten(-1, (self.width, self.block))


class VanillaAdapterMultiplexer(OneWayMultiplexer):
    """Ablation "vanilla adapter": a free MLP `d -> d -> d` mixes the blocks too, as large as the coupling is."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__(width, hidden_size)
        self.mixing = _mlp(hidden_size, hidden_size, hidden_size)

    def mix(self, blocks: Tensor) -> Tensor:
        return self.mixing(blocks.flatten(-2))
